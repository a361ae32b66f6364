"""Where received instances lie, and what must be true before a sender is told that they do."""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from app.outcome import UsageError

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_PART = ".part"


class Refused(Exception):
    """An instance cannot be kept. The message is one line without patient data.

    Parameters
    ----------
    status : int
        Status of the C-STORE response (PS3.4, table B.2-1).
    message : str
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


OUT_OF_RESOURCES, NOT_UNDERSTOOD, DUPLICATE = 0xA700, 0xC000, 0x0111


def checked_uid(uid: object) -> str:
    """Return a UID that may name a file: digits and single dots, at most 64 characters (PS3.5, 9.1).

    Raises
    ------
    Refused
        ``NOT_UNDERSTOOD`` for anything else.
    """
    text = str(uid)
    if len(text) > 64 or not _UID.fullmatch(text):
        raise Refused(NOT_UNDERSTOOD, "a UID is not valid")
    return text


class Spool:
    """Folder with the studies: of each its instances in ``in``, its results in ``out``.

    Parameters
    ----------
    folder : Path
        Made where absent, readable by its owner alone.
    free : int
        Bytes that must stay free on its disk.

    Raises
    ------
    UsageError
        If it cannot be written.
    """

    def __init__(self, folder: Path, free: int) -> None:
        self._studies = folder / "studies"
        self._free = free
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._studies.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the spool folder {folder}: {error.strerror}") from error
        if not os.access(self._studies, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(f"no permission to write to the spool folder {folder}")

    def incoming(self, study: str) -> Path:
        """Folder of the received instances of a study."""
        return self._studies / study / "in"

    def results(self, study: str) -> Path:
        """Folder of the results of a study."""
        return self._studies / study / "out"

    def holds(self, study: str, instance: str, content: bytes) -> bool:
        """Say whether an instance is there already.

        Raises
        ------
        Refused
            ``DUPLICATE`` if another one, of the same UID, is.
        """
        try:
            same = self._path(study, instance).read_bytes() == content
        except FileNotFoundError:
            return False
        if not same:
            raise Refused(DUPLICATE, "another instance has the same SOP Instance UID")
        _sync(self.incoming(study))  # whoever wrote it may not have come so far
        return True

    def keep(self, study: str, instance: str, content: bytes) -> None:
        """Put an instance on the disk, for good.

        When this returns, neither a crash of this process nor of the machine loses it.

        Parameters
        ----------
        study, instance : str
            Checked UIDs.
        content : bytes
            A DICOM file.

        Raises
        ------
        Refused
            ``OUT_OF_RESOURCES`` where it cannot be written, or too little of the disk would stay free; ``DUPLICATE``
            where another association was faster with another instance of this UID.
        """
        if shutil.disk_usage(self._studies).free < self._free + len(content):
            raise Refused(OUT_OF_RESOURCES, "the disk is full")
        path = self._path(study, instance)
        try:
            _make(path.parent)
            _write(path, content)
        except FileExistsError:
            self.holds(study, instance, content)
        except OSError as error:
            raise Refused(OUT_OF_RESOURCES, f"cannot write: {error.strerror}") from error

    def empty(self, study: str) -> bool:
        """Say whether nothing of a study is there."""
        return not any(self.incoming(study).glob("*.dcm"))

    def studies(self) -> list[str]:
        """Return the UIDs of all studies of which there is a folder."""
        return [entry.name for entry in os.scandir(self._studies) if entry.is_dir()]

    def drop(self, study: str) -> None:
        """Remove all of a study."""
        if (self._studies / study).exists():
            shutil.rmtree(self._studies / study)
        _sync(self._studies)

    def _path(self, study: str, instance: str) -> Path:
        return self.incoming(study) / f"{instance}.dcm"

    def tidy(self) -> None:
        """Remove what writes that never ended have left."""
        for path in self._studies.glob(f"*/in/*{_PART}*"):
            path.unlink()


def _make(folder: Path) -> None:
    """Make a folder and that of its study, so that they outlive a crash."""
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)
        _sync(each.parent)  # also where it is there: whoever made it may not have come so far


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; FileExistsError if it is there."""
    part = path.with_name(f"{path.name}{_PART}{threading.get_ident()}")
    try:
        with part.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(part, path)  # renaming would replace
        _sync(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
