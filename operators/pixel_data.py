"""Frames of DICOM objects as they are stored, read one by one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pydicom.uid import ExplicitVRLittleEndian as ExplicitLittleEndian
from pydicom.uid import ImplicitVRLittleEndian as ImplicitLittleEndian

from operators.dicom_folder import UNDEFINED_LENGTH, DicomFile, open_object, read_object

_LONG_FORM = (b"OB", b"OW", b"UN")
"""VRs that pixel data can have, all with a length of 32 bits (PS3.5, 7.1.2)."""
_TAGS = {"little": b"\xe0\x7f\x10\x00", "big": b"\x7f\xe0\x00\x10"}
"""Pixel Data (7FE0,0010)."""


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


def stored_frames(file: DicomFile, frames: Iterable[int]) -> Iterator[bytes]:
    """Read frames of an object as they are stored: pixels, or a codestream without its fragments' headers.

    Only one frame is in memory at a time, but of a deflated object all.

    Parameters
    ----------
    file : DicomFile
        The object.
    frames : iterable of int
        Their indices, from 0.

    Raises
    ------
    PixelDataError
        If the pixel data are missing, cut off, or of another length than the image.
    """
    header = file.header
    count = int(header.get("NumberOfFrames") or 1)
    with _pixel_data(file) as (stream, length):
        start = stream.tell()
        if transfer_syntax(header).is_encapsulated:
            if length != UNDEFINED_LENGTH:
                raise PixelDataError("are not encapsulated")
            # Extended offsets are not needed: then each frame is one fragment (PS3.3, C.7.6.3.1.8).
            yield from (get_frame(stream, index, number_of_frames=count) for index in frames)
            return
        size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
        if length not in (size * count, size * count + size * count % 2):
            raise PixelDataError("have the wrong length")
        for index in frames:
            stream.seek(start + index * size)
            pixels = stream.read(size)
            if len(pixels) != size:
                raise PixelDataError("are cut off")
            yield pixels


@contextmanager
def _pixel_data(file: DicomFile) -> Iterator[tuple[BinaryIO, int]]:
    """Open the value of Pixel Data; yield the stream, standing at the value, and its length."""
    if transfer_syntax(file.header) == DeflatedExplicitVRLittleEndian:
        pixels = read_object(file.path).get("PixelData") or b""
        yield io.BytesIO(pixels), len(pixels)
        return
    with open_object(file.path) as stream:
        stream.seek(file.pixels_at)
        little = file.header.original_encoding[1] is not False
        yield stream, _value_length(stream, "little" if little else "big")


def _value_length(stream: BinaryIO, order: str) -> int:
    """Read tag, VR if there is one, and length of Pixel Data."""
    head = stream.read(8)
    if head[:4] != _TAGS[order]:
        raise PixelDataError("are missing")
    if head[4:6] in _LONG_FORM and head[6:] == b"\0\0":
        return int.from_bytes(stream.read(4), "little" if order == "little" else "big")
    return int.from_bytes(head[4:], "little" if order == "little" else "big")
