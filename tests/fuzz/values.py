"""Values that no header should hold."""

from __future__ import annotations

import struct

from numpy.random import Generator

NUMBERS = (
    b"NaN",
    b"nan",
    b"inf",
    b"-inf",
    b"Infinity",
    b"1e308",
    b"-1e308",
    b"1e400",
    b"1e-320",
    b"1e38",
    b"1e5",
    b"99999.9",
    b"100000.1",
    b"-1e5",
    b"0",
    b"-0",
    b"-1",
    b"1",
    b"2.5",
    b"65536",
    b"1000000",
    b"4294967296",
    b"-2147483649",
    b"9" * 400,
    b"-" + b"9" * 5000,
    b"1" * 70_000,
    b"1.5.2",
    b"1,5",
    b"1_000",
    b"0x10",
    b"1e",
    b"--1",
    b"abc",
    b"\\",
    b"\\\\\\",
    b"1\\2",
    b"1\\2\\3\\4\\5\\6\\7",
    b"1\\nan\\3",
    b"1\\\\3",
    b"0\\0\\0",
    b"0\\0\\0\\0\\0\\0",
    b"1\\0\\0\\0\\1\\inf",
    b"1\\0\\0\\0\\0.7071\\0.7071",
    b"1" + b"\\1" * 30_000,
    b"\0",
    b" ",
    b"",
    b"\xb2",
    "\uff11\uff12".encode(),
    b"1 000",
    b"+1.",
    b"1\n",
)
UIDS = (
    b"../../etc/passwd",
    b"/etc/passwd",
    b"..",
    b".",
    b"../../../../../../../../tmp/escaped",
    b"1.2/../../3",
    b"C:\\Windows",
    b"~",
    b"$(touch escaped)",
    b"1." * 32,
    b"1." * 5000 + b"1",
    b"1" * 64,
    b"1" * 65,
    b"1.02.3",
    b".1.2",
    b"1..2",
    b"1.2.",
    b"0",
    b"1.2\0.3",
    b"1.2\n.3",
    b" 1.2 ",
    b"1.2\\1.3",
    b"\xff\xfe",
    "1.\uff12".encode(),
    b"",
    b"\0",
    b"a" * 70_000,
)
TEXTS = (
    b"",
    b"\0",
    b" ",
    b"\\",
    b"\xff\xfe\xfd",
    "Ünïcødé".encode(),
    "山田^太郎".encode("shift_jis"),
    b"\x1b$B\x1b(B",
    b"\x1b$B;3ED\x1b(J\x1b",
    b"\x1b$)C" + b"\xa1" * 7,
    b"\xed\xa0\x80",
    b"%s%n%d{0}{}",
    b"x" * 65_000,
    b"x" * 70_000,
    b"\\".join([b"LOCALIZER"] * 4),
    b"ORIGINAL\\PRIMARY\\LOCALIZER",
    b"DERIVED\\SECONDARY\\MIP",
    b"HU",
    b"US",
    b"\n" * 20,
    b"=" * 20,
    b"^" * 20,
)
CHARACTER_SETS = (
    b"",
    b"ISO_IR 192",
    b"ISO_IR 100",
    b"ISO 2022 IR 87",
    b"\\ISO 2022 IR 87",
    b"ISO 2022 IR 149\\ISO 2022 IR 58",
    b"\\\\\\",
    b"ISO_IR 13\\ISO 2022 IR 87\\ISO 2022 IR 159",
    b"GB18030",
    b"GBK",
    b"ISO_IR 999",
    b"utf-7",
    b"idna",
    b"hex",
    b"rot13",
    b"unicode_escape",
    b"../../etc/passwd",
    b"\xff\xff",
    b"ISO-IR 100",
    b"ISO_IR 192\\ISO_IR 100",
    b"x" * 300,
)
_TAILS = (
    "  .1 .1.98 .1.99 .2 .5 .4.50 .4.51 .4.53 .4.57 .4.70 .4.80 .4.81 .4.90 .4.91 .4.92 .4.94 .4.95 .4.100 .4.102"
    " .4.110 .4.201 .4.203 .6.1 .7.1 .999"
)
SYNTAXES = (
    *(f"1.2.840.10008.1.2{tail}".encode() for tail in _TAILS[1:].split(" ")),
    *(b"", b"\0", b"1.2.3", b"../../etc/passwd", b"1." * 40),
)
CLASSES = (
    b"1.2.840.10008.5.1.4.1.1.2",
    b"1.2.840.10008.5.1.4.1.1.2.1",
    b"1.2.840.10008.5.1.4.1.1.2.2",
    b"1.2.840.10008.5.1.4.1.1.4",
    b"1.2.840.10008.5.1.4.1.1.7",
    b"1.2.840.10008.5.1.4.1.1.66.4",
    b"1.2.840.10008.1.3.10",
    b"",
    b"1.2.3",
)
LENGTHS = (0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 0x7FFFFFFF, 0x10000000, 0x10001, 0xFFFF, 0xFFFE, 0x100, 1, 0)
SHORTS = (0, 1, 2, 3, 7, 8, 11, 12, 13, 15, 16, 17, 24, 31, 32, 33, 63, 64, 80, 255, 4096, 4097, 32767, 32768, 65535)


def pick(rng: Generator, values: tuple) -> object:
    """Return one of the values."""
    return values[int(rng.integers(len(values)))]


def even(value: bytes, pad: bytes = b" ") -> bytes:
    """Pad a value to even length, as the standard wants it."""
    return value + pad[: len(value) % 2]


def short(value: int, order: str) -> bytes:
    """Write an unsigned number of 16 bits."""
    return struct.pack(f"{order}H", value & 0xFFFF)


def random_bytes(rng: Generator, most: int) -> bytes:
    """Return up to ``most`` random bytes."""
    return rng.bytes(int(rng.integers(most + 1)))
