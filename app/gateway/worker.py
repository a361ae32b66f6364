"""The process that runs the application on study after study, everything loaded, and what watches over it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from app.settings import Settings
from operators.selection_rules import SelectionRules

_LAST_WORDS = 5.0
"""Seconds that a process whose channel has closed has to end by itself, which says why."""


@dataclass(frozen=True, slots=True)
class How:
    """How studies are run: what is the same for all.

    Parameters
    ----------
    models : Path
        Folder of the models.
    settings : Settings
    rules : SelectionRules
        Which series to read.
    cache : Path, optional
        Folder for converted networks.
    """

    models: Path
    settings: Settings
    rules: SelectionRules
    cache: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run of a study ended.

    Parameters
    ----------
    kind : {"done", "refused", "failed"}
    message : str
        One line without patient data.
    """

    kind: str
    message: str


class Worker:
    """A worker process, started when there is work, and anew when it has died.

    Parameters
    ----------
    how : How
    limit : float
        Seconds that a study may take.
    serve : callable
        What the process does; another one in tests.
    """

    def __init__(self, how: How, limit: float, serve: Callable[[Connection, How, int], None] | None = None) -> None:
        self._how = how
        self._limit = limit
        self._serve = serve or work
        self._context = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None
        self._channel: Connection | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self, source: Path, target: Path, tell: Callable[[str], None]) -> Outcome:
        """Run the study in folder ``source``, results to ``target``; ``tell`` is told its progress."""
        deadline = time.monotonic() + self._limit
        try:
            channel = self._ready()
            channel.send((source, target))
            while channel.poll(max(deadline - time.monotonic(), 0.0)):
                said = channel.recv()
                if isinstance(said, Outcome):
                    return said
                tell(said)
        except (EOFError, OSError):
            return Outcome("failed", f"the worker died: {self._end(_LAST_WORDS)}")
        self._end(0.0)
        return Outcome("failed", f"the run took longer than {self._limit:g} s")

    def close(self) -> None:
        """End the process, from any thread: a run in progress ends as failed, and no other begins."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _ready(self) -> Connection:
        """Return the channel to the process, which is started where there is none."""
        with self._lock:
            if self._closed:
                raise EOFError
            if self._process is None or self._channel is None or not self._process.is_alive():
                self._channel, theirs = self._context.Pipe()
                process = self._context.Process(target=self._serve, args=(theirs, self._how, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                self._process = process
            return self._channel

    def _end(self, patience: float) -> str:
        """Kill the process, if there is one, after so many seconds; say how it ended."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return "it had not begun"
        process.join(patience)
        process.kill()
        process.join()
        code = process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def work(channel: Connection, how: How, parent: int) -> None:
    """Run the studies whose folders come through the channel, until it is closed."""
    from app.console import quieten_unless_debugging
    from app.supervision import die_with

    die_with(parent)
    quieten_unless_debugging()
    while True:
        try:
            source, target = channel.recv()
        except EOFError:
            return
        channel.send(_run(source, target, how, channel.send))


def _run(source: Path, target: Path, how: How, tell: Callable[[str], None]) -> Outcome:
    from app.outcome import RunFailed, UsageError
    from app.study import Request, run_folder
    from operators.refusal import InputRefused

    try:
        (result,) = run_folder(Request(source, target, how.models, how.settings, how.rules, how.cache), tell)
    except InputRefused as refusal:
        return Outcome("refused", f"{refusal.code}: {refusal.message}")
    except (RunFailed, UsageError) as error:
        return Outcome("failed", str(error))
    except Exception as error:  # its text may quote headers
        return Outcome("failed", f"the run failed: {type(error).__name__}")
    return Outcome("done", result.message)
