"""Hounsfield units of CT slices."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from models.hounsfield import AIR_HU
from operators.codestreams import SYNTAXES, decode
from operators.ct_geometry import numbers
from operators.ct_images import SliceImage
from operators.dicom_folder import MULTI_FRAME_CT, DicomFile
from operators.pixel_data import PixelDataError, stored_frames, transfer_syntax
from operators.refusal import InputRefused, ReasonCode
from operators.volume import FloatArray

MIN_BITS_STORED = 12
"""CT images store at least 12 bits (PS3.3, C.8.2.1.1.4); fewer are too coarse for Hounsfield units."""
MAX_RESCALE = 1e5
"""Slopes and intercepts beyond this lead to no Hounsfield units."""
THREADS = min(len(os.sched_getaffinity(0)), 8)
"""Decoders let each other run, and so does numpy."""
_KINDS = {0: "u", 1: "i"}
"""Pixel Representation."""
_COMPRESSIBLE_BITS = 16
_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
READABLE_SYNTAXES = (*_UNCOMPRESSED, *SYNTAXES)
"""Transfer syntaxes of slices that can be read; what is compressed has 16 bits allocated."""
_AHEAD = 2
"""Slices that wait for each thread: no more are in memory."""


def read_hu(slices: Sequence[SliceImage]) -> Iterator[FloatArray]:
    """Decode slices to Hounsfield units in all threads, and yield one after the other; a few are decoded ahead.

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
        ``UNDECODABLE``; nothing else where :func:`check_readable` refuses none of the slices.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[FloatArray]] = deque()
        for image, frame in _with_frames(slices):
            waiting.append(pool.submit(_to_hu, image, frame))
            if len(waiting) > _AHEAD * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def check_readable(image: SliceImage) -> None:
    """Refuse a slice whose header says that it cannot become Hounsfield units.

    Raises
    ------
    InputRefused
        ``NO_RESCALE`` or ``UNDECODABLE``.
    """
    _rescale(image)
    try:
        _refuse_unusable(image.file)
    except PixelDataError as error:
        raise _undecodable(image.file, str(error)) from error
    except Exception as error:  # attributes that are missing, or of any other type
        raise _undecodable(image.file, "are not described") from error


def _with_frames(slices: Sequence[SliceImage]) -> Iterator[tuple[SliceImage, bytes]]:
    """Pair each slice with its frame as it is stored."""
    for _, run in groupby(slices, key=lambda image: image.file.number):
        images = list(run)
        file = images[0].file
        try:
            frames = stored_frames(file, [max(image.frame - 1, 0) for image in images])
            yield from zip(images, frames, strict=True)
        except PixelDataError as error:
            raise _undecodable(file, str(error)) from error
        except Exception as error:  # what damaged data make the parser raise is not foreseeable
            raise _undecodable(file, "cannot be read") from error


def _to_hu(image: SliceImage, frame: bytes) -> FloatArray:
    slope, intercept = _rescale(image)
    try:
        stored = _stored_values(image.file, frame)
    except Exception as error:  # what damaged data make a decoder raise is not foreseeable
        raise _undecodable(image.file, "cannot be decoded") from error
    plane = stored.astype(np.float32)
    if slope != 1.0:
        plane *= np.float32(slope)
    plane += np.float32(intercept)
    padding = _padding(image.header, stored)
    if padding is not None:
        plane[padding] = AIR_HU
    return np.maximum(plane, AIR_HU, out=plane)


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


def _refuse_unusable(file: DicomFile) -> None:
    """Refuse what is not one grey value of enough bits for each pixel, in a known coding."""
    header, syntax = file.header, transfer_syntax(file.header)
    several = int(header.get("NumberOfFrames") or 1) > 1 and file.sop_class not in MULTI_FRAME_CT
    if several or header.SamplesPerPixel != 1 or not str(header.PhotometricInterpretation).startswith("MONOCHROME"):
        raise PixelDataError("hold several frames or colours")
    allocated, used = header.BitsAllocated, header.BitsStored
    if used < MIN_BITS_STORED:
        raise PixelDataError(f"have fewer than {MIN_BITS_STORED} bits")
    if used > allocated or header.get("HighBit", used - 1) != used - 1:
        raise PixelDataError("lie in other bits than those of a CT image (High Bit)")
    if header.PixelRepresentation not in _KINDS or header.Rows < 1 or header.Columns < 1:
        raise PixelDataError("are not described")
    if syntax not in (READABLE_SYNTAXES if allocated == _COMPRESSIBLE_BITS else _UNCOMPRESSED):
        raise PixelDataError("are in a transfer syntax that is not supported")
    if file.pixels_at >= file.stamp.size:
        raise PixelDataError("are missing")


def _stored_values(file: DicomFile, frame: bytes) -> npt.NDArray[np.integer]:
    """Return the stored values of a frame; bits that are not used say nothing (PS3.5, 8.1.1)."""
    header, syntax = file.header, transfer_syntax(file.header)
    shape, kind = (header.Rows, header.Columns), _KINDS[header.PixelRepresentation]
    allocated, used = header.BitsAllocated, header.BitsStored
    if syntax.is_encapsulated:
        bits: npt.NDArray[np.unsignedinteger] = decode(frame, syntax, shape, used, signed=kind == "i")
    else:
        order = "<" if syntax.is_little_endian else ">"
        swapped = np.frombuffer(frame, f"{order}u{allocated // 8}").reshape(shape)
        bits = swapped.astype(swapped.dtype.newbyteorder("="), copy=False)
    values: npt.NDArray[np.integer] = bits.view(f"{kind}{allocated // 8}")
    unused = allocated - used
    return (values << unused) >> unused if unused else values


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
