"""DICOM files taken apart into elements that can be spoilt one by one, and put together again, right or wrong."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
TRANSFER_SYNTAX = 0x00020010
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PREAMBLE = 128


class Coding(NamedTuple):
    """How elements are written."""

    order: str = "<"
    explicit: bool = True
    deflated: bool = False


META = Coding()
_CODINGS = {
    b"1.2.840.10008.1.2": Coding(explicit=False),
    b"1.2.840.10008.1.2.2": Coding(order=">"),
    b"1.2.840.10008.1.2.1.99": Coding(deflated=True),
}


class Element(NamedTuple):
    """One element; ``length`` is what it announces where that is not the length of its value."""

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None


@dataclass(slots=True)
class Parts:
    """One file: what comes before the elements, file meta information, data set; all in ``start`` if unintelligible."""

    start: bytes
    meta: list[Element] = field(default_factory=list)
    data: list[Element] = field(default_factory=list)
    coding: Coding = META

    def copy(self) -> Parts:
        """Return an independent copy."""
        return replace(self, meta=list(self.meta), data=list(self.data))

    def to_bytes(self) -> bytes:
        """Put the file together."""
        data = joined(self.data, self.coding)
        return self.start + joined(self.meta, META) + (deflated(data) if self.coding.deflated else data)


def deflated(data: bytes) -> bytes:
    """Compress as the deflated transfer syntax does."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def joined(elements: list[Element], coding: Coding) -> bytes:
    """Write elements one after the other."""
    return b"".join(_written(element, coding) for element in elements)


def _written(element: Element, coding: Coding) -> bytes:
    length = len(element.value) if element.length is None else element.length
    head = struct.pack(f"{coding.order}HH", element.tag >> 16, element.tag & 0xFFFF)
    if not coding.explicit:
        return head + struct.pack(f"{coding.order}L", length & UNDEFINED) + element.value
    if element.vr in LONG_VRS:
        return head + element.vr + struct.pack(f"{coding.order}HL", 0, length & UNDEFINED) + element.value
    return head + element.vr + struct.pack(f"{coding.order}H", length & 0xFFFF) + element.value


def taken_apart(data: bytes, bare: Coding = META) -> Parts:
    """Take a file apart; ``bare`` is how the elements of one without file meta information are written."""
    try:
        return _taken_apart(data, bare)
    except (ValueError, struct.error, zlib.error, RecursionError):
        return Parts(data)


def _taken_apart(data: bytes, bare: Coding) -> Parts:
    start = data[: _PREAMBLE + 4] if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else b""
    if not start:
        return Parts(b"", [], _elements(data, bare), bare)
    end = len(start)
    while data[end : end + 2] == b"\2\0":
        end = _next(data, end, META)
    meta = _elements(data[len(start) : end], META)
    syntax = next((e.value.rstrip(b"\0") for e in meta if e.tag == TRANSFER_SYNTAX), b"")
    coding = _CODINGS.get(syntax, META)
    rest = zlib.decompress(data[end:], -zlib.MAX_WBITS) if coding.deflated else data[end:]
    return Parts(start, meta, _elements(rest, coding), coding)


def _elements(data: bytes, coding: Coding) -> list[Element]:
    found, offset = [], 0
    while offset < len(data):
        end = _next(data, offset, coding)
        tag, vr, length, value = _head(data, offset, coding)
        found.append(Element(tag, vr, data[value:end], UNDEFINED if length == UNDEFINED else None))
        offset = end
    return found


def _head(data: bytes, offset: int, coding: Coding) -> tuple[int, bytes, int, int]:
    """Return tag, VR and announced length of an element or item, and where its value begins."""
    group, number = struct.unpack_from(f"{coding.order}HH", data, offset)
    tag = group << 16 | number
    if not coding.explicit or group == 0xFFFE:
        return tag, b"", struct.unpack_from(f"{coding.order}L", data, offset + 4)[0], offset + 8
    vr = data[offset + 4 : offset + 6]
    if not vr.isalpha():
        raise ValueError("no VR")
    if vr in LONG_VRS:
        return tag, vr, struct.unpack_from(f"{coding.order}L", data, offset + 8)[0], offset + 12
    return tag, vr, struct.unpack_from(f"{coding.order}H", data, offset + 6)[0], offset + 8


def _next(data: bytes, offset: int, coding: Coding) -> int:
    """Return where the element or item at ``offset`` ends."""
    tag, _, length, value = _head(data, offset, coding)
    if length != UNDEFINED:
        if value + length > len(data):
            raise ValueError("cut off")
        return value + length
    last = _ITEM_END if tag == _ITEM else _SEQUENCE_END
    while True:
        inner = _head(data, value, coding)[0]
        value = _next(data, value, coding)
        if inner == last:
            return value


def items_of(element: Element, coding: Coding) -> list[list[Element]] | None:
    """Return the items of a sequence; None for what is none."""
    if element.vr not in (b"SQ", b"") or len(element.value) < 8:
        return None
    try:
        items = []
        for item in _elements(element.value, coding):
            if item.tag == _SEQUENCE_END:
                break
            if item.tag != _ITEM:
                return None
            inner = _elements(item.value, coding)
            items.append([e for e in inner if e.tag != _ITEM_END])
    except (ValueError, struct.error, RecursionError):
        return None
    return items


def sequence(tag: int, items: list[list[Element]], coding: Coding) -> Element:
    """Make a sequence of known lengths."""
    value = b"".join(_item(joined(item, coding), coding.order) for item in items)
    return Element(tag, b"SQ", value)


def nested(depth: int, coding: Coding, *, undefined: bool) -> bytes:
    """Return the value of a sequence that holds a sequence that holds a sequence ..."""
    if undefined:
        opening = _mark(_ITEM, UNDEFINED, coding.order) + _written(Element(0x00400275, b"SQ", b"", UNDEFINED), coding)
        closing = _mark(_ITEM_END, 0, coding.order) + _mark(_SEQUENCE_END, 0, coding.order)
        return opening * depth + _mark(_SEQUENCE_END, 0, coding.order) + closing * depth
    step = 8 + len(_written(Element(0x00400275, b"SQ", b""), coding))
    levels = [
        _mark(_ITEM, step * left - 8, coding.order)
        + _written(Element(0x00400275, b"SQ", b"", step * (left - 1)), coding)
        for left in range(depth, 0, -1)
    ]
    return b"".join(levels)


def fragments_of(value: bytes) -> list[bytes]:
    """Return offset table and fragments of encapsulated pixel data; none where they are unintelligible."""
    found, offset = [], 0
    while offset + 8 <= len(value) and value[offset : offset + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(value[offset + 4 : offset + 8], "little")
        found.append(value[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return found


def encapsulated(fragments: list[bytes]) -> bytes:
    """Write offset table and fragments as the value of Pixel Data."""
    return b"".join(_item(each, "<") for each in fragments) + _mark(_SEQUENCE_END, 0, "<")


def _item(value: bytes, order: str) -> bytes:
    return _mark(_ITEM, len(value), order) + value


def _mark(tag: int, length: int, order: str) -> bytes:
    return struct.pack(f"{order}HHL", tag >> 16, tag & 0xFFFF, length)
