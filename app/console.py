"""What a person at the command line is told while it works."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from contextlib import suppress


def tell(line: str) -> None:
    """Write a line to standard error, at once."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody listens any more: no reason to stop
            print(line, file=sys.stderr, flush=True)


def _debugging() -> bool:
    return os.environ.get("COVID_CT_DEBUG") == "1"


def trace(error: Exception) -> None:
    """Show the traceback of an error, which may quote headers, where ``COVID_CT_DEBUG`` is 1."""
    if _debugging():
        traceback.print_exception(error)


def quieten_unless_debugging() -> None:
    """Silence the libraries, unless ``COVID_CT_DEBUG`` is 1."""
    if not _debugging():
        quieten()


def quieten() -> None:
    """Silence the libraries of this process: their messages quote header values, and with them the patient."""
    os.environ["HOLOSCAN_LOG_LEVEL"] = "OFF"
    os.environ["PYTHONWARNINGS"] = "ignore"  # of processes that this one starts
    logging.disable(logging.CRITICAL)
    warnings.showwarning = lambda *_, **__: None  # a filter would not do: libraries change the filters
