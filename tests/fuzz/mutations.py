"""Cases: folders that differ from well-formed ones by one to four mutations, the same ones for the same seed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from tests.fuzz.corpus import REAL, SYNTHETIC, Corpus
from tests.fuzz.elements import ELEMENT_MUTATORS, ElementMutator, spoil_one
from tests.fuzz.images import CODESTREAM_MUTATORS, IMAGE_MUTATORS, ImageMutator, bomb
from tests.fuzz.parts import META, Parts
from tests.fuzz.values import pick, random_bytes

T = TypeVar("T")
MOST_MUTATIONS = 4
REAL_SHARE = 0.08
"""Real images are large, so their cases are slow."""
_COMPRESSED = ("rle", "jpeg", "real_4")
_LINK_TARGETS = (
    "nowhere",
    ".",
    "..",
    "../..",
    "x.dcm",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "/proc/self/environ",
    "/etc/passwd",
    "n" * 300,
    "n/" * 2000,
)
_FILE_NAMES = (
    "DICOMDIR",
    ".hidden.dcm",
    "IM0000.DCM",
    "new\nline.dcm",
    "-rf",
    "~",
    "%s%n.dcm",
    "n" * 255,
    "ünïcødé.dcm",
    os.fsdecode(b"\xff\xfe.dcm"),
    "7",
    "x.ima",
    "deep/" * 40 + "x.dcm",
)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Pipe:
    """A named pipe, which nobody writes to."""


Entry = bytes | Link | Pipe | None
"""What a path holds: a file, a link, a pipe or an empty folder."""
Folder = dict[str, Entry]
BytesMutator = Callable[[Generator, bytearray], None]
FolderMutator = Callable[[Generator, Folder], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One folder to load.

    Parameters
    ----------
    seed : int
        What it was made from.
    base : str
        The well-formed folder that was spoilt.
    mutations : tuple of str
        How, in this order.
    folder : dict
        Path to content; empty where the base is not here.
    """

    seed: int
    base: str
    mutations: tuple[str, ...]
    folder: Folder

    @property
    def name(self) -> str:
        """All that identifies the case."""
        return f"--seed {self.seed} --cases 1: {self.base}, {' + '.join(self.mutations) or 'nothing'}"

    def write(self, target: Path) -> None:
        """Write the folder."""
        target.mkdir(parents=True)
        for name, entry in self.folder.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            match entry:
                case bytes():
                    path.write_bytes(entry)
                case Link():
                    path.symlink_to(entry.target)
                case Pipe():
                    os.mkfifo(path)
                case None:
                    path.mkdir(exist_ok=True)


# --- bytes of a file ---


def flip_bits(rng: Generator, data: bytearray) -> None:
    for _ in range(pick(rng, (1, 1, 3, 10, 100))):
        if data:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def flip_bytes(rng: Generator, data: bytearray) -> None:
    for _ in range(pick(rng, (1, 1, 3, 10, 100))):
        if data:
            data[int(rng.integers(len(data)))] = pick(rng, (0, 0xFF, 0x7F, 0x80, int(rng.integers(256))))


def truncate(rng: Generator, data: bytearray) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


def insert_garbage(rng: Generator, data: bytearray) -> None:
    place = int(rng.integers(len(data) + 1))
    data[place:place] = random_bytes(rng, 200)


def remove_bytes(rng: Generator, data: bytearray) -> None:
    place = int(rng.integers(len(data) + 1))
    del data[place : place + int(rng.integers(1, 50))]


def repeat_bytes(rng: Generator, data: bytearray) -> None:
    place = int(rng.integers(len(data) + 1))
    data[place:place] = data[place : place + int(rng.integers(1, 400))] * pick(rng, (1, 2, 20))


def append_garbage(rng: Generator, data: bytearray) -> None:
    tails = (
        random_bytes(rng, 300),
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\xfc\xff\xfc\xffOB\0\0",
        b"\xfc\xff\xfc\xffOB\0\0\xff",
    )
    data += pick(rng, tails)


def absurd_number(rng: Generator, data: bytearray) -> None:
    """Put a large number wherever a length or an offset may be."""
    if len(data) > 8:
        place = int(rng.integers(len(data) - 4))
        struct.pack_into("<L", data, place, pick(rng, (0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFF)))


BYTES_MUTATORS: tuple[BytesMutator, ...] = (
    flip_bits,
    flip_bytes,
    truncate,
    insert_garbage,
    remove_bytes,
    repeat_bytes,
    append_garbage,
    absurd_number,
)


# --- files of a folder ---


def _any_file(rng: Generator, folder: Folder) -> str | None:
    names = [name for name, entry in folder.items() if isinstance(entry, bytes)]
    return pick(rng, tuple(names)) if names else None


def _any_bytes(rng: Generator, folder: Folder) -> bytes:
    name = _any_file(rng, folder)
    return bytes(folder[name]) if name else b""


def duplicate(rng: Generator, folder: Folder) -> None:
    for _ in range(pick(rng, (1, 1, 2, 6))):
        folder[f"again{len(folder)}.dcm"] = _any_bytes(rng, folder)


def almost_duplicate(rng: Generator, folder: Folder) -> None:
    """Add a file that equals another one, but for a few bytes or a tail."""
    data = bytearray(_any_bytes(rng, folder))
    pick(rng, (flip_bytes, append_garbage, insert_garbage))(rng, data)
    folder[f"again{len(folder)}.dcm"] = bytes(data)


def everything_twice(rng: Generator, folder: Folder) -> None:
    for name, entry in list(folder.items()):
        folder[f"backup/{name}"] = entry


def crowd(rng: Generator, folder: Folder) -> None:
    """Add many files that differ from one in their pixels and SOP Instance UID."""
    data = bytearray(_any_bytes(rng, folder))
    place = data.find(b"\x08\x00\x18\x00") + 40
    for k in range(pick(rng, (3, 30, 200)) if len(data) < 10_000 else 3):
        if 40 <= place < len(data) - 4:
            data[place : place + 4] = b"%04d" % k
            data[-3:-1] = struct.pack("<H", k)
        folder[f"crowd/{k}.dcm"] = bytes(data)


def lose_files(rng: Generator, folder: Folder) -> None:
    for _ in range(pick(rng, (1, 1, 2, 5))):
        folder.pop(_any_file(rng, folder), None)


def link(rng: Generator, folder: Folder) -> None:
    names = tuple(folder)
    target = pick(rng, (*_LINK_TARGETS, *names))
    folder[f"{pick(rng, ('x.dcm', 'x', 'sub/x.dcm'))}"] = Link(target)


def pipe(rng: Generator, folder: Folder) -> None:
    folder["pipe.dcm"] = Pipe()


def rename(rng: Generator, folder: Folder) -> None:
    name = _any_file(rng, folder)
    if name:
        folder[pick(rng, _FILE_NAMES)] = folder.pop(name)


def stray_file(rng: Generator, folder: Folder) -> None:
    preamble = bytes(128) + b"DICM"
    contents = (b"", bytes(5000), b"DICM", preamble, b"\2\0", b"\x08\0" * 100, preamble + rng.bytes(200), b"hello")
    folder[pick(rng, ("stray", "stray.dcm", "stray.txt", "sub/stray.dcm"))] = pick(rng, contents)


def swap_contents(rng: Generator, folder: Folder) -> None:
    """Give a file the second half of another."""
    one, other = _any_file(rng, folder), _any_bytes(rng, folder)
    if one:
        data = bytes(folder[one])
        folder[one] = data[: len(data) // 2] + other[len(other) // 2 :]


def empty_folder(rng: Generator, folder: Folder) -> None:
    folder["IM0000.dcm" if rng.random() < 0.2 and "IM0000.dcm" not in folder else "nothing.dcm"] = None


FOLDER_MUTATORS: tuple[FolderMutator, ...] = (
    duplicate,
    almost_duplicate,
    almost_duplicate,
    everything_twice,
    crowd,
    lose_files,
    link,
    pipe,
    rename,
    stray_file,
    swap_contents,
    empty_folder,
)


# --- cases ---


def make_case(corpus: Corpus, seed: int) -> Case:
    """Make the case of a seed."""
    rng = np.random.default_rng(seed)
    base = pick(rng, REAL if rng.random() < REAL_SHARE else SYNTHETIC)
    plan = [_choose(rng, base) for _ in range(int(rng.integers(1, MOST_MUTATIONS + 1)))]
    plan.sort(key=lambda step: step[0])
    names = tuple(mutator.__name__ for _, mutator in plan)
    if base not in corpus:
        return Case(seed, base, names, {})
    images = {name: image.copy() for name, image in corpus[base].items()}
    for _, mutator in (step for step in plan if step[0] < 2):
        _on_some(rng, list(images.values()), mutator)
    folder: Folder = {name: image.to_bytes() for name, image in images.items()}
    for kind, mutator in (step for step in plan if step[0] >= 2):
        if kind == 2:
            _on_bytes(rng, folder, mutator)
        else:
            mutator(rng, folder)
    return Case(seed, base, names, folder)


def _choose(rng: Generator, base: str) -> tuple[int, Callable]:
    """Return a mutator and its kind: of elements 0, of images 1, of bytes 2, of folders 3."""
    kind = rng.random()
    if kind < 0.35:
        return 0, pick(rng, ELEMENT_MUTATORS)
    if kind < 0.7:
        compressed = any(word in base for word in _COMPRESSED) and rng.random() < 0.7
        return 1, pick(rng, CODESTREAM_MUTATORS if compressed else IMAGE_MUTATORS)
    if kind < 0.703:
        return 1, bomb
    if kind < 0.86:
        return 2, pick(rng, BYTES_MUTATORS)
    return 3, pick(rng, FOLDER_MUTATORS)


def _on_some(rng: Generator, images: list[Parts], mutator: ElementMutator | ImageMutator) -> None:
    """Spoil one, some or all files, in the same way or each in its own: what is equal is not found out at once."""
    for image, own in _chosen(rng, images):
        if mutator in ELEMENT_MUTATORS:
            meta = own.random() < 0.1
            spoil_one(own, image.meta if meta else image.data, META if meta else image.coding, mutator)
        else:
            mutator(own, image)


def _on_bytes(rng: Generator, folder: Folder, mutator: BytesMutator) -> None:
    names = [name for name, entry in folder.items() if isinstance(entry, bytes)]
    for name, own in _chosen(rng, names):
        data = bytearray(folder[name])
        mutator(own, data)
        folder[name] = bytes(data)


def _chosen(rng: Generator, things: list[T]) -> list[tuple[T, Generator]]:
    if not things:
        return []
    share = pick(rng, (0.0, 0.0, 0.4, 1.0, 1.0))
    alike, seed = rng.random() < 0.6, int(rng.integers(1 << 62))
    some = [thing for thing in things if rng.random() < share] or [things[int(rng.integers(len(things)))]]
    return [(thing, np.random.default_rng(seed if alike else seed + k)) for k, thing in enumerate(some)]
