"""The beginning of a DICOM file that may be hostile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.filereader import read_partial

_MOST = 1 << 18
"""Bytes that are looked at: what is wanted comes early, and all that is parsed takes eighty times its size."""


class TooLong(Exception):
    """A header is longer than one can be."""


class _Bounded:
    """A file of which so much can be read; what is not wanted is passed over without."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise TooLong
        return data


def read_head(path: Path, tags: Sequence[int]) -> Dataset:
    """Return some elements of a file, reading no further than the last of them.

    Raises
    ------
    Exception
        Any, for what is no DICOM file or has too long a header.
    """
    last = max(tags)
    with path.open("rb") as file:
        return read_partial(_Bounded(file), lambda tag, *_: tag > last, specific_tags=list(tags))  # type: ignore[arg-type]
