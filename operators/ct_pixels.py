"""Hounsfield units of CT slices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from struct import unpack_from
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from operators.ct_geometry import numbers
from operators.ct_images import SliceImage
from operators.dicom_folder import DicomFile, read_object
from operators.refusal import InputRefused, ReasonCode
from operators.volume import FloatArray

AIR_HU = -1024.0
MIN_BITS_STORED = 12
"""CT images store at least 12 bits (PS3.3, C.8.2.1.1.4); fewer are too coarse for Hounsfield units."""
MAX_RESCALE = 1e5
"""Slopes and intercepts beyond this lead to no Hounsfield units."""
_MOST_BITS = 16
_LOSSLESS_JPEG, _JPEG_LS = 0xFFC3, 0xFFF7
"""Frame headers (ISO/IEC 10918-1, B.1.1.3; 14495-1, C.1.1)."""
_START, _START_OF_SCAN, _PRESETS = 0xFFD8, 0xFFDA, 0xFFF8
_LATEST_RESET = 255
"""The standard allows more, all encoders take 64; sums that are not reset in time overflow in the decoder."""
_TABLES = {0xFFC4, 0xFFDB, 0xFFDD}
"""Huffman tables, quantization tables, restart interval."""
_REMARKS = {*range(0xFFE0, 0xFFF0), 0xFFFE}
"""Application data and comments, which say nothing of the pixels; GDCM trips over some."""
_MARKER_IN_SCAN = {
    _LOSSLESS_JPEG: re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]"),
    _JPEG_LS: re.compile(rb"\xff[\x80-\xcf\xd8-\xff]"),
}
"""Any marker but a restart: what follows a byte FF of the data themselves tells them from markers."""
_END = b"\xff\xd9"
_JPEG_2000 = b"\xff\x4f\xff\x51"
"""Start of codestream, then the marker of the image size (ISO/IEC 15444-1, A.5.1)."""


def read_hu(slices: Sequence[SliceImage]) -> Iterator[FloatArray]:
    """Decode slices to Hounsfield units, one after the other; only one is held in memory.

    HU = Rescale Slope x stored value + Rescale Intercept, by the rescale of each slice. Padding (Pixel Padding
    Value up to Pixel Padding Range Limit) and everything below -1024 HU becomes -1024 HU: air.

    Parameters
    ----------
    slices : sequence of SliceImage
        In the order in which they are wanted.

    Yields
    ------
    ndarray of float32, shape (rows, columns)

    Raises
    ------
    InputRefused
        ``NO_RESCALE`` or ``UNDECODABLE``.
    """
    for _, run in groupby(slices, key=lambda image: image.file.number):
        images = list(run)
        for image, stored in zip(images, _stored_values(images), strict=True):
            yield _to_hu(image, stored)


def _to_hu(image: SliceImage, stored: npt.NDArray[np.integer]) -> FloatArray:
    slope, intercept = _rescale(image)
    if stored.shape != (image.header.Rows, image.header.Columns):
        raise _undecodable(image.file, "hold several frames or colours")
    hu = stored.astype(np.float32)
    if slope != 1.0:
        hu *= np.float32(slope)
    hu += np.float32(intercept)
    padding = _padding(image.header, stored)
    if padding is not None:
        hu[padding] = AIR_HU
    return np.asarray(np.maximum(hu, AIR_HU, out=hu))


def _undecodable(file: DicomFile, what: str) -> InputRefused:
    message = f"The pixel data of file {file.number} {what}; send the original series again."
    return InputRefused(ReasonCode.UNDECODABLE, message)


def _rescale(image: SliceImage) -> tuple[float, float]:
    """Return slope and intercept to Hounsfield units."""
    try:
        slope = float(numbers(image.header, "RescaleSlope", 1)[0])
        intercept = float(numbers(image.header, "RescaleIntercept", 1)[0])
    except InputRefused:
        slope = intercept = 0.0
    unit = str(image.header.get("RescaleType") or "HU").strip().upper()
    if not 0.0 < slope <= MAX_RESCALE or abs(intercept) > MAX_RESCALE or unit != "HU":
        message = f"File {image.file.number} has no valid rescale to Hounsfield units; send the series of the scanner."
        raise InputRefused(ReasonCode.NO_RESCALE, message)
    return slope, intercept


def _transfer_syntax(header: FileDataset) -> UID:
    """Return the transfer syntax; without file meta information, the uncompressed one that was found."""
    stated = header.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    is_implicit, is_little_endian = header.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def _stored_values(images: Sequence[SliceImage]) -> Iterator[npt.NDArray[np.integer]]:
    """Yield the stored values, unused bits corrected, of slices that one file holds."""
    file = images[0].file
    try:
        syntax = _transfer_syntax(file.header)
        # Only GDCM was checked value by value on every compressed CT syntax and refuses truncated codestreams.
        plugin = "gdcm" if syntax.is_encapsulated and syntax != RLELossless else ""
        whole = read_object(file.path)
        _refuse_unusable(file, whole, syntax)
        decoder = get_decoder(syntax)
        codestreams = _codestreams(whole) if syntax.is_encapsulated else []
        for image in images:
            index = max(image.frame - 1, 0)
            if codestreams:
                codestream = codestreams[index]
                if plugin:
                    codestream = _checked_codestream(codestream, syntax, whole)
                # alone: pydicom would look for each frame among all fragments
                whole.PixelData, index = encapsulate([codestream]), 0
            # the frames of a multi-frame object are all in memory as they are stored, decoded one by one
            yield decoder.as_array(whole, index=index, raw=True, decoding_plugin=plugin)[0]
    except InputRefused:
        raise
    except Exception as error:  # what damaged data make a decoder raise is not foreseeable
        raise _undecodable(file, "cannot be decoded") from error


def stored_bytes(file: DicomFile) -> bytes:
    """Return the pixel data of an object as they are in its file; nothing where there are none.

    Raises
    ------
    InputRefused
        ``UNDECODABLE`` where they cannot be read.
    """
    try:
        pixels = read_object(file.path).get("PixelData") or b""
        if not isinstance(pixels, bytes):
            raise TypeError("pixel data are bytes")
    except Exception as error:  # what damaged data make the parser raise is not foreseeable
        raise _undecodable(file, "cannot be read") from error
    return pixels


def _refuse_unusable(file: DicomFile, whole: Dataset, syntax: UID) -> None:
    """Refuse pixel data that are absent, too coarse, or uncompressed and of another length than the image."""
    if "PixelData" not in whole or not whole.PixelData:
        raise _undecodable(file, "are missing or cut off")
    if whole.BitsStored < MIN_BITS_STORED:
        raise _undecodable(file, f"have fewer than {MIN_BITS_STORED} bits")
    if not syntax.is_encapsulated:
        frames = int(whole.get("NumberOfFrames") or 1)
        expected = whole.Rows * whole.Columns * whole.SamplesPerPixel * whole.BitsAllocated // 8 * frames
        length = len(whole.PixelData)
        if whole["PixelData"].is_undefined_length or length not in (expected, expected + expected % 2):
            raise _undecodable(file, "have the wrong length")


def _codestreams(whole: Dataset) -> list[bytes]:
    """Take the frames out of encapsulated pixel data.

    Extended offsets are not looked at: each frame is one fragment where there are any (PS3.3, C.7.6.3.1.8).
    """
    frames = int(whole.get("NumberOfFrames") or 1)
    codestreams = list(generate_frames(whole.PixelData, number_of_frames=frames))
    for keyword in ("NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        whole.pop(keyword, None)
    return codestreams


def _padding(image: Dataset, stored: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_] | None:
    """Tell which pixels are padding (PS3.3, C.7.5.1.1.2); None where the image names no padding value."""
    value = image.get("PixelPaddingValue")
    if not _is_of_pixels(value):
        return None
    limit = image.get("PixelPaddingRangeLimit")
    ends = (value, limit if _is_of_pixels(limit) else value)
    # Some scanners write the padding of signed pixels as an unsigned number: same 16 bits, read as the pixels are.
    low, high = sorted(np.array(ends, dtype=np.int64).astype(stored.dtype).tolist())
    return np.asarray((stored >= low) & (stored <= high))


def _is_of_pixels(value: object) -> bool:
    """Tell whether a value is a number that pixels can have, signed or unsigned."""
    return isinstance(value, int) and -(1 << 31) <= value < 1 << 32


# --- codestreams ---


class _Frame(NamedTuple):
    """What a codestream announces."""

    bits: int
    rows: int
    columns: int
    components: int


def _checked_codestream(codestream: bytes, syntax: UID, image: Dataset) -> bytes:
    """Return a codestream of the JPEG family without remarks and padding; raise where it is not what the image is.

    GDCM takes memory for the size that a codestream announces, and runs forever or ends the process where a damaged
    one surprises it. So it is handed only what is whole and says the same as the header.
    """
    pixel = image.SamplesPerPixel, image.BitsAllocated, str(image.PhotometricInterpretation)[:-1]
    if pixel != (1, _MOST_BITS, "MONOCHROME") or image.BitsStored > _MOST_BITS:
        raise ValueError("not the pixels of a CT image")
    if syntax in JPEG2000TransferSyntaxes:
        frame, bare = _jpeg_2000(codestream), codestream
    elif syntax in JPEGLSTransferSyntaxes:
        frame, bare = _jpeg(codestream, _JPEG_LS)
    elif syntax in (JPEGLossless, JPEGLosslessSV1):
        frame, bare = _jpeg(codestream, _LOSSLESS_JPEG)
    else:
        raise ValueError("not supported")
    if frame[1:] != (image.Rows, image.Columns, 1) or not MIN_BITS_STORED <= frame.bits <= _MOST_BITS:
        raise ValueError("another image than the header says")
    return bare


def _jpeg_2000(codestream: bytes) -> _Frame:
    if not codestream.startswith(_JPEG_2000):
        raise ValueError("not a JPEG 2000 codestream")
    right, lower, left, upper, components, bits = unpack_from(">4L16xHB", codestream, len(_JPEG_2000) + 4)
    return _Frame(bits % 128 + 1, lower - upper, right - left, components)


def _jpeg(codestream: bytes, frame_header: int) -> tuple[_Frame, bytes]:
    """Read the segments up to the scan; return the frame header, and all but the remarks."""
    frames, presets = [], []
    kept = [codestream[:2]]
    marker, place, end = unpack_from(">H", codestream)[0], 0, 2
    while marker != _START_OF_SCAN:
        place = end
        marker, length = unpack_from(">HH", codestream, place)
        end = place + 2 + length
        if marker == frame_header:
            frames.append(_Frame(*unpack_from(">BHHB", codestream, place + 4)))
        elif marker == _PRESETS and frame_header == _JPEG_LS:
            presets.append(unpack_from(">B5H", codestream, place + 4))
        elif marker not in (*_TABLES, *_REMARKS, _START_OF_SCAN):
            raise ValueError("a marker that does not belong here")
        if marker not in _REMARKS:
            kept.append(codestream[place:end])
    (frame,) = frames
    near = codestream[place + 7]  # in the scan header of JPEG-LS (ISO/IEC 14495-1, C.2.3)
    if not all(_is_sound(each, frame.bits, near) for each in presets):
        raise ValueError("impossible parameters")
    last = _MARKER_IN_SCAN[frame_header].search(codestream, end)
    if not codestream.startswith(b"\xff\xd8") or last is None or last.group() != _END:
        raise ValueError("not one whole scan")
    return frame, b"".join([*kept, codestream[end : last.end()]])


def _is_sound(presets: tuple[int, ...], bits: int, near: int) -> bool:
    """Tell whether the coding parameters of JPEG-LS are possible (ISO/IEC 14495-1, C.2.4.1.1); 0 is the default."""
    kind, largest, *thresholds, reset = presets
    largest = largest or (1 << bits) - 1
    given = [threshold for threshold in thresholds if threshold]
    return (
        kind == 1
        and (1 << bits) // 2 <= largest < 1 << bits
        and given == sorted(given)
        and all(near < threshold <= largest for threshold in given)
        and (reset == 0 or 3 <= reset <= _LATEST_RESET)
    )
