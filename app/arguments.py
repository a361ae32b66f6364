"""Types of arguments on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def count(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a type for whole numbers in a range, for ``argparse``."""

    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return number
