"""What a person at the command line is told while it works."""

from __future__ import annotations

import sys
from contextlib import suppress


def tell(line: str) -> None:
    """Write a line to standard error, at once."""
    with suppress(OSError):  # nobody listens any more: no reason to stop
        print(line, file=sys.stderr, flush=True)
