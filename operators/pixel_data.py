"""Frames of DICOM objects as they are stored, read one by one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pydicom.dataset import FileDataset
from pydicom.encaps import parse_basic_offsets
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pydicom.uid import ExplicitVRLittleEndian as ExplicitLittleEndian
from pydicom.uid import ImplicitVRLittleEndian as ImplicitLittleEndian

from operators.dicom_folder import UNDEFINED_LENGTH, DicomFile, open_object, read_object, stamp_of

_LONG_FORM = (b"OB", b"OW", b"UN")
"""VRs that pixel data can have, all with a length of 32 bits (PS3.5, 7.1.2)."""
_PIXEL_DATA = {"little": b"\xe0\x7f\x10\x00", "big": b"\x7f\xe0\x00\x10"}
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_END_MARKER = b"\xff\xd9"
"""End of image or codestream; cannot occur inside one (ISO/IEC 10918-1, B.1.1.2; 15444-1, B.10.1)."""


class PixelDataError(Exception):
    """Pixel data are not there, or not what the header says; the message says in words what is wrong with them."""


def transfer_syntax(header: FileDataset) -> UID:
    """Return the transfer syntax; without file meta information, the uncompressed one that was found."""
    stated = header.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    is_implicit, is_little_endian = header.original_encoding
    if is_implicit:
        return ImplicitLittleEndian
    return ExplicitLittleEndian if is_little_endian else ExplicitVRBigEndian


def stored_frames(file: DicomFile, frames: Sequence[int]) -> Iterator[bytes]:
    """Read frames of an object as they are stored: pixels, or a codestream put together from its fragments.

    Only one frame is in memory at a time, but of a deflated object all.

    Parameters
    ----------
    file : DicomFile
        The object.
    frames : sequence of int
        Their indices, from 0.

    Raises
    ------
    PixelDataError
        If the pixel data are missing, cut off, changed since the header was read, or hold more or less than the
        header says.
    """
    with _pixel_data(file) as (stream, length):
        if transfer_syntax(file.header).is_encapsulated:
            if length != UNDEFINED_LENGTH:
                raise PixelDataError("are not encapsulated")
            table = _encapsulated_frames(stream, _count(file))
        else:
            table = _native_frames(stream.tell(), length, file)
        for index in frames:
            yield b"".join(_read(stream, part) for part in table[index])


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame or fragment in the file: where it starts, and how long it is."""

    start: int
    length: int


def _count(file: DicomFile) -> int:
    return int(file.header.get("NumberOfFrames") or 1)


def _read(stream: BinaryIO, part: _Part) -> bytes:
    stream.seek(part.start)
    content = stream.read(part.length)
    if len(content) != part.length:
        raise PixelDataError("are cut off")
    return content


@contextmanager
def _pixel_data(file: DicomFile) -> Iterator[tuple[BinaryIO, int]]:
    """Open the value of Pixel Data; yield the stream, standing at the value, and its length."""
    deflated = transfer_syntax(file.header) == DeflatedExplicitVRLittleEndian
    pixels = (read_object(file.path).get("PixelData") or b"") if deflated else b""
    with open_object(file.path) as stream:
        if stamp_of(os.fstat(stream.fileno())) != file.stamp:
            raise PixelDataError("have changed since the header was read")
        if deflated:
            yield io.BytesIO(pixels), len(pixels)
            return
        stream.seek(file.pixels_at)
        yield stream, _value_length(stream, "little" if file.header.original_encoding[1] is not False else "big")


def _value_length(stream: BinaryIO, order: Literal["little", "big"]) -> int:
    """Read tag, VR if there is one, and length of Pixel Data."""
    head = stream.read(8)
    if head[:4] != _PIXEL_DATA[order]:
        raise PixelDataError("are missing")
    if head[4:6] in _LONG_FORM and head[6:] == b"\0\0":
        return int.from_bytes(stream.read(4), order)
    return int.from_bytes(head[4:], order)


def _native_frames(start: int, length: int, file: DicomFile) -> list[list[_Part]]:
    header, count = file.header, _count(file)
    size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    if length not in (size * count, size * count + size * count % 2):
        raise PixelDataError("have the wrong length")
    return [[_Part(start + index * size, size)] for index in range(count)]


def _encapsulated_frames(stream: BinaryIO, count: int) -> list[list[_Part]]:
    """Return the fragments of each frame (PS3.5, A.4).

    By the basic offset table; without one, a fragment is a frame where there are as many, else a frame ends with the
    fragment that ends a codestream. An extended offset table is not needed: with it, each frame is one fragment
    (PS3.3, C.7.6.3.1.8).
    """
    offsets = parse_basic_offsets(stream)
    fragments = _fragments(stream)
    if offsets:
        base = fragments[0].start if fragments else 0
        places = {fragment.start - base: k for k, fragment in enumerate(fragments)}
        starts = [places[offset] for offset in offsets if offset in places]
        if len(starts) != len(offsets) or starts != sorted(set(starts)) or starts[0] != 0:
            raise PixelDataError("have a wrong offset table")
    elif len(fragments) == count:
        starts = list(range(count))
    else:
        ends = [k for k, fragment in enumerate(fragments, start=1) if _ends_codestream(stream, fragment)]
        starts = [0, *(k for k in ends if k < len(fragments))]
    if len(starts) != count or not fragments:
        raise PixelDataError("hold another number of frames than the header says")
    return [fragments[a:b] for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True)]


def _fragments(stream: BinaryIO) -> list[_Part]:
    """List the fragments from where the stream stands to the sequence delimiter."""
    parts = []
    while (head := stream.read(8))[:4] == _ITEM and len(head) == len(_ITEM) + 4:
        length = int.from_bytes(head[4:], "little")
        parts.append(_Part(stream.tell(), length))
        stream.seek(length, io.SEEK_CUR)
    if head[:4] != _DELIMITER:
        raise PixelDataError("are cut off")
    return parts


def _ends_codestream(stream: BinaryIO, fragment: _Part) -> bool:
    tail = min(fragment.length, 8)
    return _END_MARKER in _read(stream, _Part(fragment.start + fragment.length - tail, tail))
