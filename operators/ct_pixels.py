"""Hounsfield units of one CT image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from operators.ct_geometry import numbers
from operators.refusal import InputRefused, ReasonCode
from operators.volume import FloatArray

AIR_HU = -1024.0
MIN_BITS_STORED = 12
"""CT images store at least 12 bits (PS3.3, C.8.2.1.1.4); fewer are too coarse for Hounsfield units."""


def read_hu(image: Dataset, out: FloatArray) -> None:
    """Decode a CT image to Hounsfield units.

    HU = Rescale Slope x stored value + Rescale Intercept, by the image's own rescale. Padding (Pixel Padding
    Value up to Pixel Padding Range Limit) and everything below -1024 HU becomes -1024 HU: air.

    Parameters
    ----------
    image : Dataset
        The whole image, pixel data included.
    out : ndarray of float32, shape (rows, columns)
        Is filled.

    Raises
    ------
    InputRefused
        ``NO_RESCALE`` or ``UNDECODABLE``.
    """
    slope, intercept = _rescale(image)
    stored = _stored_values(image)
    if stored.shape != out.shape:
        raise _undecodable("holds several frames or colours")
    np.multiply(stored, slope, out=out, casting="same_kind")
    out += intercept
    out[_padding(image, stored)] = AIR_HU
    np.maximum(out, AIR_HU, out=out)


def _undecodable(what: str) -> InputRefused:
    return InputRefused(ReasonCode.UNDECODABLE, f"The pixel data of a slice {what}; send the original series again.")


def _rescale(image: Dataset) -> tuple[float, float]:
    """Return slope and intercept to Hounsfield units."""
    try:
        slope = float(numbers(image, "RescaleSlope", 1)[0])
        intercept = float(numbers(image, "RescaleIntercept", 1)[0])
    except InputRefused:
        slope = intercept = 0.0
    unit = str(image.get("RescaleType") or "HU").strip().upper()
    if slope <= 0.0 or unit != "HU":
        message = "A slice has no valid rescale to Hounsfield units; send the original series of the scanner."
        raise InputRefused(ReasonCode.NO_RESCALE, message)
    return slope, intercept


def _transfer_syntax(image: Dataset) -> UID:
    """Return the transfer syntax; without file meta information, the uncompressed one that was found."""
    stated = getattr(image, "file_meta", {}).get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    is_implicit, is_little_endian = image.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def _stored_values(image: Dataset) -> npt.NDArray[np.integer]:
    """Return the stored values, unused bits corrected."""
    try:
        _refuse_unusable(image)
        syntax = _transfer_syntax(image)
        # Only GDCM was checked value by value on every compressed CT syntax and refuses truncated codestreams.
        plugin = "gdcm" if syntax.is_encapsulated and syntax != RLELossless else ""
        return get_decoder(syntax).as_array(image, raw=True, decoding_plugin=plugin)[0]
    except InputRefused:
        raise
    except Exception as error:  # what damaged data make a decoder raise is not foreseeable
        raise _undecodable("cannot be decoded") from error


def _refuse_unusable(image: Dataset) -> None:
    """Refuse pixel data that are absent, too coarse, or uncompressed and of another length than the image."""
    if "PixelData" not in image or not image.PixelData:
        raise _undecodable("is missing or cut off")
    if image.BitsStored < MIN_BITS_STORED:
        raise _undecodable(f"has fewer than {MIN_BITS_STORED} bits")
    if not _transfer_syntax(image).is_encapsulated:
        expected = image.Rows * image.Columns * image.SamplesPerPixel * image.BitsAllocated // 8
        length = len(image.PixelData)
        if image["PixelData"].is_undefined_length or length not in (expected, expected + expected % 2):
            raise _undecodable("has the wrong length")


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
