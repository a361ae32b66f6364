"""Results appear all at once: built in a hidden staging folder, then moved into place.

Renaming is atomic only for one folder at a time, so a publication is two steps that can be undone:

1. *retire*: earlier results move into ``retiring/``, ``result.json`` first; that is then renamed to ``retired/``;
2. *reveal*: the new results move into place, ``result.json`` last.

So results are complete whenever ``result.json`` is there. Whatever interrupts it, the staging folder itself tells how
far it came, and :func:`_undo` restores the earlier state: at once if the process still lives, else when the next run
finds the folder. Runs into one output folder publish and undo one after the other: the results of the last one stay.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from app.outcome import UsageError
from operators.software import NAME

RESULT = "result.json"
METADATA = "metadata.json"
RESULT_FOLDERS = ("sr", "seg", "sc", "pm", "pdf")
"""Of these, ``pdf`` is there only where it was asked for."""
_FLAT = re.compile(f"({'|'.join(RESULT_FOLDERS)})-.+\\.dcm")
_PREFIX = ".covid-ct-staging-"


class Staging:
    """The hidden folder of one run inside the output folder, on the same file system.

    Use as a context manager. Unless :meth:`publish` or :meth:`drop_earlier` was reached, leaving it restores the output
    folder to what it was, and removes the output folder itself if this run made it.

    Parameters
    ----------
    output : Path
        The output folder; made where absent.

    Raises
    ------
    UsageError
        If the output folder cannot be written, or holds files named as results that this software did not write.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._made = _make_folder(output)
        try:
            _sweep(output)
            with _alone(output):
                _check_owned(output)
                self._root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=output))
                self._lock = _lock(self._root)
        except OSError as error:
            self._drop_output()
            line = f"cannot write to the output folder {output} as uid {os.getuid()}: {error.strerror}"
            raise UsageError(line) from error
        except UsageError:
            self._drop_output()
            raise
        self.folder = self._root / "new"
        """Where the results are to be built."""
        self.folder.mkdir()
        self.scratch = self._root / "scratch"
        """For temporary files; never published."""
        self.scratch.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _alone(self._output):
            _undo(self._root, self._output)
            _remove_busy(self._root)
        if self._lock is not None:
            os.close(self._lock)
        self._drop_output()

    def discard(self) -> None:
        """Forget what was built so far."""
        _remove_busy(self.folder)
        self.folder.mkdir()

    def publish(self) -> None:
        """Put the built results in the place of all earlier ones; ``result.json`` must be among them.

        Raises
        ------
        UsageError
            If a file of another stands where a result is to go; nothing is changed.
        """
        if not (self.folder / RESULT).is_file():
            raise ValueError(f"{RESULT} completes the results and was not built")
        _flush(self.folder)
        with self._changing():
            earlier, built = _results(self._output, self._output / RESULT), _ordered(self.folder)
            for name in built:
                if name not in earlier and os.path.lexists(self._output / name):
                    raise UsageError(
                        f"the output folder {self._output} holds another file named {name}; give an empty folder"
                    )
            self._retire(earlier, "retired")
            for name in built:
                (self.folder / name).rename(self._output / name)
            _sync(self._output)

    def drop_earlier(self) -> None:
        """Remove all earlier results for good, before any are built: they would not be true of what comes meanwhile."""
        with self._changing():
            self._retire(_results(self._output, self._output / RESULT), "dropped")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the output folder while no other run does; what fails is undone before another can build on it."""
        with _alone(self._output):
            for root in self._output.glob(f"{_PREFIX}*"):
                _clear(root)
            try:
                yield
            except BaseException:
                _undo(self._root, self._output)
                raise

    def _retire(self, names: Sequence[str], becomes: str) -> None:
        retiring = self._root / "retiring"
        retiring.mkdir()
        for name in reversed(names):
            (self._output / name).rename(retiring / name)
        retiring.rename(self._root / becomes)

    def _drop_output(self) -> None:
        _remove_empty(self._made)


def objects_in(folder: Path) -> list[Path]:
    """Paths of the objects that were built in ``folder``, in their folders or flat."""
    nested = [path for name in RESULT_FOLDERS for path in (folder / name).rglob("*")]
    flat = [path for path in folder.iterdir() if _FLAT.fullmatch(path.name)]
    return sorted(path for path in nested + flat if path.is_file())


def _results(folder: Path, result: Path) -> list[str]:
    """Names in ``folder`` that belong to results, of those not in a folder only such as ``result`` lists."""
    try:
        listed = {file["path"] for file in json.loads(result.read_text("utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    known = {*RESULT_FOLDERS, METADATA, RESULT}
    return [name for name in _ordered(folder) if name in known or (name in listed and _FLAT.fullmatch(name))]


def _ordered(folder: Path) -> list[str]:
    """All names in ``folder``, ``result.json`` last; none where there is no such folder."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(names, key=lambda name: (name == RESULT, name))


def flatten(folder: Path) -> None:
    """Take the objects out of their folders: ``sr/report.dcm`` becomes ``sr-report.dcm``."""
    for name in RESULT_FOLDERS:
        for path in sorted((folder / name).glob("*")):
            path.rename(folder / f"{name}-{path.name}")
        _remove_empty([folder / name])


def tidier(output: Path) -> Callable[[], None]:
    """Return what removes all that a run leaves in ``output`` that begins after this call and dies."""
    absent = _absent(output)

    def tidy() -> None:
        with suppress(OSError):
            _sweep(output)
        _remove_empty(absent)

    return tidy


def _absent(folder: Path) -> list[Path]:
    """Return those of ``folder`` and its parents that are absent, innermost first."""
    return [path for path in (folder, *folder.parents) if not _there(path)]


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a folder that may not be searched
        return True


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: it holds the results
            folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Make ``folder``; return those of it and its parents that were absent, innermost first."""
    try:
        absent = _absent(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"the output folder {folder} is a file; give a folder") from None
    except OSError as error:
        raise UsageError(f"cannot make the output folder {folder}: {error.strerror}") from error
    return absent


def _check_owned(output: Path) -> None:
    """Never replace what this software did not write."""
    if not _results(output, output / RESULT):
        return
    try:
        content = json.loads((output / RESULT).read_text("utf-8"))
        owned = content["software"]["name"] == NAME
    except (OSError, ValueError, KeyError, TypeError):
        owned = False
    if not owned:
        names = ", ".join((*RESULT_FOLDERS, METADATA, RESULT))
        raise UsageError(f"the output folder {output} holds other files named {names}; give an empty folder")


def _sweep(output: Path) -> None:
    """Undo and remove the staging folders of runs that died, also those of single studies in folders of their own."""
    with _alone(output):  # folders must not come and go while it is searched
        roots = [*output.glob(f"{_PREFIX}*"), *output.glob(f"*/{_PREFIX}*")]
    for root in roots:
        with _alone(root.parent):
            _clear(root)
        if root.parent != output:
            _remove_empty([root.parent])


def _clear(root: Path) -> None:
    """Undo and remove a staging folder, unless its run lives; to be called by who is alone in its output folder."""
    descriptor = _lock(root)
    if descriptor is not None:
        _undo(root, root.parent)
        _remove_busy(root)
        os.close(descriptor)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Be the only one that changes an output folder, where its file system can tell; the others wait."""
    descriptor = _lock(output, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int | None:
    """Mark a folder as in use until the descriptor is closed or the process ends; None if it is or cannot be known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # of another user, or gone meanwhile
        return None
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _undo(root: Path, output: Path) -> None:
    """Restore what an unfinished publication changed; can itself be interrupted and done again."""
    if (root / "retired").exists():
        if not (root / "new" / RESULT).exists():  # finished
            return
        still_here = _ordered(root / "new")
        for name in _results(output, root / "new" / RESULT):
            if name not in still_here:  # else another run has put its own there
                _remove(output / name)
        (root / "retired").rename(root / "retiring")
    for name in _ordered(root / "retiring"):
        (root / "retiring" / name).rename(output / name)


def _flush(folder: Path) -> None:
    """Bring files and folders to the disk: names must not come to last longer than contents."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it
            raise
    finally:
        os.close(descriptor)


def _remove_busy(folder: Path) -> None:
    """Remove a folder in which a thread of a stopped run may still be writing."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def _remove(path: Path) -> None:
    remove: Callable[[Path], object] = shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink
    with suppress(FileNotFoundError):
        remove(path)
