"""What the files in the spool begin with: the head that the gateway writes, then a data set that may be hostile."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from operators.identity import IMPLEMENTATION_UID

_PREAMBLE = bytes(128) + b"DICM"
_GROUP_LENGTH = struct.Struct("<HH2sHL")
_META = b"\2\0"
"""What a file meta group begins with, also in a file whose data set is in big endian."""
_MOST = 1 << 18
"""Bytes that are looked at: what is wanted comes early, and all that is parsed takes eighty times its size."""


class TooLong(Exception):
    """A header is longer than one can be."""


class MetaContinues(Exception):
    """A data set begins with group 0002, which none may (PS3.5, 7.1): readers would add it to the file meta group."""


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


def file_head(sop_class: str, instance: str, syntax: str) -> bytes:
    """Return what precedes the data set in a file: preamble, prefix and file meta information (PS3.10, 7.1)."""
    uids = ((0x0002, sop_class), (0x0003, instance), (0x0010, syntax), (0x0012, IMPLEMENTATION_UID))
    elements = struct.pack("<HH2sHL2s", 2, 1, b"OB", 0, 2, b"\0\1") + b"".join(_uid(*each) for each in uids)
    return _PREAMBLE + _GROUP_LENGTH.pack(2, 0, b"UL", 4, len(elements)) + elements


def _uid(element: int, uid: str) -> bytes:
    value = uid_value(uid)
    return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value


def uid_value(uid: str) -> bytes:
    """Return a UID as the value of an element: of even length (PS3.5, 9.1)."""
    encoded = uid.encode("ascii")
    return encoded + bytes(len(encoded) % 2)


def stored_as(path: Path) -> tuple[str, str]:
    """Return SOP Class and Transfer Syntax UID of a file in the spool, of whose data set nothing is looked at."""
    with path.open("rb") as file:
        meta = read_dataset(BytesIO(file.read(_meta_length(file))), False, True)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _meta_length(file: BinaryIO) -> int:
    """Return how many bytes are left of the file meta group, behind its length."""
    *_, length = _GROUP_LENGTH.unpack(file.read(len(_PREAMBLE) + _GROUP_LENGTH.size)[len(_PREAMBLE) :])
    return int(length)


def read_head(path: Path, syntax: str, tags: Sequence[int]) -> Dataset:
    """Return some elements of a file in the spool, reading no further than to the first one behind them.

    Parameters
    ----------
    path : Path
        It begins with a :func:`file_head`.
    syntax : str
        Transfer Syntax UID, not a deflated one.
    tags : sequence of int

    Raises
    ------
    TooLong, MetaContinues, Exception
        Any, where the data set is damaged, its header too long, or other readers would understand it otherwise.
    """
    last, encoding = max(tags), UID(syntax)
    with path.open("rb") as file:
        start = file.seek(_meta_length(file), 1)
        if file.read(len(_META)) == _META:
            raise MetaContinues
        file.seek(start)
        return read_dataset(
            _Bounded(file),  # type: ignore[arg-type]
            encoding.is_implicit_VR,
            encoding.is_little_endian,
            stop_when=lambda tag, *_: tag > last,
            specific_tags=list(tags),
        )
