"""Loaders that do what none may do: each kind of failure must be noticed."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np

from operators.refusal import InputRefused, ReasonCode


def accept(folder: Path, number: int) -> None:
    """Do what is right."""


def refuse(folder: Path, number: int) -> None:
    """Do what is right, too."""
    raise InputRefused(ReasonCode.NO_DICOM, "Nothing here.")


def segfault(folder: Path, number: int) -> None:
    ctypes.string_at(0)


def abort(folder: Path, number: int) -> None:
    os.abort()


def leave(folder: Path, number: int) -> None:
    os._exit(0)


def hang(folder: Path, number: int) -> None:
    while True:
        time.sleep(1.0)


def raise_value_error(folder: Path, number: int) -> None:
    raise ValueError("not foreseen")


def raise_system_exit(folder: Path, number: int) -> None:
    sys.exit("not foreseen")


def recurse(folder: Path, number: int) -> None:
    recurse(folder, number)


def write_into_the_folder(folder: Path, number: int) -> None:
    (folder / "result").write_text("here I was")


def change_a_file(folder: Path, number: int) -> None:
    """Without Python, as a library of C would."""
    for path in folder.rglob("*.dcm"):
        if path.is_file() and not path.is_symlink():
            ctypes.CDLL(None).truncate(os.fsencode(path), ctypes.c_long(1))


def write_and_remove(folder: Path, number: int) -> None:
    path = folder.parent / "fleeting"
    path.write_text("here I was")
    path.unlink()


def write_where_it_works(folder: Path, number: int) -> None:
    """Without Python, as a library of C would."""
    ctypes.CDLL(None).creat(b"here", 0o600)


def write_at_home(folder: Path, number: int) -> None:
    ctypes.CDLL(None).creat(os.fsencode(Path.home() / "here"), 0o600)


def start_a_program(folder: Path, number: int) -> None:
    os.system("true")  # noqa: S605


def allocate(folder: Path, number: int) -> None:
    bytearray(64 << 30)


def allocate_and_refuse(folder: Path, number: int) -> None:
    try:
        bytearray(64 << 30)
    except MemoryError as error:
        raise InputRefused(ReasonCode.UNDECODABLE, "Too large.") from error


def allocate_in_silence(folder: Path, number: int) -> None:
    """Take memory, but return it, and no more than is there."""
    np.ones(210 << 20, np.uint8)


def ask_in_silence(folder: Path, number: int) -> None:
    """Ask for memory without touching it."""
    np.empty(210 << 20, np.uint8)
