"""Arguments that several commands share, and their types."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from models.record import SHIPPED


def add_assignments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--set NAME=VALUE``, which may be repeated; ``what`` is its help."""
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="assignments", help=what)


def add_upside_down(parser: argparse.ArgumentParser, option: str) -> None:
    """Declare ``--upside-down STUDY ...``: which annotated studies of ``option`` lie with the spine on top."""
    parser.add_argument(
        "--upside-down",
        type=count(0, 2**31),
        nargs="+",
        metavar="STUDY",
        help=f"with {option}: numbers of studies whose slices lie with the spine on top: look at them",
    )


def count(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a type for whole numbers in a range, for ``argparse``."""

    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return number


def models_folder() -> Path:
    """Return the models folder where no argument names one: that of the environment, else that of this installation."""
    return Path(os.environ.get("HOLOSCAN_MODEL_PATH") or SHIPPED)
