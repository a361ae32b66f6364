"""How a run ends: exit statuses, and the errors that stand for them."""

from __future__ import annotations

import traceback
from enum import IntEnum
from pathlib import Path

from operators.refusal import InputRefused

_ROOT = Path(__file__).resolve().parent.parent


class ExitStatus(IntEnum):
    """Exit statuses of the command line (numbers as in ``sysexits.h``)."""

    OK = 0
    """Results were written."""
    USAGE = 64
    """The command, its environment or a folder it names is wrong."""
    REFUSED = 65
    """The input cannot be processed; ``result.json`` says why."""
    FAILED = 70
    """Our failure: nothing was written, or not for each of several studies."""


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


def verdict(error: Exception) -> tuple[ExitStatus, str]:
    """Return the exit status and the one line that explains an error, without patient data."""
    match error:
        case UsageError():
            return ExitStatus.USAGE, f"error: {error}"
        case InputRefused():
            return ExitStatus.REFUSED, f"refused: {error.code}: {error.message}"
        case RunFailed():
            return ExitStatus.FAILED, f"error: {error}"
        case MemoryError():
            return ExitStatus.FAILED, "error: not enough memory"
        case OSError() if error.strerror:
            return ExitStatus.FAILED, f"error: {error.strerror} ({_place(error)})"
    return (
        ExitStatus.FAILED,
        f"error: unexpected {type(error).__name__} at {_place(error)}; COVID_CT_DEBUG=1 tells more",
    )


def _place(error: Exception) -> str:
    """File and line in this software where the error came through last; its text may quote patient data."""
    packages = [_ROOT / name for name in ("app", "operators", "models")]
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [
        f"{path.relative_to(_ROOT)}:{line}" for path, line in frames if any(path.is_relative_to(p) for p in packages)
    ]
    return ours[-1] if ours else "an unknown place"
