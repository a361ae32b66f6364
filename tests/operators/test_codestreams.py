"""Compressed frames come back bit by bit."""

from __future__ import annotations

from struct import pack

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from operators.codestreams import decode

Stored = npt.NDArray[np.uint16]
SHAPE = (37, 22)


def _image(bits: int) -> Stored:
    """Smooth and wild parts, and the extremes."""
    rng = np.random.default_rng(bits)
    values = np.cumsum(rng.integers(-9, 10, SHAPE), axis=0) + 2 ** (bits - 1)
    values[20:] = rng.integers(0, 2**bits, (SHAPE[0] - 20, SHAPE[1]))
    values[0, :2] = 0, 2**bits - 1
    return values.astype(np.uint16)


def _encoded(values: Stored, bits: int, syntax: UID) -> bytes:
    if syntax == RLELossless:
        planes = [_packbits(values >> 8), _packbits(values & 255)]
        return pack("<16L", 2, 64, 64 + len(planes[0]), *[0] * 13) + b"".join(planes)
    if syntax == JPEGLSLossless:
        return imagecodecs.jpegls_encode(values)
    if syntax == JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits, codecformat="j2k")
    predictor = 1 if syntax == JPEGLosslessSV1 else 6
    return imagecodecs.jpeg8_encode(values, lossless=True, predictor=predictor, bitspersample=bits)


def _packbits(plane: Stored) -> bytes:
    """Encode naively: a run for each pixel; padded to even length (PS3.5, G.3.1)."""
    runs = b"".join(bytes([0, value]) for value in plane.ravel().tolist())
    return runs + b"\0" * (len(runs) % 2)


SYNTAXES = [RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("bits", [12, 13, 15, 16])
def test_values_come_back(syntax: UID, bits: int) -> None:
    values = _image(bits)
    got, counting = decode(_encoded(values, bits, syntax), syntax, SHAPE)
    assert got.dtype == np.uint16
    assert counting >= bits
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_padding_at_the_end_is_none_of_the_frame(syntax: UID) -> None:
    values = _image(16)
    got, _ = decode(_encoded(values, 16, syntax) + b"\0", syntax, SHAPE)
    np.testing.assert_array_equal(got, values)


def test_signed_jpeg_2000_is_in_twos_complement() -> None:
    values = _image(16).view(np.int16)
    got, bits = decode(imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k"), JPEG2000Lossless, SHAPE)
    assert bits == 16
    np.testing.assert_array_equal(got.view(np.int16), values)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_cut_codestreams_raise(syntax: UID, keep: float) -> None:
    codestream = _encoded(_image(16), 16, syntax)
    with pytest.raises(Exception, match=r"."):
        decode(codestream[: int(keep * len(codestream))], syntax, SHAPE)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_another_size_than_the_header_says_raises(syntax: UID) -> None:
    with pytest.raises(Exception, match=r"another image|too few|returned"):
        decode(_encoded(_image(16), 16, syntax), syntax, (SHAPE[0] + 1, SHAPE[1]))


def test_a_codestream_of_another_syntax_raises() -> None:
    codestream = _encoded(_image(16), 16, JPEGLSLossless)
    for syntax in (RLELossless, JPEGLossless, JPEG2000Lossless, JPEGBaseline8Bit):
        with pytest.raises(ValueError, match=r"."):
            decode(codestream, syntax, SHAPE)


def test_colours_raise() -> None:
    codestream = imagecodecs.jpegls_encode(np.stack([_image(16)] * 3, axis=-1))
    with pytest.raises(ValueError, match="another image"):
        decode(codestream, JPEGLSLossless, SHAPE)
