"""Spoiling what makes a file an image: its size, its coding, where it lies, and the pixel data themselves."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

from numpy.random import Generator

from tests.fuzz.parts import (
    META,
    PIXEL_DATA,
    TRANSFER_SYNTAX,
    UNDEFINED,
    Coding,
    Element,
    Parts,
    encapsulated,
    fragments_of,
)
from tests.fuzz.values import (
    CHARACTER_SETS,
    CLASSES,
    LENGTHS,
    NUMBERS,
    SHORTS,
    SYNTAXES,
    UIDS,
    even,
    pick,
    random_bytes,
    short,
)

ImageMutator = Callable[[Generator, Parts], None]
_SIZES = (0x00280010, 0x00280011)
_SAMPLES = (0x00280002, 0x00280006, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
_UID_TAGS = (0x00080018, 0x0020000D, 0x0020000E, 0x00200052, 0x00080016)
_PHOTOMETRIC = (b"MONOCHROME1", b"RGB ", b"PALETTE COLOR ", b"YBR_FULL_422", b"YBR_RCT ", b"", b"XXXX", b"\xff\xff")
_HUGE = (0, 1, 7, 8, 9, 10, 11, 4096, 4097, 20_000, 65_500, 65_535)
_HUGE_LONG = (*_HUGE, 65_536, 100_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_BOMB_CHUNK = 16 << 20


def put(elements: list[Element], made: Element) -> None:
    """Replace an element, or insert it in the order of the tags."""
    for k, element in enumerate(elements):
        if element.tag == made.tag:
            elements[k] = made
            return
    place = next((k for k, element in enumerate(elements) if element.tag > made.tag), len(elements))
    elements.insert(place, made)


def _value(elements: list[Element], tag: int) -> bytes:
    return next((element.value for element in elements if element.tag == tag), b"")


# --- attributes ---


def size(rng: Generator, image: Parts) -> None:
    for tag in _SIZES if rng.random() < 0.5 else [pick(rng, _SIZES)]:
        put(image.data, Element(tag, b"US", short(pick(rng, _HUGE), image.coding.order)))


def samples(rng: Generator, image: Parts) -> None:
    for _ in range(int(rng.integers(1, 4))):
        put(image.data, Element(pick(rng, _SAMPLES), b"US", short(pick(rng, SHORTS), image.coding.order)))


def eight_bits_announced_as_sixteen(rng: Generator, image: Parts) -> None:
    allocated = pick(rng, (1, 8, 32, 64, 65535))
    for tag, value in ((0x00280100, allocated), (0x00280101, pick(rng, (12, 16, allocated)))):
        put(image.data, Element(tag, b"US", short(value, image.coding.order)))


def frames(rng: Generator, image: Parts) -> None:
    value = pick(
        rng, (b"1000000 ", b"0 ", b"-1", b"2 ", b"5 ", b"6 ", b"7 ", b"6\\6 ", b"2147483648", b"6.0 ", b"1e3 ")
    )
    put(image.data, Element(0x00280008, b"IS", value))


def photometric(rng: Generator, image: Parts) -> None:
    put(image.data, Element(0x00280004, b"CS", pick(rng, _PHOTOMETRIC)))


def syntax(rng: Generator, image: Parts) -> None:
    put(image.meta, Element(TRANSFER_SYNTAX, b"UI", even(pick(rng, SYNTAXES), b"\0")))


def sop_class(rng: Generator, image: Parts) -> None:
    put(image.data, Element(0x00080016, b"UI", even(pick(rng, CLASSES), b"\0")))


def identity(rng: Generator, image: Parts) -> None:
    value = even(pick(rng, UIDS), b"\0")
    put(image.data, Element(pick(rng, _UID_TAGS), b"UI" if len(value) < 0xFFFF else b"UR", value))


def character_set(rng: Generator, image: Parts) -> None:
    put(image.data, Element(0x00080005, b"CS", even(pick(rng, CHARACTER_SETS))))
    put(image.data, Element(0x00181210, b"SH", random_bytes(rng, 20)))
    if rng.random() < 0.5:
        put(image.data, Element(0x00100020, b"LO", pick(rng, (b"\x1b$B;3ED\x1b", b"\xff\xfe", b"\xe9t\xe9 "))))


def place(rng: Generator, image: Parts) -> None:
    tag, count = pick(
        rng, ((0x00200032, 3), (0x00200037, 6), (0x00280030, 2), (0x00181120, 1), (0x00180050, 1), (0x00200052, 1))
    )
    scale = pick(rng, (1.0, 1.0, 100.0, 1e-6, 1e-160, 1e6, 1e12, 1e150, 1e300))
    plain = [pick(rng, (0.0, 1.0, -1.0, float(rng.normal()))) * scale for _ in range(count)]
    put(image.data, Element(tag, b"DS", even("\\".join(f"{v:.6g}" for v in plain).encode())))


def rescale(rng: Generator, image: Parts) -> None:
    value = even(pick(rng, NUMBERS))
    vr = b"DS" if len(value) < 0xFFFF else b"UC"
    put(image.data, Element(pick(rng, (0x00281052, 0x00281053)), vr, value))


def padding(rng: Generator, image: Parts) -> None:
    for tag in (0x00280120, 0x00280121)[: int(rng.integers(1, 3))]:
        vr = pick(rng, (b"US", b"SS", b"SS", b"UL", b"SL", b"SV", b"UV", b"IS", b"DS", b"FD", b"OB", b"LO"))
        value = pick(rng, NUMBERS[:24]) if vr in (b"IS", b"DS", b"LO") else rng.bytes(pick(rng, (0, 1, 2, 2, 4, 8, 16)))
        put(image.data, Element(tag, vr, even(value)))


def shuffle(rng: Generator, image: Parts) -> None:
    order = rng.permutation(len(image.data))
    image.data[:] = [image.data[k] for k in order]


def drop_group(rng: Generator, image: Parts) -> None:
    group = pick(rng, (0x0002, 0x0008, 0x0018, 0x0020, 0x0028, 0x7FE0))
    image.meta[:] = [e for e in image.meta if e.tag >> 16 != group]
    image.data[:] = [e for e in image.data if e.tag >> 16 != group]


def other_coding(rng: Generator, image: Parts) -> None:
    """Write the elements otherwise than the transfer syntax says."""
    image.coding = Coding(pick(rng, ("<", ">")), bool(rng.random() < 0.5), bool(rng.random() < 0.2))


def bomb(rng: Generator, image: Parts) -> None:
    """Deflated: a few megabytes that grow to some gigabytes."""
    put(image.meta, Element(TRANSFER_SYNTAX, b"UI", b"1.2.840.10008.1.2.1.99"))
    chunks = pick(rng, (8, 80, 250))
    head = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    tag = pick(rng, (0x00091001, 0x00420011, 0xFFFCFFFC))
    plain = b"".join(
        struct.pack("<HH2sHL", e.tag >> 16, e.tag & 0xFFFF, b"UN", 0, len(e.value)) + e.value
        for e in image.data
        if e.tag < min(tag, PIXEL_DATA)
    )
    plain += struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"OB", 0, chunks * _BOMB_CHUNK)
    start = head.compress(plain) + head.flush(zlib.Z_FULL_FLUSH)
    image.start += b"".join(_meta(image)) + start + _zeros() * chunks + b"\3\0"
    image.meta.clear()
    image.data.clear()


def _meta(image: Parts) -> list[bytes]:
    return [Parts(b"", image.meta, [], META).to_bytes()]


@lru_cache(maxsize=1)
def _zeros() -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(bytes(_BOMB_CHUNK)) + compressor.flush(zlib.Z_FULL_FLUSH)


# --- pixel data ---


def pixel_length(rng: Generator, image: Parts) -> None:
    value = _value(image.data, PIXEL_DATA)
    value = pick(rng, (b"", value[:-1], value[:-2], value + b"\0\0", value * 2, value[: len(value) // 2], b"\0" * 3))
    length = pick(rng, (None, None, *LENGTHS))
    put(image.data, Element(PIXEL_DATA, pick(rng, (b"OW", b"OB", b"UN")), value, length))


def another_kind_of_pixels(rng: Generator, image: Parts) -> None:
    tag = pick(rng, (0x7FE00008, 0x7FE00009))
    kept = [e for e in image.data if e.tag != PIXEL_DATA]
    both = bool(rng.random() < 0.5)
    image.data[:] = image.data if both else kept
    put(image.data, Element(tag, pick(rng, (b"OF", b"OD")), rng.bytes(pick(rng, (80, 320, 640)))))


def fragment_table(rng: Generator, image: Parts) -> None:
    fragments = fragments_of(_value(image.data, PIXEL_DATA))
    if len(fragments) < 2:
        return
    match int(rng.integers(8)):
        case 0:
            fragments[0] = struct.pack("<L", pick(rng, (0, 1, 2, 0xFFFFFFFF, 0xFFFFFFFE))) * int(rng.integers(1, 9))
        case 1:
            fragments[0] = random_bytes(rng, 30)
        case 2:
            del fragments[int(rng.integers(len(fragments)))]
        case 3:
            fragments.insert(int(rng.integers(len(fragments) + 1)), random_bytes(rng, 30))
        case 4:
            k = int(rng.integers(1, len(fragments)))
            half = len(fragments[k]) // 2
            fragments[k : k + 1] = [fragments[k][:half], fragments[k][half:]]
        case 5:
            fragments.extend([b""] * pick(rng, (1, 10, 1000)))
        case 6:
            fragments[1:] = fragments[1:] * pick(rng, (2, 3, 100 if len(fragments[1]) < 1000 else 4))
        case _:
            fragments[1:] = [b"".join(fragments[1:])]
    value = encapsulated(fragments)
    put(image.data, Element(PIXEL_DATA, b"OB", value if rng.random() < 0.8 else value[:-8], UNDEFINED))


def fragment_lengths(rng: Generator, image: Parts) -> None:
    value = bytearray(_value(image.data, PIXEL_DATA))
    places = [match.start() for match in re.finditer(b"\xfe\xff\x00\xe0", value[:-8])]
    if places:
        struct.pack_into("<L", value, places[int(rng.integers(len(places)))] + 4, pick(rng, LENGTHS))
        put(image.data, Element(PIXEL_DATA, b"OB", bytes(value), UNDEFINED))


def extended_offsets(rng: Generator, image: Parts) -> None:
    count = pick(rng, (1, 6, 1000))
    values = [int(rng.integers(1 << 63)) if rng.random() < 0.3 else pick(rng, (0, 8, 1 << 40)) for _ in range(count)]
    put(image.data, Element(0x7FE00001, b"OV", struct.pack(f"<{count}Q", *values)))
    put(image.data, Element(0x7FE00002, b"OV", struct.pack(f"<{count}Q", *values[::-1])))


def _codestreams(image: Parts) -> list[bytes]:
    return fragments_of(_value(image.data, PIXEL_DATA))


def _put_codestreams(image: Parts, fragments: list[bytes]) -> None:
    value = encapsulated([even(each, b"\0") for each in fragments])
    put(image.data, Element(PIXEL_DATA, b"OB", value, UNDEFINED))


def codestream_bytes(rng: Generator, image: Parts) -> None:
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        spoilt = bytearray(fragments[k])
        for _ in range(pick(rng, (1, 1, 2, 5))):
            if spoilt:
                most = min(len(spoilt), pick(rng, (32, 64, 200, 1 << 30)))
                spoilt[int(rng.integers(most))] = pick(rng, (0, 1, 0x7F, 0x80, 0xFE, 0xFF, int(rng.integers(256))))
        fragments[k] = bytes(spoilt)
    _put_codestreams(image, fragments)


def codestream_cut(rng: Generator, image: Parts) -> None:
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        length = int(rng.integers(len(fragments[k]) + 1))
        tail = pick(rng, (b"", b"\xff\xd9", random_bytes(rng, 40), fragments[k][length // 2 :]))
        fragments[k] = fragments[k][:length] + tail
    _put_codestreams(image, fragments)


def codestream_size(rng: Generator, image: Parts) -> None:
    """Make the codestream announce another size than the header."""
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        fragments[k] = _resized(rng, fragments[k])
    _put_codestreams(image, fragments)
    if rng.random() < 0.3:
        size(rng, image)


def _resized(rng: Generator, codestream: bytes) -> bytes:
    spoilt = bytearray(codestream)
    for place in _frame_headers(codestream):
        if spoilt[place + 1] == 0x51:
            fields = [place + 6 + 4 * k for k in range(8) if rng.random() < 0.35]
            for each in fields:
                spoilt[each : each + 4] = struct.pack(">L", pick(rng, _HUGE_LONG))
        else:
            for each in [place + 5, place + 7][int(rng.integers(2)) - 1 :]:
                spoilt[each : each + 2] = struct.pack(">H", pick(rng, _HUGE))
    return bytes(spoilt[: len(codestream)])


def _frame_headers(codestream: bytes) -> list[int]:
    """Return where JPEG, JPEG-LS or JPEG 2000 announce the size of the image."""
    kinds = (0x51, 0xC0, 0xC1, 0xC3, 0xF7)
    return [k for k in range(min(len(codestream) - 48, 1000)) if codestream[k] == 0xFF and codestream[k + 1] in kinds][
        :1
    ]


def codestream_components(rng: Generator, image: Parts) -> None:
    """Make the codestream announce other components or bits than it has."""
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        spoilt = bytearray(fragments[k])
        for place in _frame_headers(fragments[k]):
            offsets = (4, 9, 10, 11, 12) if spoilt[place + 1] != 0x51 else (38, 39, 40, 41, 42)
            spoilt[place + pick(rng, offsets)] = pick(rng, (0, 1, 2, 3, 8, 12, 17, 38, 255, int(rng.integers(256))))
        fragments[k] = bytes(spoilt)
    _put_codestreams(image, fragments)


def codestream_presets(rng: Generator, image: Parts) -> None:
    """Spoil the coding parameters of JPEG-LS: largest value, three thresholds, reset; or near and interleave."""
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        spoilt = bytearray(fragments[k])
        place = spoilt.find(b"\xff\xf8", 0, 200)
        if place >= 0 and len(spoilt) > place + 28:
            for field in range(5):
                if rng.random() < 0.4:
                    struct.pack_into(">H", spoilt, place + 5 + 2 * field, pick(rng, SHORTS))
            if rng.random() < 0.3:
                spoilt[place + 22 + int(rng.integers(3))] = pick(rng, (0, 1, 2, 3, 127, 254, 255))
        fragments[k] = bytes(spoilt)
    _put_codestreams(image, fragments)


def codestream_segment(rng: Generator, image: Parts) -> None:
    """Insert a marker segment: parameters, restart intervals, tables, comments, a second frame header."""
    fragments = _codestreams(image)
    marker = pick(rng, (0xF8, 0xDD, 0xC4, 0xDB, 0xFE, 0xE8, 0xC3, 0xF7, 0xDA, 0x52, 0x5C, 0x51, 0x58, 0x90, 0xDC, 0xCC))
    body = _segment(rng, marker)
    length = len(body) + 2 if rng.random() < 0.8 else pick(rng, (0, 1, 2, 3, 65535))
    for k in range(1, len(fragments)):
        place = int(rng.integers(2, 60)) if rng.random() < 0.3 else 2
        made = bytes((0xFF, marker)) + struct.pack(">H", length & 0xFFFF) + body
        fragments[k] = fragments[k][:place] + made + fragments[k][place:]
    _put_codestreams(image, fragments)


def _segment(rng: Generator, marker: int) -> bytes:
    match marker:
        case 0xF8 if rng.random() < 0.5:  # presets: largest value, three thresholds, reset
            return b"\1" + b"".join(struct.pack(">H", pick(rng, SHORTS)) for _ in range(5))
        case 0xF8:  # a size beyond 16 bits
            return b"\4\4" + struct.pack(">LL", pick(rng, _HUGE_LONG), pick(rng, _HUGE_LONG))
        case 0xDD | 0xDC:
            return struct.pack(">H", pick(rng, _HUGE))
        case 0xC3 | 0xF7:
            return b"\x10" + struct.pack(">HH", pick(rng, _HUGE), pick(rng, _HUGE)) + b"\1\1\x11\0"
    return random_bytes(rng, 40)


def run_lengths(rng: Generator, image: Parts) -> None:
    """Spoil the header of a run-length encoded frame: number and offsets of its segments."""
    fragments = _codestreams(image)
    for k in range(1, len(fragments)):
        spoilt = bytearray(fragments[k].ljust(64, b"\0"))
        field = 4 * int(rng.integers(4))
        struct.pack_into("<L", spoilt, field, pick(rng, (0, 1, 2, 3, 15, 16, 63, 64, 65, 0x7FFFFFFF, 0xFFFFFFFF)))
        fragments[k] = bytes(spoilt)
    _put_codestreams(image, fragments)


def run_of_bytes(rng: Generator, image: Parts) -> None:
    """Replace a run-length encoded frame by one that says more, or less, than the image holds."""
    runs = bytes((0x81, 7)) * pick(rng, (0, 1, 1000, 100_000))
    header = struct.pack("<16L", 2, 64, 64 + len(runs), *[0] * 13)
    _put_codestreams(image, [b"", header + runs + runs])


IMAGE_MUTATORS: tuple[ImageMutator, ...] = (
    size,
    samples,
    eight_bits_announced_as_sixteen,
    frames,
    photometric,
    syntax,
    sop_class,
    identity,
    character_set,
    place,
    place,
    rescale,
    padding,
    shuffle,
    drop_group,
    other_coding,
    pixel_length,
    another_kind_of_pixels,
)
CODESTREAM_MUTATORS: tuple[ImageMutator, ...] = (
    fragment_table,
    fragment_lengths,
    extended_offsets,
    codestream_bytes,
    codestream_bytes,
    codestream_bytes,
    codestream_cut,
    codestream_size,
    codestream_size,
    codestream_components,
    codestream_segment,
    codestream_presets,
    run_lengths,
    run_of_bytes,
)
