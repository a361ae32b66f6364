"""The cache holds what was prepared until what it was made from changes, whatever happens to disks and processes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from safetensors.numpy import load_file, save_file

from app.cohort import cache
from app.cohort.cache import prepare, said_of
from app.cohort.table import CohortStudy, write_table
from app.outcome import RunFailed, UsageError

_ROOT = Path(__file__).resolve().parents[3]
_BYTES = "bytes"


@dataclass(frozen=True)
class Copying:
    """Prepares a study as the bytes of its files, and writes down in ``log`` which it began and where."""

    log: Path
    added: int = 0
    says: tuple[str, ...] = ()

    @property
    def made_with(self) -> Mapping[str, object]:
        return {"added": self.added}

    @property
    def name(self) -> str:
        return "copies"

    def make(self, study: CohortStudy) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, str]]:
        content = _content(study)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{study.patient} {os.getpid()}\n")
        if content.startswith(b"wrong"):
            raise UsageError(f"study {study.path.name}: it is wrong")
        if content.startswith(b"die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if content.startswith(b"wait for "):
            _wait_until(Path(content.removeprefix(b"wait for ").decode()).exists)
        made = np.frombuffer(content, np.uint8) + np.uint8(self.added)
        return {_BYTES: made}, dict.fromkeys(self.says, study.patient)

    def begun(self) -> list[str]:
        """Give the patients whose studies it began, and forget them."""
        patients = [line.split()[0] for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return patients


def _content(study: CohortStudy) -> bytes:
    paths = sorted(study.path.iterdir()) if study.path.is_dir() else [study.path]
    return b"".join(path.read_bytes() for path in paths)


def _wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def _studies(folder: Path, contents: list[bytes]) -> list[CohortStudy]:
    """Write NIfTI files that hold anything but images."""
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"ct{number}.nii.gz").write_bytes(content)
    return _studies_in(folder)


def _studies_in(folder: Path) -> list[CohortStudy]:
    return [CohortStudy(f"p{number}", path, number % 2) for number, path in enumerate(sorted(folder.iterdir()))]


@pytest.fixture
def studies(tmp_path: Path) -> list[CohortStudy]:
    """A file, a folder of two files, and a file with masks."""
    first, second, third = _studies(tmp_path / "studies", [b"one", b"two", b"three"])
    folder = tmp_path / "studies" / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"two, ")
    (folder / "2.dcm").write_bytes(b"two")
    masks = [tmp_path / f"{kind}.nii.gz" for kind in ("lungs", "lesions")]
    for mask in masks:
        mask.write_bytes(b"mask")
    return [first, replace(second, path=folder), replace(third, lungs=masks[0], lesions=masks[1])]


@pytest.fixture
def copying(tmp_path: Path) -> Copying:
    return Copying(tmp_path / "log")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _times(paths: list[Path]) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def test_a_prepared_study_holds_what_was_made_and_said(
    studies: list[CohortStudy], copying: Copying, tmp_path: Path
) -> None:
    paths = prepare(studies, replace(copying, says=("patient",)), tmp_path / "cache", workers=1)
    for study, path in zip(studies, paths, strict=True):
        assert load_file(path)[_BYTES].tobytes() == _content(study)
        assert said_of(path)["patient"] == study.patient
    assert copying.begun() == ["p0", "p1", "p2"]


def test_the_second_time_nothing_is_made(studies: list[CohortStudy], copying: Copying, tmp_path: Path) -> None:
    told: list[str] = []
    paths = prepare(studies, copying, tmp_path / "cache", workers=1, tell=told.append)
    assert told[0] == "preparing 3 studies"
    assert told[-1].startswith("prepared 3 of 3")
    times = _times(paths)
    told.clear()
    copying.begun()
    assert prepare(studies, copying, tmp_path / "cache", workers=1, tell=told.append) == paths
    assert (copying.begun(), told, _times(paths)) == ([], [], times)


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def _rewrite(path: Path, content: bytes) -> None:
    """Write a file whose time stays as it was, as some copies do."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(0, before))


@pytest.mark.parametrize(
    ("number", "change"),
    [
        pytest.param(0, lambda s: _rewrite(s.path, b"longer"), id="a file of another size"),
        pytest.param(0, lambda s: _touch(s.path), id="a file of another time"),
        pytest.param(1, lambda s: _rewrite(s.path / "1.dcm", b"longer"), id="an image of another size"),
        pytest.param(1, lambda s: _touch(s.path / "2.dcm"), id="an image of another time"),
        pytest.param(1, lambda s: (s.path / "3.dcm").write_bytes(b""), id="one image more"),
        pytest.param(1, lambda s: (s.path / "2.dcm").unlink(), id="one image less"),
        pytest.param(1, lambda s: (s.path / "2.dcm").rename(s.path / "3.dcm"), id="an image of another name"),
        pytest.param(2, lambda s: _touch(s.lungs), id="another mask of the lungs"),
        pytest.param(2, lambda s: _rewrite(s.lesions, b"other mask"), id="another mask of the lesions"),
        pytest.param(2, lambda s: s.lesions.unlink(), id="a mask removed"),
    ],
)
def test_only_what_changed_is_made_again(
    number: int, change: Callable[[CohortStudy], object], studies: list[CohortStudy], copying: Copying, tmp_path: Path
) -> None:
    paths = prepare(studies, copying, tmp_path / "cache", workers=1)
    times = _times(paths)
    copying.begun()
    change(studies[number])
    told: list[str] = []
    assert prepare(studies, copying, tmp_path / "cache", workers=1, tell=told.append) == paths
    assert copying.begun() == [f"p{number}"]
    assert told[0] == "preparing 1 studies; 2 are in the cache"
    assert load_file(paths[number])[_BYTES].tobytes() == _content(studies[number])
    others = [k for k in range(3) if k != number]
    assert [_times(paths)[k] for k in others] == [times[k] for k in others]
    prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == []


def test_a_mask_taken_out_of_the_table_is_a_change(
    studies: list[CohortStudy], copying: Copying, tmp_path: Path
) -> None:
    prepare(studies, copying, tmp_path / "cache", workers=1)
    copying.begun()
    prepare([*studies[:2], replace(studies[2], lesions=None)], copying, tmp_path / "cache", workers=1)
    assert copying.begun() == ["p2"]


def test_other_settings_have_their_own_files(studies: list[CohortStudy], copying: Copying, tmp_path: Path) -> None:
    paths = prepare(studies, copying, tmp_path / "cache", workers=1)
    copying.begun()
    others = prepare(studies, replace(copying, added=1), tmp_path / "cache", workers=1)
    assert copying.begun() == ["p0", "p1", "p2"]
    assert not set(paths) & set(others)
    assert load_file(others[0])[_BYTES].tobytes() == bytes(value + 1 for value in b"one")
    assert prepare(studies, copying, tmp_path / "cache", workers=1) == paths
    assert copying.begun() == []


def test_several_processes_make_the_same_in_the_order_of_the_studies(copying: Copying, tmp_path: Path) -> None:
    """The first study is ready last: it waits for one that comes later."""
    last = tmp_path / "parallel"
    contents = [f"wait for {last}".encode(), b"b", b"c" * 1000, b"", b"e"]
    studies = _studies(tmp_path / "studies", contents)
    last.touch()
    alone = prepare(studies, copying, tmp_path / "alone", workers=1)
    copying.begun()
    last.unlink()

    def tell(line: str) -> None:
        if "of 5" in line:
            last.touch()

    with _no_quiet():
        paths = prepare(studies, copying, tmp_path / "several", workers=2, tell=tell)
    assert sorted(copying.begun()) == ["p0", "p1", "p2", "p3", "p4"]
    assert [path.name for path in paths] == [path.name for path in alone]
    assert [load_file(path)[_BYTES].tobytes() for path in paths] == contents
    assert _files(tmp_path / "several") == _files(tmp_path / "alone")


def test_the_same_is_the_same_file_whatever_is_said(copying: Copying, tmp_path: Path) -> None:
    studies = _studies(tmp_path / "studies", [b"a", b"b", b"c", b"d"])
    saying = replace(copying, says=("attributes", "involvement", "spacing"))
    for name in ("once", "again"):
        prepare(studies, saying, tmp_path / name, workers=1)
    assert _files(tmp_path / "once") == _files(tmp_path / "again")


@contextmanager
def _no_quiet() -> Iterator[None]:
    """Have every study told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_QUIET", -1.0)
        yield


def test_studies_of_one_name_in_different_places_are_different(copying: Copying, tmp_path: Path) -> None:
    studies = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ct.nii.gz").write_bytes(place.encode())
        studies.append(CohortStudy("p", tmp_path / place / "ct.nii.gz", 0))
    paths = prepare(studies, copying, tmp_path / "cache", workers=1)
    assert [load_file(path)[_BYTES].tobytes() for path in paths] == [b"a", b"b"]
    assert all(path.name.startswith("ct-") for path in paths)
    copying.begun()
    prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == []


def test_names_of_images_need_not_be_text(copying: Copying, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / os.fsdecode(b"Th\xf4rax.dcm")).write_bytes(b"a")
    assert len(prepare([CohortStudy("p", folder, 0)], copying, tmp_path / "cache", workers=1)) == 1


def test_names_of_studies_may_be_as_long_as_the_system_allows(copying: Copying, tmp_path: Path) -> None:
    study = CohortStudy("p", tmp_path / ("s" * 248 + ".nii.gz"), 0)
    study.path.write_bytes(b"a")
    assert len(prepare([study], copying, tmp_path / "cache", workers=1)) == 1


def test_what_cannot_be_used_is_named_after_the_others_are_prepared(copying: Copying, tmp_path: Path) -> None:
    studies = _studies(tmp_path / "studies", [b"a", b"wrong", b"c", b"d"])
    told: list[str] = []
    with pytest.raises(UsageError) as error:
        prepare(studies, copying, tmp_path / "cache", workers=1, tell=told.append)
    line = str(error.value)
    assert line.startswith("1 of 4 studies cannot be used")
    assert "study ct1.nii.gz: it is wrong" in line
    assert "\n" not in line
    assert "study ct1.nii.gz: it is wrong" in told
    assert copying.begun() == ["p0", "p1", "p2", "p3"]
    with pytest.raises(UsageError, match=r"1 of 1 studies cannot be used"):
        prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == ["p1"]
    studies[1].path.write_bytes(b"right")
    assert len(prepare(studies, copying, tmp_path / "cache", workers=1)) == 4
    assert copying.begun() == ["p1"]
    assert [name for name in _files(tmp_path / "cache") if not name.endswith(".safetensors")] == []


def test_of_many_that_cannot_be_used_some_are_named(copying: Copying, tmp_path: Path) -> None:
    studies = _studies(tmp_path / "studies", [b"wrong"] * 7)
    with pytest.raises(UsageError) as error:
        prepare(studies, copying, tmp_path / "cache", workers=1)
    line = str(error.value)
    assert line.startswith("7 of 7 studies cannot be used")
    assert re.findall(r"ct\d", line) == ["ct0", "ct1", "ct2", "ct3", "ct4"]
    assert line.endswith("and 2 more")


def _of_others(path: Path) -> None:
    said = {**said_of(path), "made_from": "{}"}
    save_file(load_file(path), path, said)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:20]), id="cut in its header"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"something else, and long enough for a header"), id="foreign"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 100), id="a header beyond all sizes"),
        pytest.param(lambda path: save_file(load_file(path), path), id="says nothing"),
        pytest.param(lambda path: save_file(load_file(path), path, {"a": "b"}), id="says something else"),
        pytest.param(_of_others, id="made from something else"),
        pytest.param(lambda path: path.unlink(), id="gone"),
    ],
)
def test_a_spoilt_file_is_made_again(
    spoil: Callable[[Path], object], studies: list[CohortStudy], copying: Copying, tmp_path: Path
) -> None:
    paths = prepare(studies, copying, tmp_path / "cache", workers=1)
    whole = _files(tmp_path / "cache")
    copying.begun()
    spoil(paths[1])
    assert prepare(studies, copying, tmp_path / "cache", workers=1) == paths
    assert copying.begun() == ["p1"]
    assert _files(tmp_path / "cache") == whole


@contextmanager
def _files_no_larger_than(limit: int) -> Iterator[None]:
    """Have larger files fail to be written, here and in processes started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_written_leaves_no_part_and_the_next_run_goes_on(
    workers: int, copying: Copying, tmp_path: Path
) -> None:
    studies = _studies(tmp_path / "studies", [b"a", b"b", b"c" * 100_000, b"d", b"e"])
    with _files_no_larger_than(50_000), pytest.raises(RunFailed) as error:
        prepare(studies, copying, tmp_path / "cache", workers=workers)
    there = _files(tmp_path / "cache")
    said = re.fullmatch(
        r"cannot write to the cache: File too large; (\d) of 5 studies are prepared: .*", str(error.value)
    )
    assert said
    assert int(said[1]) <= len(there)
    assert {"ct0", "ct1"} <= {Path(name).name.split("-")[0] for name in there} <= {"ct0", "ct1", "ct3", "ct4"}
    assert all(name.endswith(".safetensors") for name in there)
    if workers == 1:
        assert int(said[1]) == len(there) == 2
    copying.begun()
    prepare(studies, copying, tmp_path / "cache", workers=1)
    assert len(copying.begun()) == 5 - len(there)
    assert there.items() <= _files(tmp_path / "cache").items()


def test_a_process_that_dies_is_told_and_the_next_run_goes_on(copying: Copying, tmp_path: Path) -> None:
    studies = _studies(tmp_path / "studies", [b"a", b"die", b"c"])
    with pytest.raises(RunFailed, match=r"a process died, as happens where memory runs out: .*--prepare-workers"):
        prepare(studies, copying, tmp_path / "cache", workers=2)
    there = _files(tmp_path / "cache")
    studies[1].path.write_bytes(b"live")
    copying.begun()
    prepare(studies, copying, tmp_path / "cache", workers=1)
    assert len(copying.begun()) == 3 - len(there)


_PREPARE = """
import argparse, resource, signal, sys
from pathlib import Path
from app.cli import _execute
from app.cohort.cache import prepare
from app.cohort.table import CohortStudy
from tests.app.cohort.test_cache import Copying

def work(arguments):
    log, cache, workers, largest = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    studies = [CohortStudy(f"p{k}", Path(path), k % 2) for k, path in enumerate(sys.argv[5:])]
    prepare(studies, Copying(log), cache, workers=workers)

if __name__ == "__main__":
    sys.exit(_execute(argparse.Namespace(command=work)))
"""


def _command(copying: Copying, cache: Path, studies: list[CohortStudy], workers: int, largest: int = 0) -> list[str]:
    """Give a process that prepares studies as a command does, and dies where it would write a larger file."""
    numbers = [str(workers), str(largest)]
    paths = [str(study.path) for study in studies]
    return [sys.executable, "-c", _PREPARE, str(copying.log), str(cache), *numbers, *paths]


def _gone(pid: int) -> bool:
    """Whether a process has ended; what waits to be collected has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_after_a_kill_no_process_stays_and_only_the_rest_is_made(copying: Copying, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"wait for {go}".encode()
    studies = _studies(tmp_path / "studies", [b"a", b"b", wait, wait, b"e", b"f"])
    with subprocess.Popen(
        _command(copying, tmp_path / "cache", studies, 2), cwd=_ROOT, stderr=subprocess.DEVNULL
    ) as process:
        _wait_until(lambda: copying.log.exists() and {"p2", "p3"} <= set(copying.log.read_text("utf-8").split()))
        process.kill()
    workers = {int(line.split()[1]) for line in copying.log.read_text("utf-8").splitlines()}
    assert len(workers) == 2
    assert process.pid not in workers
    _wait_until(lambda: all(map(_gone, workers)))
    there = _files(tmp_path / "cache")
    assert sorted(Path(name).name[:3] for name in there) == ["ct0", "ct1"]
    go.touch()
    copying.begun()
    prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == ["p2", "p3", "p4", "p5"]
    prepare(studies, copying, tmp_path / "undisturbed", workers=1)
    assert _files(tmp_path / "cache") == _files(tmp_path / "undisturbed")
    assert there.items() <= _files(tmp_path / "cache").items()


def test_an_interrupt_from_the_terminal_is_one_line(copying: Copying, tmp_path: Path) -> None:
    """It goes to all processes: one works on the second study, the other has nothing to do any more."""
    studies = _studies(tmp_path / "studies", [b"a", f"wait for {tmp_path / 'never'}".encode()])
    command = _command(copying, tmp_path / "cache", studies, 2)
    with subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        _wait_until(lambda: copying.log.exists() and {"p0", "p1"} <= set(copying.log.read_text("utf-8").split()))
        _wait_until(lambda: any(name.endswith(".safetensors") for name in _files(tmp_path / "cache")))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies, and a cache of a process that the system killed where it would write on in the second file."""
    folder = tmp_path_factory.mktemp("killed")
    studies = _studies(folder / "studies", [b"a", b"b" * 100_000, b"c"])
    command = _command(Copying(folder / "log"), folder / "cache", studies, 1, 50_000)
    assert subprocess.run(command, cwd=_ROOT, check=False).returncode == -signal.SIGXFSZ
    assert any(len(content) == 50_000 for content in _files(folder / "cache").values()), "not in the middle"
    return folder


def test_after_a_kill_in_the_middle_of_a_file_it_is_made_again(killed: Path, copying: Copying, tmp_path: Path) -> None:
    studies = _studies_in(killed / "studies")
    shutil.copytree(killed / "cache", tmp_path / "cache")
    paths = prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == ["p1", "p2"]
    others = prepare(studies, copying, tmp_path / "undisturbed", workers=1)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in others]


def test_the_next_run_removes_what_a_killed_one_left(killed: Path, copying: Copying, tmp_path: Path) -> None:
    shutil.copytree(killed / "cache", tmp_path / "cache")
    prepare(_studies_in(killed / "studies"), copying, tmp_path / "cache", workers=1)
    assert len(_files(tmp_path / "cache")) == 3


def test_a_cache_that_cannot_be_made_is_refused(studies: list[CohortStudy], copying: Copying, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot make the cache .*file/copies-[0-9a-f]{8}: Not a directory"):
        prepare(studies, copying, tmp_path / "file", workers=1)
    assert copying.begun() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written_is_refused(
    studies: list[CohortStudy], copying: Copying, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir(0o500)
    with pytest.raises(UsageError, match=r"cannot make the cache .*: Permission denied"):
        prepare(studies, copying, tmp_path / "cache", workers=1)
    assert copying.begun() == []


def _may_mount() -> list[str]:
    """Give the beginning of a command that may mount, for itself alone."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    command = ["unshare", "--map-root-user", "--mount"]
    probe = subprocess.run(
        [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"no file system may be mounted here: {probe.stderr.strip()}")
    return command


def _cohort(folder: Path) -> None:
    """Write six CTs of a tenth of a million voxels, all with lungs, four to train with and two for validation."""
    studies = []
    for number in range(6):
        hu = np.full((24, 64, 64), 40, np.int16)
        hu[4:-4, 16:-16, 8:28] = hu[4:-4, 16:-16, 36:56] = -850
        lungs = (hu < -400).astype(np.uint8)
        paths = [folder / f"{number}.nii", folder / f"{number}_lungs.nii.gz"]
        for values, path in zip((hu, lungs), paths, strict=True):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing((2.0, 2.0, 3.0))
            sitk.WriteImage(image, str(path))
        split = "train" if number < 4 else "validation"
        studies.append(CohortStudy(f"p{number}", paths[0], number % 2, split=split, lungs=paths[1]))
    write_table(folder, studies)


_ON_CHANGING_DISKS = """
import json, subprocess, sys
from pathlib import Path
from app.cli import main

cache, *arguments = sys.argv[1:]
for options in ("ro", "remount,rw,size=1000k", "remount,size=20m"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", cache], check=True)
    status = main(arguments)
    files = {path.name: path.stat().st_mtime_ns for path in Path(cache).rglob("*") if path.is_file()}
    print(json.dumps([status, files]))
    print("end", file=sys.stderr)
"""


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """The command, first where nothing may be written, then with room for a part, then with enough."""
    folder, disk = tmp_path / "cohort", tmp_path / "cache"
    folder.mkdir()
    disk.mkdir()
    _cohort(folder)
    train = ["train", "lungs", str(folder), "--cache", str(disk), "-o", str(tmp_path / "models"), "--prepare-only"]
    command = [*_may_mount(), sys.executable, "-c", _ON_CHANGING_DISKS, str(disk), *train, "--prepare-workers", "1"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    (refused, nothing), (failed, there), (went_on, whole) = map(json.loads, done.stdout.splitlines())
    read_only, full, rest, _ = done.stderr.split("end\n")
    assert (refused, failed, went_on) == (64, 70, 0)
    assert nothing == {}
    last = read_only.splitlines()[-1]
    assert last.startswith(f"error: cannot make the cache {disk}")
    assert last.endswith("Read-only file system")
    assert 0 < len(there) < 6
    assert all(name.endswith(".safetensors") for name in there)
    error = f"error: cannot write to the cache: No space left on device; {len(there)} of 6 studies are prepared"
    assert full.splitlines()[-1].startswith(error)
    assert full.lower().count("error") == 1
    assert len(whole) == 6
    assert there.items() <= whole.items(), "made again"
    assert f"preparing {6 - len(there)} studies; {len(there)} are in the cache\n" in rest
    assert "error" not in rest
    assert not (tmp_path / "models").exists()
