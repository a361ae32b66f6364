"""Hounsfield units of CT slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from operators.ct_geometry import numbers
from operators.ct_images import SliceImage
from operators.dicom_folder import DicomFile
from operators.refusal import InputRefused, ReasonCode
from operators.volume import FloatArray

AIR_HU = -1024.0
MIN_BITS_STORED = 12
"""CT images store at least 12 bits (PS3.3, C.8.2.1.1.4); fewer are too coarse for Hounsfield units."""
MAX_RESCALE = 1e5
"""Slopes and intercepts beyond this lead to no Hounsfield units."""


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
    hu = np.multiply(stored, slope, dtype=np.float32, casting="same_kind")
    hu += intercept
    hu[_padding(image.header, stored)] = AIR_HU
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
        whole = pydicom.dcmread(file.path, force=True)
        _refuse_unusable(file, whole, syntax)
        decoder = get_decoder(syntax)
        for image in images:
            # the frames of a multi-frame object are all in memory as they are stored, decoded one by one
            yield decoder.as_array(whole, index=max(image.frame - 1, 0), raw=True, decoding_plugin=plugin)[0]
    except InputRefused:
        raise
    except Exception as error:  # what damaged data make a decoder raise is not foreseeable
        raise _undecodable(file, "cannot be decoded") from error


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


def _padding(image: Dataset, stored: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Tell which pixels are padding (PS3.3, C.7.5.1.1.2)."""
    value = image.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = image.get("PixelPaddingRangeLimit")
    ends = (value, limit if isinstance(limit, int) else value)
    # Some scanners write the padding of signed pixels as an unsigned number: same 16 bits, read as the pixels are.
    low, high = sorted(np.array(ends, dtype=np.int64).astype(stored.dtype).tolist())
    return np.asarray((stored >= low) & (stored <= high))
