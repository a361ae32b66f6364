"""The process that loads cases, and sees what each of them leaves behind."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from operators.refusal import InputRefused
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutations import Case, make_case

Loader = Callable[[Path, int], object]
FAILURES = ("crash", "hang", "escape", "memory", "unexpected")
_PROJECT = Path(__file__).resolve().parents[2]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    (
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("os.chown", "os.utime", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
        *("socket.connect", "socket.bind", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp"),
    )
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a worker needs to know.

    Parameters
    ----------
    loader : str
        ``module:function``; the function takes a folder and the number of the case.
    folder : Path
        Holds everything that the worker writes.
    memory : int
        Bytes beyond what it has after its imports that a worker may allocate; half as much counts as too much.
    """

    loader: str
    folder: Path
    memory: int

    @property
    def log(self) -> Path:
        """Where the worker writes what its libraries print, and where it was when it crashed."""
        return self.folder / "log"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: ``accepted``, ``refused``, ``skipped`` or one of :data:`FAILURES`, and the details."""

    seed: int
    kind: str
    detail: str = ""
    name: str = ""


def work(channel: Connection, options: Options, corpus: Corpus) -> None:
    """Load the cases whose seeds come through the channel, until it is closed."""
    arena = _enter(options)
    loader = _import(options.loader)
    witness = Witness()
    _limit(options.memory)
    channel.send(None)
    while True:
        try:
            seed = channel.recv()
        except EOFError:
            return
        case = make_case(corpus, seed)
        channel.send(_run(case, loader, arena, witness, options))


def _enter(options: Options) -> Path:
    """Go where nothing else is, and make all that a library may take for its folder lie there."""
    options.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable(log)
    arena = options.folder / "arena"
    for name in ("home", "tmp", "work"):
        (arena / name).mkdir(parents=True)
    os.environ.update(HOME=str(arena / "home"), TMPDIR=str(arena / "tmp"), XDG_CACHE_HOME=str(arena / "home"))
    tempfile.tempdir = None
    os.chdir(arena / "work")
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    logging.disable()
    return arena


def _import(loader: str) -> Loader:
    module, name = loader.split(":")
    return getattr(importlib.import_module(module), name)


def _limit(memory: int) -> None:
    most = _status("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status(key: str) -> int:
    """Return a figure of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


class Witness:
    """Notes what Python code does to files, processes and connections while it is on guard."""

    def __init__(self) -> None:
        self.guarding = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.guarding:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                self.seen.append(f"open {path!r} {mode}")
        elif event in _CHANGES:
            self.seen.append(f"{event} {arguments!r}"[:200])


def _run(case: Case, loader: Loader, arena: Path, witness: Witness, options: Options) -> Outcome:
    if not case.folder:
        return Outcome(case.seed, "skipped")
    folder = arena / "case" / "in"
    case.write(folder)
    before = _tree(arena)
    try:
        kind, detail = _watched(folder, case.seed, loader, witness, options)
        changes = _differences(before, _tree(arena))
    finally:
        _clear(arena)
    if changes or witness.seen:
        kind, detail = "escape", "; ".join([*witness.seen, *changes][:5])
    return Outcome(case.seed, kind, detail, case.name)


def _watched(folder: Path, seed: int, loader: Loader, witness: Witness, options: Options) -> tuple[str, str]:
    """Load a folder; return kind of the outcome and its details."""
    resident, peak = _forget_peak(), _status("VmPeak")
    witness.seen.clear()
    witness.guarding = True
    try:
        kind, detail = _loaded(folder, seed, loader)
    finally:
        witness.guarding = False
    if kind == "unexpected":
        return kind, detail
    touched, asked = _status("VmHWM") - resident, _status("VmPeak") - peak
    if max(touched, asked) > options.memory // 2:
        return "memory", f"touched {touched >> 20} MiB, asked for {asked >> 20} MiB; {detail}"
    return kind, detail


def _loaded(folder: Path, seed: int, loader: Loader) -> tuple[str, str]:
    try:
        loader(folder, seed)
    except InputRefused as refusal:
        if _out_of_memory(refusal):
            return "memory", _where(refusal)
        return "refused", str(refusal.code)
    except MemoryError as error:
        return "memory", _where(error)
    except BaseException as error:  # even SystemExit must not come out of a loader
        return "unexpected", _where(error)
    return "accepted", ""


def _out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an exception was raised because another said that there is no memory left."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PROJECT / "operators")][-1:]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours, *frames[-1:])]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {', '.join(places)}"


def _forget_peak() -> int:
    """Make the kernel measure the greatest memory of this process anew; return what it holds now."""
    gc.collect(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _tree(arena: Path) -> dict[str, object]:
    """Return every path below, with what it holds."""
    found: dict[str, object] = {}
    waiting = [arena]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_symlink():
                found[entry.path] = Path(entry.path).readlink()
            elif entry.is_dir():
                found[entry.path] = None
                waiting.append(Path(entry.path))
            else:
                found[entry.path] = Path(entry.path).read_bytes() if entry.is_file() else "no file"
    return found


def _differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    paths = sorted(before.keys() | after.keys())
    return [f"changed {path!r}" for path in paths if before.get(path, "") != after.get(path, "")]


def _clear(arena: Path) -> None:
    """Empty the folders."""
    for folder in arena.iterdir():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
