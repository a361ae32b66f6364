"""A run in a process of its own, so that someone is left to tell how it died.

The system ends a process without a word where memory runs out, and so does a fault in a native library. A small parent
process waits for the run, hands it the signals that it receives, and if the run dies says so in one line and removes
what it left behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from app.console import tell
from app.outcome import ExitStatus

_ALWAYS = (signal.SIGTERM, signal.SIGINT)
STOPPING = _ALWAYS if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*_ALWAYS, signal.SIGHUP)
"""Signals that ask a run to end; the end of its terminal not where it is to be ignored, as under nohup."""
_PATIENCE = 6.0
"""Seconds that a run has to end after it was asked to; container engines kill after ten."""
_PR_SET_PDEATHSIG = 1


def supervised(work: Callable[[], int], tidy: Callable[[], None]) -> int:
    """Call ``work`` in a child process and return its exit status.

    Must be called before the process has other threads. The child ends with its work: neither the destructors of
    libraries nor what was registered to be called at exit can change its status.

    Parameters
    ----------
    work : callable
        Returns an exit status.
    tidy : callable
        Called in the parent process where the child died, to remove what it left.

    Returns
    -------
    int
        What ``work`` returned; ``ExitStatus.FAILED`` if the child died, 128 and the number of the signal if it had been
        asked to end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some launchers hand it down, it would never come
    # Blocked signals wait for sigtimedwait, even for the first process of a container, which else would not get them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, signal.SIGCHLD))
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with(parent)
        try:
            status: int = ExitStatus.FAILED
            status = work()
        finally:  # nothing of this process's caller may run twice
            leave(status)
    status, asked = _wait(child)
    if status < 0:
        tidy()
        tell("interrupted" if asked is not None else f"error: {_cause(signal.Signals(-status))}")
        status = ExitStatus.FAILED if asked is None else 128 + asked
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return status


def die_with(parent: int) -> None:
    """Have this process killed when its parent, with this number, ends: nobody would be left to wait for it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitStatus.FAILED)


def leave(status: int) -> NoReturn:
    """End the process at once, whatever threads and libraries still do, and whether or not anybody still listens."""
    try:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # AttributeError: without the stream it is None
                stream.flush()
    finally:
        os._exit(status)


def _wait(child: int) -> tuple[int, int | None]:
    """Wait for the child's end; return its status, negative if a signal ended it, and the signal that it was handed."""
    asked: int | None = None
    deadline = float("inf")
    while True:
        patience = min(max(deadline - time.monotonic(), 0.0), 3600.0)
        received = signal.sigtimedwait((*STOPPING, signal.SIGCHLD), patience)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), asked
        if received is not None and received.si_signo in STOPPING:
            os.kill(child, received.si_signo)
            asked = asked or received.si_signo
            deadline = min(deadline, time.monotonic() + _PATIENCE)
        elif time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")


def _cause(death: signal.Signals) -> str:
    if death == signal.SIGKILL:
        return "the run was killed, as happens where memory runs out; give it more memory, app.yaml says how much"
    return f"the run died of {death.name}"
