"""Publication leaves all results of one run, or the earlier ones untouched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.outcome import UsageError
from app.publish import Staging, flatten, tidier

_OWN = {"software": {"name": "covid-ct-map"}}


class _Crash(BaseException):
    """Stands for anything that stops a process, a signal for instance."""


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def _build(folder: Path, mark: str, names: tuple[str, ...] = ("sr", "seg", "sc", "pm")) -> None:
    for name in names:
        (folder / name).mkdir()
        (folder / name / f"{mark}.dcm").write_text(mark)
    (folder / "result.json").write_text(json.dumps({**_OWN, "mark": mark}))


def _run(output: Path, mark: str, names: tuple[str, ...] = ("sr", "seg", "sc", "pm")) -> None:
    with Staging(output) as staging:
        _build(staging.folder, mark, names)
        staging.publish()


def test_results_appear_and_nothing_else(tmp_path: Path) -> None:
    _run(tmp_path / "deep" / "out", "one")
    assert set(_tree(tmp_path / "deep" / "out")) == {
        "sr/one.dcm",
        "seg/one.dcm",
        "sc/one.dcm",
        "pm/one.dcm",
        "result.json",
    }
    assert len(list((tmp_path / "deep" / "out").iterdir())) == 5


def test_nothing_is_visible_before_publication(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        _build(staging.folder, "one")
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        staging.publish()


def test_earlier_results_are_replaced_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    _run(tmp_path, "one")
    _run(tmp_path, "two", names=("sr",))
    assert set(_tree(tmp_path)) == {"sr/two.dcm", "result.json", "notes.txt"}


def test_leaving_without_publication_restores_everything(tmp_path: Path) -> None:
    _run(tmp_path, "one")
    before = _tree(tmp_path)
    with Staging(tmp_path) as staging:
        _build(staging.folder, "two")
    assert _tree(tmp_path) == before


def test_an_output_folder_made_for_nothing_goes_away(tmp_path: Path) -> None:
    with Staging(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()


def test_an_existing_output_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Staging(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_discard_forgets_what_was_built(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        _build(staging.folder, "one")
        staging.discard()
        (staging.folder / "result.json").write_text("{}")
        staging.publish()
    assert set(_tree(tmp_path)) == {"result.json"}


def test_results_without_their_result_file_are_not_published(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        (staging.folder / "sr").mkdir()
        with pytest.raises(ValueError, match="was not built"):
            staging.publish()
    assert list(tmp_path.iterdir()) == []


def _failing_rename(at: int, fail: Callable[[], None]) -> Callable[[Path, Path], Path]:
    """Return a ``Path.rename`` whose call number ``at`` fails once."""
    rename, calls = Path.rename, iter(range(1000))

    def wrapper(self: Path, target: Path) -> Path:
        if next(calls) == at:
            fail()
        return rename(self, target)

    return wrapper


def _crash() -> None:
    raise _Crash


_KILLED_RUN = """
import os, sys
from pathlib import Path
from app.publish import Staging
rename, calls = Path.rename, iter(range(1000))
Path.rename = lambda self, target: os._exit(9) if next(calls) == int(sys.argv[2]) else rename(self, target)
with Staging(Path(sys.argv[1])) as staging:
    for name in ("sr", "seg", "sc", "pm"):
        (staging.folder / name).mkdir()
        (staging.folder / name / "two.dcm").write_text("two")
    (staging.folder / "result.json").write_text("{}")
    staging.publish()
"""


# A publication over earlier results renames five times, marks them retired, and renames five times: eleven.
@pytest.mark.parametrize("at", range(11))
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_at_any_rename_restores_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, earlier: bool
) -> None:
    if earlier:
        _run(tmp_path, "one")
    before, renames = _tree(tmp_path), 11 if earlier else 6
    monkeypatch.setattr(Path, "rename", _failing_rename(at, _crash))
    if at < renames:
        with pytest.raises(_Crash):
            _run(tmp_path, "two")
        assert _tree(tmp_path) == before
    else:
        _run(tmp_path, "two")
        assert "sr/two.dcm" in _tree(tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("at", range(11))
def test_the_next_run_repairs_what_a_killed_one_left(tmp_path: Path, at: int) -> None:
    _run(tmp_path, "one")
    before = _tree(tmp_path)
    process = subprocess.run([sys.executable, "-c", _KILLED_RUN, str(tmp_path), str(at)], check=False)
    assert process.returncode == 9
    if (tmp_path / "result.json").exists():
        marks = [path.stem for path in tmp_path.glob("*/*.dcm")]
        assert marks in (["one"] * 4, ["two"] * 4), "complete where result.json is there"
    assert list(tmp_path.glob(".covid-ct-staging-*"))
    with Staging(tmp_path):
        pass
    assert _tree(tmp_path) == before


def test_earlier_results_can_be_dropped_before_there_are_new_ones(tmp_path: Path) -> None:
    _run(tmp_path, "one")
    with Staging(tmp_path) as staging:
        staging.drop_earlier()
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        _build(staging.folder, "two")
        staging.publish()
    assert {Path(name).stem for name in _tree(tmp_path)} == {"two", "result"}
    with Staging(tmp_path) as staging:
        staging.drop_earlier()
    assert not _tree(tmp_path), "those are not true any more"


@pytest.mark.parametrize("at", range(6))
def test_a_failure_while_they_are_dropped_restores_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    _run(tmp_path, "one")
    before = _tree(tmp_path)
    monkeypatch.setattr(Path, "rename", _failing_rename(at, _crash))
    with pytest.raises(_Crash), Staging(tmp_path) as staging:
        staging.drop_earlier()
    assert _tree(tmp_path) == before


def test_the_staging_folder_of_a_living_run_is_left_alone(tmp_path: Path) -> None:
    with Staging(tmp_path) as first:
        with Staging(tmp_path):
            pass
        assert first.folder.is_dir()


def _is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_nobody_else_publishes_between_the_look_at_the_output_folder_and_the_end_also_of_undoing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, "one")
    locked, rename = [], Path.rename

    def watched(self: Path, target: Path) -> Path:
        locked.append(_is_locked(tmp_path))
        if len(locked) == 9:
            raise _Crash
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    with pytest.raises(_Crash):
        _run(tmp_path, "two")
    assert len(locked) > 9
    assert all(locked)
    assert not _is_locked(tmp_path)


_MANY_RUNS = """
import json, sys
from pathlib import Path
from app.publish import Staging
for number in range(40):
    with Staging(Path(sys.argv[1])) as staging:
        for name in sys.argv[3:]:
            (staging.folder / name).mkdir()
            (staging.folder / name / f"{sys.argv[2]}-{number}.dcm").write_text("")
        result = {"software": {"name": "covid-ct-map"}, "mark": f"{sys.argv[2]}-{number}"}
        (staging.folder / "result.json").write_text(json.dumps(result))
        staging.publish()
"""


def test_of_runs_at_the_same_time_the_last_one_leaves_its_results_and_none_fails(tmp_path: Path) -> None:
    names = {"one": ("sr", "seg", "sc", "pm", "pdf"), "two": ("sr", "seg")}
    commands = [[sys.executable, "-c", _MANY_RUNS, str(tmp_path), mark, *built] for mark, built in names.items()]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    mark = json.loads((tmp_path / "result.json").read_text())["mark"]
    assert set(_tree(tmp_path)) == {*(f"{name}/{mark}.dcm" for name in names[mark.split("-")[0]]), "result.json"}
    assert not list(tmp_path.glob(".*"))


def test_what_a_run_that_died_has_put_into_place_is_taken_back_before_another_publishes(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        process = subprocess.run([sys.executable, "-c", _KILLED_RUN, str(tmp_path), "3"], check=False)
        assert process.returncode == 9
        _build(staging.folder, "one")
        staging.publish()
    before = _tree(tmp_path)
    with Staging(tmp_path):
        pass
    assert _tree(tmp_path) == before
    assert {path.stem for path in tmp_path.glob("*/*.dcm")} == {"one"}


def test_what_another_run_has_published_meanwhile_stays_where_folders_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        _run(tmp_path, "one")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(OSError, match="not empty"):
        _run(tmp_path, "two")
    assert set(_tree(tmp_path)) == {*(f"{name}/one.dcm" for name in ("sr", "seg", "sc", "pm")), "result.json"}


def _run_flat(output: Path, mark: str) -> None:
    with Staging(output) as staging:
        _build(staging.folder, mark)
        flatten(staging.folder)
        files = [{"path": path.name} for path in staging.folder.glob("*.dcm")]
        (staging.folder / "result.json").write_text(json.dumps({**_OWN, "files": files}))
        staging.publish()


def test_flat_results_replace_those_in_folders_and_are_replaced(tmp_path: Path) -> None:
    mine = {"other.dcm", "sc-of-mine.dcm"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    _run(tmp_path, "one")
    _run_flat(tmp_path, "two")
    assert set(_tree(tmp_path)) == {*(f"{name}-two.dcm" for name in ("sr", "seg", "sc", "pm")), "result.json", *mine}
    _run_flat(tmp_path, "three")
    _run(tmp_path, "four", names=("sr",))
    assert set(_tree(tmp_path)) == {"sr/four.dcm", "result.json", *mine}


@pytest.mark.parametrize("at", range(11))
def test_a_failure_amid_flat_results_restores_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    (tmp_path / "pm-of-mine.dcm").write_text("mine")
    _run_flat(tmp_path, "one")
    before = _tree(tmp_path)
    monkeypatch.setattr(Path, "rename", _failing_rename(4 + at, _crash))  # four make the results flat
    with pytest.raises(_Crash):
        _run_flat(tmp_path, "two")
    assert _tree(tmp_path) == before


def test_a_file_of_another_in_the_place_of_a_flat_result_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "sr-one.dcm").write_text("mine")
    with pytest.raises(UsageError, match=r"another file named sr-one\.dcm"):
        _run_flat(tmp_path, "one")
    assert _tree(tmp_path) == {"sr-one.dcm": "mine"}


def test_what_a_killed_run_left_of_one_of_several_studies_goes_too(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", _KILLED_RUN, str(tmp_path / "1.2.3"), "2"], check=False)
    assert process.returncode == 9
    _run(tmp_path / "1.2.4", "one")
    with Staging(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.2.4"]
    assert "result.json" in _tree(tmp_path / "1.2.4")


def test_what_another_user_left_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".covid-ct-staging-other"
    left.mkdir()
    opened = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path) == left:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    _run(tmp_path, "one")
    assert "sr/one.dcm" in _tree(tmp_path)
    assert left.exists()


def test_below_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    tidy = tidier(tmp_path / "a" / "b")
    tidy()
    assert tmp_path.is_dir()


def test_tidying_removes_what_a_dead_run_left_and_made(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    tidy = tidier(output)
    process = subprocess.run([sys.executable, "-c", _KILLED_RUN, str(output), "2"], check=False)
    assert process.returncode == 9
    assert output.exists()
    tidy()
    assert not (tmp_path / "deep").exists()


def test_tidying_leaves_what_was_there(tmp_path: Path) -> None:
    _run(tmp_path, "one")
    before = _tree(tmp_path)
    tidy = tidier(tmp_path)
    subprocess.run([sys.executable, "-c", _KILLED_RUN, str(tmp_path), "7"], check=False)
    tidy()
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("name", ["sr", "sc/mine.dcm", "metadata.json", "result.json"])
def test_files_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.mkdir() if name == "sr" else mine.write_text("{}")
    with pytest.raises(UsageError, match="empty folder"):
        Staging(tmp_path)
    assert mine.exists()


def test_a_file_as_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        Staging(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot make"):
        Staging(tmp_path / "file" / "out")


def test_an_unwritable_output_folder(tmp_path: Path) -> None:
    folder = Path("/proc/self") if os.geteuid() == 0 else tmp_path  # root writes wherever writing is possible
    folder.chmod(0o555) if folder == tmp_path else None
    with pytest.raises(UsageError, match="cannot write"):
        Staging(folder)
