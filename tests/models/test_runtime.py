"""Where networks run: what is chosen, and that every engine computes the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import openvino_runtime, precision
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.record import ModelUnavailable
from models.runtime import CONVERTED, Runtime, RuntimeUnavailable, choose
from models.store import load_network, save_weights

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lungs": DeepMedic,
    "lesions": LesionNetwork,
    "involvement": InvolvementNetwork,
    "classifier": Classifier,
}
INPUTS = {
    ("lungs", "survey"): [(1, 1, 42, 72, 69)],
    ("lungs", "decide"): [(1, 1, 16, 29, 23), (1, 48, 4, 5, 3)],
    ("lesions", "forward"): [(1, 1, 16, 32, 24)],
    ("involvement", "forward"): [(3, 1, 48, 32)],
    ("classifier", "encode"): [(3, 2, 37, 50)],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All networks, with random weights that float16 keeps."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for task, build in NETWORKS.items():
        save_weights(folder / task, build(), {"name": task, "version": "0"})
    return folder


_SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from models.involvement.network import InvolvementNetwork
from models.runtime import Runtime
signal.signal(signal.SIGUSR1, lambda *_: print("signalled"))
networks = [Runtime("openvino").load(Path(sys.argv[1]), InvolvementNetwork) for _ in range(2)]
while networks:
    del networks[0]
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
def test_signals_are_survived_when_networks_are_given_up(models: Path) -> None:
    """On whatever stack the libraries leave for them; in a process of its own, for it may be the end of it."""
    command = [sys.executable, "-W", "ignore", "-c", _SIGNALLED, str(models / "involvement")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "signalled\n" * 2), done.stderr


FEW_VOXELS = INPUTS | {("lesions", "forward"): [(1, 1, 8, 8, 16)]}
"""Where no instructions help, bfloat16 takes a hundred times as long as float32."""


def _inputs(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize(("task", "method"), list(INPUTS))
def test_every_engine_computes_what_the_network_does(models: Path, task: str, method: str, engine: str) -> None:
    """For other sizes and batches than those with which it was traced."""
    plain, record = load_network(models / task, NETWORKS[task])
    network, same = Runtime(engine).load(models / task, NETWORKS[task])  # type: ignore[arg-type,type-var]
    assert same == record
    inputs = _inputs(INPUTS[task, method])
    with torch.inference_mode():
        expected = getattr(plain, method)(*inputs)
    got = getattr(network, method)(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_all_that_is_work_is_covered_here() -> None:
    assert {(task, method) for task, build in NETWORKS.items() for method in build.heavy} == set(INPUTS)  # type: ignore[attr-defined]


def test_a_network_is_called_by_what_runs_it(models: Path) -> None:
    """``network(x)`` is what OpenVINO computes, and what a method calls, too."""
    network, _ = Runtime("openvino").load(models / "involvement", InvolvementNetwork)
    (x,) = _inputs([(1, 1, 32, 32)])
    torch.testing.assert_close(network(x), network.forward(x), rtol=0, atol=0)
    assert not network(x).requires_grad


_FAST = pytest.mark.skipif(not precision.fast_in_bfloat16(), reason="no instructions for bfloat16")


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=_FAST)])
@pytest.mark.parametrize(("task", "method"), [key for key in INPUTS if not NETWORKS[key[0]].exact])  # type: ignore[attr-defined]
def test_bfloat16_is_near(models: Path, task: str, method: str, engine: str) -> None:
    plain, _ = load_network(models / task, NETWORKS[task])
    network, _ = Runtime(engine, precision="bfloat16").load(models / task, NETWORKS[task])  # type: ignore[arg-type,type-var]
    inputs = _inputs(FEW_VOXELS[task, method])
    with torch.inference_mode():
        expected = getattr(plain, method)(*inputs)
    got = getattr(network, method)(*inputs)
    assert 0 < float((got - expected).abs().mean()) < 0.1 * float(expected.abs().mean())


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_classifier_computes_in_float32_always(models: Path, engine: str) -> None:
    """Its explanation takes its values apart, and does so in float32."""
    exact, lowered = (
        Runtime(engine, precision=each).load(models / "classifier", Classifier)[0]  # type: ignore[arg-type]
        for each in ("float32", "bfloat16")
    )
    inputs = _inputs(INPUTS["classifier", "encode"])
    torch.testing.assert_close(exact.encode(*inputs), lowered.encode(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("engine", "arithmetic", "fast", "cuda", "expected"),
    [
        ("auto", "auto", False, False, ("openvino", "cpu", "float32")),
        ("auto", "auto", True, False, ("openvino", "cpu", "bfloat16")),
        ("auto", "float32", True, False, ("openvino", "cpu", "float32")),
        ("auto", "bfloat16", False, False, ("torch", "cpu", "bfloat16")),
        ("torch", "auto", True, False, ("torch", "cpu", "bfloat16")),
        ("auto", "auto", True, True, ("torch", "cuda", "bfloat16")),
        ("auto", "auto", False, True, ("torch", "cuda", "float32")),
        ("auto", "bfloat16", False, True, ("torch", "cuda", "bfloat16")),
        ("torch", "float32", False, True, ("torch", "cuda", "float32")),
        ("openvino", "auto", False, True, ("openvino", "cpu", "float32")),
    ],
)
def test_what_is_chosen(
    monkeypatch: pytest.MonkeyPatch, engine: str, arithmetic: str, fast: bool, cuda: bool, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(precision.FAST_IN_BFLOAT16, fast))
    chosen = choose(engine, arithmetic)  # type: ignore[arg-type]
    assert (chosen.engine, chosen.device, chosen.precision) == expected


def test_openvino_does_not_claim_an_arithmetic_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(RuntimeUnavailable, match="bfloat16"):
        choose("openvino", "bfloat16")


def test_every_place_has_a_name_of_its_own() -> None:
    """It is part of what UIDs follow from."""
    places = [Runtime("openvino"), Runtime("torch"), Runtime("torch", "cuda")]
    assert [place.name for place in places] == ["openvino", "torch", "torch-cuda"]


def test_what_openvino_cannot_convert_is_said_in_a_line(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Check 'x' failed at src/core.cpp:1")

    monkeypatch.setattr(openvino_runtime.ov, "convert_model", fail)
    with pytest.raises(ModelUnavailable, match=r"^model involvement: OpenVINO cannot run it; try runtime=torch$"):
        Runtime("openvino").load(models / "involvement", InvolvementNetwork)


class _Converted(Exception):
    """A conversion was tried."""


@pytest.fixture
def kept(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Runtime, Path]:
    """A runtime whose cache has 2DS, and the entry; who converts from now on is caught."""
    runtime = Runtime("openvino", cache=tmp_path / "cache")
    runtime.load(models / "involvement", InvolvementNetwork)
    (entry,) = (tmp_path / "cache").iterdir()

    def convert(*_: object, **__: object) -> None:
        raise _Converted

    monkeypatch.setattr(openvino_runtime.ov, "convert_model", convert)
    return runtime, entry


def test_a_network_is_converted_once(models: Path, kept: tuple[Runtime, Path]) -> None:
    plain, _ = load_network(models / "involvement", InvolvementNetwork)
    network, _ = kept[0].load(models / "involvement", InvolvementNetwork)
    (x,) = _inputs([(1, 1, 32, 32)])
    with torch.inference_mode():
        torch.testing.assert_close(network(x), plain(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("file", ["model.xml", "model.bin", "sha256"])
def test_what_is_damaged_or_missing_in_the_cache_is_made_again(
    models: Path, kept: tuple[Runtime, Path], file: str
) -> None:
    runtime, entry = kept
    content = bytearray((entry / file).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / file).write_bytes(content)
    with pytest.raises(_Converted):
        runtime.load(models / "involvement", InvolvementNetwork)
    (entry / file).unlink()
    with pytest.raises(_Converted):
        runtime.load(models / "involvement", InvolvementNetwork)


def test_what_is_damaged_is_replaced(models: Path, tmp_path: Path) -> None:
    runtime = Runtime("openvino", cache=tmp_path)
    runtime.load(models / "involvement", InvolvementNetwork)
    (entry,) = tmp_path.iterdir()
    (entry / "model.bin").write_bytes(b"")
    runtime.load(models / "involvement", InvolvementNetwork)
    assert [entry] == list(tmp_path.iterdir())
    assert (entry / "model.bin").stat().st_size > 1e6


def test_other_weights_settings_or_code_are_converted_anew(
    models: Path, kept: tuple[Runtime, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, _ = kept
    shutil.copytree(models / "involvement", tmp_path / "finer" / "involvement")
    metadata = json.loads((tmp_path / "finer" / "involvement" / "metadata.json").read_text())
    metadata["network_settings"] = {"pixel_mm": 1.0}
    (tmp_path / "finer" / "involvement" / "metadata.json").write_text(json.dumps(metadata))
    save_weights(tmp_path / "others", InvolvementNetwork(), {"name": "involvement", "version": "0"})
    for folder in (tmp_path / "finer" / "involvement", tmp_path / "others"):
        with pytest.raises(_Converted):
            runtime.load(folder, InvolvementNetwork)
    monkeypatch.setattr(openvino_runtime, "code_digest", lambda *packages: "changed")
    with pytest.raises(_Converted):
        runtime.load(models / "involvement", InvolvementNetwork)


def test_a_cache_that_someone_else_may_have_written_is_not_read(models: Path, kept: tuple[Runtime, Path]) -> None:
    runtime, entry = kept
    assert not entry.stat().st_mode & 0o022
    entry.chmod(0o775)
    with pytest.raises(_Converted):
        runtime.load(models / "involvement", InvolvementNetwork)
    entry.chmod(0o755)
    runtime.load(models / "involvement", InvolvementNetwork)
    if os.getuid() == 0:
        os.chown(entry, 12345, -1)
        with pytest.raises(_Converted):
            runtime.load(models / "involvement", InvolvementNetwork)


def test_from_the_cache_a_network_computes_the_very_same(models: Path, tmp_path: Path) -> None:
    (x,) = _inputs([(1, 1, 64, 48)])
    runtime = Runtime("openvino", cache=tmp_path)
    first, second = (runtime.load(models / "involvement", InvolvementNetwork)[0](x) for _ in range(2))
    assert torch.equal(first, second)


def test_an_entry_that_another_process_has_made_is_left(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime("openvino", cache=tmp_path)
    runtime.load(models / "involvement", InvolvementNetwork)
    (entry,) = tmp_path.iterdir()
    made = (entry / "model.bin").stat()
    read = openvino_runtime._read
    monkeypatch.setattr(openvino_runtime, "_read", _once_absent(read))
    runtime.load(models / "involvement", InvolvementNetwork)
    assert [entry] == list(tmp_path.iterdir())
    assert (entry / "model.bin").stat().st_ino == made.st_ino


def _once_absent(read: Callable[..., object]) -> Callable[..., object]:
    asked: list[Path] = []

    def answer(core: object, entry: Path) -> object:
        asked.append(entry)
        return None if len(asked) == 1 else read(core, entry)

    return answer


def test_what_was_converted_beside_the_weights_is_used_and_not_made_again(
    models: Path, kept: tuple[Runtime, Path], tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models")
    shutil.copytree(kept[1], tmp_path / "models" / CONVERTED / kept[1].name)
    for runtime in (Runtime("openvino"), Runtime("openvino", cache=tmp_path / "empty")):
        network, _ = runtime.load(tmp_path / "models" / "involvement", InvolvementNetwork)
        assert network(torch.rand(1, 1, 32, 32)).shape == (1, 1, 32, 32)
    assert not (tmp_path / "empty").exists()


def test_without_a_cache_nothing_is_written(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    Runtime("openvino").load(tmp_path / "models" / "involvement", InvolvementNetwork)
    assert {each.name for each in (tmp_path / "models").iterdir()} == {each.name for each in models.iterdir()}


def test_without_a_place_to_keep_it_a_network_runs_all_the_same(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    network, _ = Runtime("openvino", cache=tmp_path / "file" / "cache").load(models / "involvement", InvolvementNetwork)
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 1, 32, 32)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


_SILENT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
from pathlib import Path
from models.involvement.network import InvolvementNetwork
from models.runtime import Runtime
Runtime("openvino").load(Path(sys.argv[1]), InvolvementNetwork)
print([event for event in opened if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto")])
from openvino.tools.ovc import convert_impl
print(convert_impl.tm.__name__)
"""


@pytest.mark.whole
def test_nothing_is_reported_to_the_maker_of_openvino(models: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _SILENT, str(models / "involvement")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-2:] == ["[]", "openvino.tools.ovc.telemetry_stub"]
