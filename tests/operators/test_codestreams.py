"""Compressed frames come back bit by bit."""

from __future__ import annotations

import struct
from struct import pack

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from operators.codestreams import SYNTAXES as READ
from operators.codestreams import decode

Stored = npt.NDArray[np.uint16]
SHAPE = (37, 22)
DAMAGE = (ValueError, RuntimeError, struct.error)


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
    got = decode(_encoded(values, bits, syntax), syntax, SHAPE, bits, signed=False)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_padding_at_the_end_is_none_of_the_frame(syntax: UID) -> None:
    values = _image(16)
    got = decode(_encoded(values, 16, syntax) + b"\0", syntax, SHAPE, 16, signed=False)
    np.testing.assert_array_equal(got, values)


def test_signed_jpeg_2000_is_in_twos_complement() -> None:
    values = _image(16).view(np.int16)
    codestream = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k")
    got = decode(codestream, JPEG2000Lossless, SHAPE, 16, signed=True)
    np.testing.assert_array_equal(got.view(np.int16), values)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_cut_codestreams_raise(syntax: UID, keep: float) -> None:
    codestream = _encoded(_image(16), 16, syntax)
    with pytest.raises(DAMAGE):
        decode(codestream[: int(keep * len(codestream))], syntax, SHAPE, 16, signed=False)


def test_cut_jpeg_2000_of_unknown_length_raises() -> None:
    """With Psot = 0 (ISO/IEC 15444-1, A.4.2) a decoder cannot tell where the data should have ended."""
    codestream = bytearray(_encoded(_image(16), 16, JPEG2000Lossless))
    tile_part = codestream.index(b"\xff\x90")
    codestream[tile_part + 6 : tile_part + 10] = bytes(4)
    decode(bytes(codestream), JPEG2000Lossless, SHAPE, 16, signed=False)
    for length in range(tile_part + 14, len(codestream) - 1):
        with pytest.raises(DAMAGE):
            decode(bytes(codestream[:length]), JPEG2000Lossless, SHAPE, 16, signed=False)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_fewer_bits_than_signed_pixels_have_raise(syntax: UID) -> None:
    """Whether the highest of 12 bits is a sign, where the header says 16, nothing tells."""
    codestream = _encoded(_image(12), 12, syntax)
    with pytest.raises(ValueError, match="differ in sign"):
        decode(codestream, syntax, SHAPE, 16, signed=True)
    decode(codestream, syntax, SHAPE, 12, signed=True)


def test_signed_codestream_of_unsigned_pixels_raises() -> None:
    codestream = imagecodecs.jpeg2k_encode(_image(16).view(np.int16), level=0, codecformat="j2k")
    with pytest.raises(ValueError, match="differ in sign"):
        decode(codestream, JPEG2000Lossless, SHAPE, 16, signed=False)


@pytest.mark.parametrize("syntax", SYNTAXES[1:4], ids=lambda syntax: syntax.keyword)
def test_a_second_image_after_the_first_raises(syntax: UID) -> None:
    codestream = _encoded(_image(16), 16, syntax)
    with pytest.raises(ValueError, match="after the scan"):
        decode(codestream + codestream, syntax, SHAPE, 16, signed=False)


@pytest.mark.parametrize("syntax", SYNTAXES[1:4], ids=lambda syntax: syntax.keyword)
def test_fill_bytes_before_markers_do_no_harm(syntax: UID) -> None:
    values = _image(16)
    codestream = _encoded(values, 16, syntax)
    filled = codestream[:2] + b"\xff\xff" + codestream[2:]
    np.testing.assert_array_equal(decode(filled, syntax, SHAPE, 16, signed=False), values)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_another_size_than_the_header_says_raises(syntax: UID) -> None:
    with pytest.raises(DAMAGE):
        decode(_encoded(_image(16), 16, syntax), syntax, (SHAPE[0] + 1, SHAPE[1]), 16, signed=False)


def test_a_codestream_of_another_syntax_raises() -> None:
    codestream = _encoded(_image(16), 16, JPEGLSLossless)
    for syntax in (RLELossless, JPEGLossless, JPEG2000Lossless, JPEGBaseline8Bit):
        with pytest.raises(DAMAGE):
            decode(codestream, syntax, SHAPE, 16, signed=False)


def test_colours_raise() -> None:
    codestream = imagecodecs.jpegls_encode(np.stack([_image(16)] * 3, axis=-1))
    with pytest.raises(ValueError, match="another image"):
        decode(codestream, JPEGLSLossless, SHAPE, 16, signed=False)


def test_of_jpeg_2000_part_1_alone_is_decoded() -> None:
    """As the conformance statement says."""
    read = {syntax for syntax in READ if "2000" in syntax.name}
    assert read == {JPEG2000Lossless, JPEG2000}
