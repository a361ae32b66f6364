"""How a run ends: exit statuses, and the errors that stand for them."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the command line (numbers as in ``sysexits.h``)."""

    OK = 0
    """Results were written."""
    USAGE = 64
    """The command, its environment or a folder it names is wrong."""
    REFUSED = 65
    """The input cannot be processed; ``result.json`` says why."""
    FAILED = 70
    """Our failure: nothing was written."""


class UsageError(Exception):
    """The caller asked for something that cannot be done. The message is one line that says what to do."""


class RunFailed(Exception):
    """The software failed. The message is one line without patient data."""


class Interrupted(BaseException):
    """A signal asked the process to stop.

    Parameters
    ----------
    signal_number : int
        The signal, e.g. ``signal.SIGTERM``.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_status = 128 + signal_number
