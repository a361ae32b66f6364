"""Spoiling single elements of a data set: each mutator puts others, or none, in the place of one."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

from tests.fuzz.parts import LONG_VRS, UNDEFINED, Coding, Element, items_of, nested, sequence
from tests.fuzz.values import LENGTHS, NUMBERS, SHORTS, TEXTS, UIDS, even, pick, random_bytes, short

ElementMutator = Callable[[Generator, Element, Coding], list[Element]]
_VRS = tuple(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_NO_VRS = (b"  ", b"\0\0", b"ZZ", b"us", b"??")


def _tags(words: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in words.split())


_IMPORTANT = _tags(
    "00020010 00020002 00080005 00080008 00080016 00080018 00080032 00080060 00100020 00180015 00180050 "
    "00181120 00181210 0020000D 0020000E 00200011 00200012 00200013 00200032 00200037 00200052 00200100 "
    "00280002 00280004 00280006 00280008 00280010 00280011 00280030 00280100 00280101 00280102 00280103 "
    "00280120 00280121 00281052 00281053 00281054 52009229 52009230 00209113 00209116 00289110 00289145 "
    "00209111 00189329 7FE00010"
)
_DEPTHS = (2, 20, 150, 250, 330, 500, 990, 1000, 3000, 6000)
_TAGS = _tags(
    "00040000 00080000 00091001 00090010 00181023 00200000 00280008 00291001 00400275 00540220 00880200 "
    "52009230 60003000 7FDFFFFF 7FE00001 7FE00008 7FE00009 7FE00010 FFFCFFFC FFFEE000 FFFEE00D FFFEE0DD "
    "FFFFFFFF 00000000 00020010 00080005 00100020"
)


def spoil_one(rng: Generator, elements: list[Element], coding: Coding, mutate: ElementMutator) -> None:
    """Spoil one element, mostly one that matters, perhaps one inside a sequence."""
    if not elements:
        return
    weighty = [k for k, element in enumerate(elements) if element.tag in _IMPORTANT]
    places = weighty if weighty and rng.random() < 0.7 else range(len(elements))
    k = places[int(rng.integers(len(places)))]
    items = items_of(elements[k], coding) if rng.random() < 0.8 else None
    if items and any(items):
        inner = items[int(rng.integers(len(items)))]
        spoil_one(rng, inner, coding, mutate)
        elements[k] = sequence(elements[k].tag, items, coding)
    else:
        elements[k : k + 1] = mutate(rng, elements[k], coding)


def delete(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return []


def empty(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return [element._replace(value=b"", length=None)]


def double(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return [element, element._replace(value=random_bytes(rng, 40)) if rng.random() < 0.5 else element]


def other_vr(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return [element._replace(vr=pick(rng, (*_VRS, *_NO_VRS)))]


def absurd_length(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    length = int(rng.integers(1 << 32)) if rng.random() < 0.2 else pick(rng, LENGTHS)
    if coding.explicit and element.vr not in LONG_VRS and rng.random() < 0.7:
        element = element._replace(vr=b"UN")  # only long forms can announce gigabytes
    return [element._replace(length=length)]


def slightly_other_length(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return [element._replace(length=max(0, len(element.value) + int(rng.integers(-9, 10))))]


def number(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    value = even(pick(rng, NUMBERS))
    if element.vr in LONG_VRS or len(value) < 0xFFFF or not coding.explicit:
        return [element._replace(value=value, length=None)]
    return [element._replace(vr=b"UC", value=value, length=None)]


def small_integer(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    count = pick(rng, (1, 1, 1, 1, 0, 2, 3))
    value = b"".join(short(pick(rng, SHORTS), coding.order) for _ in range(count))
    return [element._replace(value=value, length=None)]


def uid(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return _texted(element, even(pick(rng, UIDS), b"\0"))


def text(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return _texted(element, even(pick(rng, TEXTS)))


def _texted(element: Element, value: bytes) -> list[Element]:
    vr = b"UT" if len(value) > 0xFFFF and element.vr not in LONG_VRS else element.vr
    return [element._replace(vr=vr, value=value, length=None)]


def garbage(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    return [element._replace(value=random_bytes(rng, 64), length=None)]


def multiplicity(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    values = element.value.split(b"\\")
    count = pick(rng, (0, 1, 2, 3, 5, 7, 40))
    value = b"\\".join((values * count)[:count]) if rng.random() < 0.5 else element.value * count
    return [element._replace(value=value[:60_000], length=None)]


def nest(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    undefined = bool(rng.random() < 0.5)
    value = nested(pick(rng, _DEPTHS), coding, undefined=undefined)
    tag = element.tag if rng.random() < 0.5 else pick(rng, (0x00400275, 0x00091001, 0x00081140, 0x52009230))
    made = Element(tag, b"SQ", value, UNDEFINED if undefined else None)
    return [made] if tag == element.tag else [element, made]


def insert(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    size = pick(rng, (0, 1, 2, 8, 100, 66_000))
    tag = pick(rng, _TAGS) if rng.random() < 0.7 else int(rng.integers(1 << 32))
    vr = pick(rng, _VRS) if size < 66_000 else pick(rng, (b"OB", b"UN", b"OW", b"UT", b"SQ"))
    return [Element(tag, vr, rng.bytes(size) if rng.random() < 0.5 else bytes(size)), element]


def many(rng: Generator, element: Element, coding: Coding) -> list[Element]:
    """Put thousands of elements, or of items in a sequence."""
    count = pick(rng, (300, 3000))
    if rng.random() < 0.5:
        return [element, *(Element(0x00290000 + k, b"LO", b"x ") for k in range(0x1000, 0x1000 + count))]
    inner = [Element(0x00080100, b"SH", b"1 ")]
    return [sequence(pick(rng, (0x00400275, 0x52009230, 0x52009229)), [inner] * count, coding), element]


ELEMENT_MUTATORS: tuple[ElementMutator, ...] = (
    delete,
    empty,
    double,
    other_vr,
    absurd_length,
    slightly_other_length,
    number,
    number,
    small_integer,
    uid,
    text,
    garbage,
    multiplicity,
    nest,
    insert,
    many,
)
