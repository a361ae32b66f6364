"""The image gives the results of the application outside, or one clear line and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.phantom import write_phantom
from tests.app.tiny_run import ROOT
from tests.image.docker import HARDENED, IMAGE, INPUT, MODELS, OUTPUT, TINY, docker, mount, names, run, writable
from tests.validation.tools import without_times

pytestmark = pytest.mark.image

_USERS = ("10001:10001", "54321:0")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    series = write_phantom(folder, seed=0)
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return series


def _outside(series: Path, output: Path) -> Path:
    command = [sys.executable, "-W", "ignore", "-m", "app", "-i", str(series), "-o", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return output


def _result(output: Path) -> dict[str, Any]:
    """All that does not depend on time."""
    result = dict(json.loads((output / "result.json").read_text("utf-8")))
    del result["seconds"]
    for file in result["files"]:
        del file["sha256"]
    return result


def _assert_same(first: Path, second: Path) -> None:
    """Byte by byte, but for the times at which the objects were made."""
    paths = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file()) == paths
    assert len([path for path in paths if path.suffix == ".dcm"]) > 4
    for path in paths:
        if path.suffix == ".dcm":
            assert without_times(first / path) == without_times(second / path), path
    assert _result(first) == _result(second)
    assert (first / "metadata.json").read_bytes() == (second / "metadata.json").read_bytes()


def _inside(series: Path, output: Path, user: str) -> Path:
    done = run(*mount(series, INPUT, readonly=True), *mount(writable(output), OUTPUT), user=user)
    assert done.returncode == 0, done.stderr
    return output


def test_the_phantom_gives_the_same_inside_and_outside_for_any_user(phantom: Path, open_path: Path) -> None:
    outside = _outside(phantom, open_path / "outside")
    for user in _USERS:
        _assert_same(outside, _inside(phantom, open_path / f"as {user.replace(':', ' ')}", user))


@pytest.mark.real_data
def test_a_real_ct_gives_the_same_inside_and_outside_for_any_user(real_data: Path, open_path: Path) -> None:
    series = real_data / "covid_P001"
    outside = _outside(series, open_path / "outside")
    for user in _USERS:
        _assert_same(outside, _inside(series, open_path / f"as {user.replace(':', ' ')}", user))


def _tiny(series: Path, models: Path) -> tuple[str, ...]:
    return (*TINY, *mount(series, INPUT, readonly=True), *mount(models, MODELS, readonly=True))


def test_weights_of_a_hospital_are_mounted_in_the_place_of_ours(series: Path, models: Path, open_path: Path) -> None:
    output = writable(open_path / "out")
    done = run(*_tiny(series, models), *mount(output, OUTPUT))
    assert done.returncode == 0, done.stderr
    assert _result(output)["models"]["lungs"]["name"] == "test lungs"
    assert done.stdout == f"{OUTPUT}\n"


def _assert_one_line(done: subprocess.CompletedProcess[str], status: int, says: str) -> None:
    assert done.returncode == status, done.stderr
    last = done.stderr.splitlines()[-1]
    assert says in last
    assert "Traceback" not in done.stderr
    assert sum(line.startswith(("error:", "refused:")) for line in done.stderr.splitlines()) == 1


def test_a_refused_input_leaves_the_reason_alone(models: Path, open_path: Path) -> None:
    empty, output = writable(open_path / "empty"), writable(open_path / "out")
    done = run(*_tiny(empty, models), *mount(output, OUTPUT))
    _assert_one_line(done, 65, "refused: NO_DICOM: ")
    assert names(output) == ["metadata.json", "result.json"]


def test_nothing_mounted_as_input_is_refused(open_path: Path) -> None:
    output = writable(open_path / "out")
    _assert_one_line(run(*mount(output, OUTPUT)), 65, "refused: NO_DICOM: ")


@pytest.mark.parametrize("hardening", [HARDENED, ("--network", "none")])
def test_nothing_mounted_as_output_is_an_error_not_a_loss(hardening: tuple[str, ...], series: Path) -> None:
    """Results written into a container would be gone with it."""
    options = mount(series, INPUT, readonly=True)
    done = docker("run", "--rm", *hardening, *options, IMAGE)
    _assert_one_line(done, 64, "cannot write to the output folder /var/holoscan/output as uid 1000: ")


def test_an_output_that_is_mounted_read_only(series: Path, models: Path, open_path: Path) -> None:
    output = writable(open_path / "out")
    done = run(*_tiny(series, models), *mount(output, OUTPUT, readonly=True))
    _assert_one_line(done, 64, "cannot write to the output folder")
    assert names(output) == []


def test_altered_weights(series: Path, models: Path, open_path: Path) -> None:
    altered, output = open_path / "altered", writable(open_path / "out")
    shutil.copytree(models, altered)
    weights = altered / "lesions" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    done = run(*_tiny(series, altered), *mount(output, OUTPUT))
    _assert_one_line(done, 70, "is not the file that metadata.json describes")
    assert names(output) == []


def test_too_little_memory(phantom: Path, open_path: Path) -> None:
    output = writable(open_path / "out")
    limits = ("--memory", "1g", "--memory-swap", "1g")
    done = run(*limits, *mount(phantom, INPUT, readonly=True), *mount(output, OUTPUT))
    _assert_one_line(done, 70, "memory")
    assert names(output) == []


@pytest.fixture
def container(phantom: Path, open_path: Path) -> Iterator[tuple[str, Path]]:
    """A run in progress, and its output folder."""
    output = writable(open_path / "out")
    options = (*mount(phantom, INPUT, readonly=True), *mount(output, OUTPUT), "--user", "10001:10001")
    identity = docker("run", "--detach", *HARDENED, *options, IMAGE).stdout.strip()
    deadline = time.monotonic() + 120
    while "Lung segmentation ..." not in docker("logs", identity).stderr:
        assert time.monotonic() < deadline, docker("logs", identity).stderr
        time.sleep(0.2)
    yield identity, output
    docker("rm", "--force", identity)


def _ended(identity: str) -> tuple[int, bool]:
    state = json.loads(docker("inspect", identity).stdout)[0]["State"]
    return state["ExitCode"], state["OOMKilled"]


def test_sigterm_ends_a_run_before_the_engine_kills_it(container: tuple[str, Path]) -> None:
    identity, output = container
    docker("stop", "--time", "10", identity)  # after ten seconds it kills, with status 137
    assert _ended(identity) == (143, False)
    assert docker("logs", identity).stderr.splitlines()[-1] == "interrupted"
    assert names(output) == []


def test_after_a_kill_the_next_run_cleans_up(container: tuple[str, Path], series: Path, models: Path) -> None:
    identity, output = container
    docker("kill", identity)
    assert _ended(identity)[0] == 137
    assert not (output / "result.json").exists()
    done = run(*_tiny(series, models), *mount(output, OUTPUT))
    assert done.returncode == 0, done.stderr
    assert names(output) == ["metadata.json", "pm", "result.json", "sc", "seg", "sr"]


_LISTENING = """
import runpy, sys
def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("SPOKE", event, arguments[1:], file=sys.stderr)
    if event == "socket.bind" and arguments[1][0] not in ("127.0.0.1", "::1"):  # urllib3 tries whether IPv6 is there
        print("SPOKE", event, arguments[1:], file=sys.stderr)
sys.addaudithook(hear)
if sys.argv[1:] == ["speak"]:
    import socket
    socket.getaddrinfo("localhost", 80)
else:
    runpy.run_path("/opt/holoscan/app/", run_name="__main__")
"""


def test_nobody_is_spoken_to(series: Path, models: Path, open_path: Path) -> None:
    """The interpreter itself reports what a run would say to others."""
    output = writable(open_path / "out")
    options = (*_tiny(series, models), *mount(output, OUTPUT), "--entrypoint", "python3")
    done = run(*options, command=("-c", _LISTENING))
    assert done.returncode == 0, done.stderr
    assert "SPOKE" not in done.stderr
    assert "SPOKE socket.getaddrinfo" in run(*options, command=("-c", _LISTENING, "speak")).stderr
