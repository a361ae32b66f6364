"""Decoding of compressed frames, alike in any number of threads."""

from __future__ import annotations

import re
from struct import unpack_from
from typing import NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

Shape = tuple[int, int]
StoredArray = npt.NDArray[np.uint16]

_LOSSLESS_JPEG, _JPEG_LS = 0xFFC3, 0xFFF7
"""Frame headers (ISO/IEC 10918-1, B.1.1.3; 14495-1, C.1.1)."""
_START_OF_SCAN = 0xFFDA
_HARMLESS = {0xFFC4, 0xFFDB, 0xFFDD, 0xFFF8, 0xFFFE, *range(0xFFE0, 0xFFF0)}
"""Tables, restart interval, coding parameters, comments and application data."""
_MARKER_IN_SCAN = {
    _LOSSLESS_JPEG: re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]"),
    _JPEG_LS: re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]"),
}
"""Any marker but a restart: what follows a byte FF of the data themselves tells them from markers."""
_END, _PADDING = b"\xff\xd9", b"\0"
_JPEG_2000 = b"\xff\x4f\xff\x51"
"""Start of codestream, then the marker of the image size (ISO/IEC 15444-1, A.5.1)."""
_LEAST_BITS, _MOST_BITS = 12, 16
_JPEG_2000_SYNTAXES = (JPEG2000Lossless, JPEG2000)
"""Part 1 alone: the library counts Part 2 and High-Throughput JPEG 2000 to them."""
SYNTAXES = (RLELossless, JPEGLossless, JPEGLosslessSV1, *JPEGLSTransferSyntaxes, *_JPEG_2000_SYNTAXES)
"""Transfer syntaxes of compressed CT images that are decoded."""
_RLE_HEADER = 64


class Frame(NamedTuple):
    """What a codestream announces."""

    bits: int
    rows: int
    columns: int
    components: int
    signed: bool = False

    @property
    def shape(self) -> Shape:
        """Rows and columns."""
        return self.rows, self.columns


def decode(codestream: bytes, syntax: UID, shape: Shape, bits_stored: int, *, signed: bool) -> StoredArray:
    """Decode one compressed frame of 16 bits allocated and one sample per pixel.

    Decoders take memory for the size that a codestream announces, so it must be the image's.

    Parameters
    ----------
    codestream : bytes
        The frame, may be padded at its end.
    syntax : UID
        One of :data:`SYNTAXES`.
    shape : tuple of int
        Rows and columns of the image.
    bits_stored : int
        Bits Stored of the image.
    signed : bool
        Whether its pixels are signed by Pixel Representation.

    Returns
    -------
    ndarray of uint16, shape (rows, columns)
        Stored values: those of signed pixels in two's complement of, at least, the bits stored; what the higher bits
        hold is left as it is.

    Raises
    ------
    Exception
        Of any kind, where the codestream is damaged, none of this image, or contradicts its header.
    """
    if syntax == RLELossless:
        return _decode_rle(codestream, shape)
    frame = _announced(codestream, syntax)
    if frame.shape != shape or frame.components != 1 or not _LEAST_BITS <= frame.bits <= _MOST_BITS:
        raise ValueError("another image than the header says")
    if (frame.signed and not signed) or (signed and not frame.signed and frame.bits < bits_stored):
        raise ValueError("header and codestream differ in sign")  # nothing tells which is right
    if syntax in _JPEG_2000_SYNTAXES:
        values = imagecodecs.jpeg2k_decode(codestream, numthreads=1)
    elif syntax in JPEGLSTransferSyntaxes:
        values = imagecodecs.jpegls_decode(codestream)
    else:
        values = imagecodecs.jpeg8_decode(codestream)
    if values.shape != shape or values.dtype.itemsize > 2:
        raise ValueError("another image than announced")
    stored: StoredArray = values.astype(np.uint16)
    return stored


def _decode_rle(frame: bytes, shape: Shape) -> StoredArray:
    """Put the segments of a frame together: the bytes of all pixels, highest first (PS3.5, G.3, G.5)."""
    size = shape[0] * shape[1]
    count, *offsets = unpack_from("<16L", frame)
    ends = [*offsets[1:count], len(frame)]
    if count != 2 or offsets[0] < _RLE_HEADER or not offsets[0] < offsets[1] < len(frame):
        raise ValueError("not two segments")
    planes = [imagecodecs.packbits_decode(frame[a:b], out=size) for a, b in zip(offsets[:2], ends, strict=True)]
    if any(len(plane) != size for plane in planes):
        raise ValueError("too few pixels")
    high, low = (np.frombuffer(plane, np.uint8).reshape(shape) for plane in planes)
    return np.stack([low, high], axis=-1).reshape(-1).view("<u2").astype(np.uint16).reshape(shape)


def _announced(codestream: bytes, syntax: UID) -> Frame:
    """Read what a codestream announces; raise where it is none of its transfer syntax, or not whole."""
    if syntax in _JPEG_2000_SYNTAXES:
        return _jpeg_2000(codestream)
    if syntax in JPEGLSTransferSyntaxes:
        return _jpeg(codestream, _JPEG_LS)
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        return _jpeg(codestream, _LOSSLESS_JPEG)
    raise ValueError("not supported")


def _jpeg_2000(codestream: bytes) -> Frame:
    if not codestream.startswith(_JPEG_2000) or not codestream.rstrip(_PADDING).endswith(_END):
        raise ValueError("not one whole JPEG 2000 codestream")  # decoders fill in what is missing
    right, lower, left, upper, components, bits = unpack_from(">4L16xHB", codestream, len(_JPEG_2000) + 4)
    return Frame(bits % 128 + 1, lower - upper, right - left, components, bits >= 128)


def _jpeg(codestream: bytes, frame_header: int) -> Frame:
    """Read the segments up to the one scan, which must end: decoders fill in what is missing."""
    frames = []
    marker, end = unpack_from(">H", codestream)[0], 2
    while marker != _START_OF_SCAN:
        place = end
        while codestream[place : place + 2] == b"\xff\xff":  # fill bytes (ISO/IEC 10918-1, B.1.1.2)
            place += 1
        marker, length = unpack_from(">HH", codestream, place)
        end = place + 2 + length
        if marker == frame_header:
            frames.append(Frame(*unpack_from(">BHHB", codestream, place + 4)))
        elif marker not in (*_HARMLESS, _START_OF_SCAN):
            raise ValueError("a marker that does not belong here")
    last = _MARKER_IN_SCAN[frame_header].search(codestream, end)
    if len(frames) != 1 or not codestream.startswith(b"\xff\xd8") or last is None or last.group() != _END:
        raise ValueError("not one whole scan")
    if codestream[last.end() :].strip(_PADDING):
        raise ValueError("something after the scan")
    return frames[0]
