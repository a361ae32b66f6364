"""Folders for what libraries insist on writing, where they may write nowhere else.

So it is in a container with a read-only root, or for a user without a home folder: MONAI imports matplotlib and
Holoscan imports CuPy, and neither can be imported without a folder for its cache.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CACHES = ("MPLCONFIGDIR", "CUPY_CACHE_DIR")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - of no fixed name in it


def provide_scratch(folder: Path) -> None:
    """Give the libraries ``folder``, in this process and those that it starts, for what they can write nowhere else."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(folder)
    if not _at_home():
        for name in _CACHES:
            os.environ.setdefault(name, str(folder))


@contextmanager
def temporary_scratch() -> Iterator[None]:
    """Give the libraries a temporary folder where they need one, for a command that has no output folder for it."""
    try:
        place, needed = tempfile.gettempdir(), not _at_home()
    except FileNotFoundError:
        place, needed = str(_SHARED_MEMORY), os.access(_SHARED_MEMORY, os.W_OK)  # else they may say what they lack
    if not needed:
        yield
        return
    kept, added = tempfile.tempdir, [name for name in _CACHES if name not in os.environ]
    with tempfile.TemporaryDirectory(prefix="covid-ct-", dir=place, ignore_cleanup_errors=True) as folder:
        provide_scratch(Path(folder))
        try:
            yield
        finally:
            tempfile.tempdir = kept
            for name in added:
                os.environ.pop(name, None)


def _at_home() -> bool:
    return os.access(os.environ.get("HOME", ""), os.W_OK)
