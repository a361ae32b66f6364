"""Where received instances lie, and what must be true before a sender is told that they do."""

from __future__ import annotations

import fcntl
import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from app.gateway.header import stored_as
from app.outcome import UsageError

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_BETWEEN_CHECKS = 1 << 24
"""Bytes of an instance between two looks at the disk."""
FETCHED = "fetched-"
"""Kind of arrival that another process than the gateway may be busy with."""


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


class Arrival:
    """An instance on its way: a file that has no name in a study yet.

    Parameters
    ----------
    path : Path
        Where nothing is.
    check : callable
        Called now and then: that there is room for more.
    """

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.path = path
        self.size = 0
        self._checked = 0
        self._check = check

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        done = 0
        while done < len(data):
            done += os.write(self._descriptor, data[done:])
        self.size += done
        if self.size - self._checked > _BETWEEN_CHECKS:
            self._checked = self.size
            self._check()

    def end(self) -> None:
        """Put all of it on the disk; no more can come then."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            self._close()

    def close(self) -> None:
        """Forget the file; it may have got another name meanwhile."""
        self._close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


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
        self._arriving = folder / "arriving"
        self._free = free
        self._made: set[str] = set()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._studies.mkdir(mode=0o700, exist_ok=True)
            self._arriving.mkdir(mode=0o700, exist_ok=True)
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

    def begin(self, kind: str = "") -> Arrival:
        """Return an instance of which nothing has come yet; it is to be closed by whoever asked for it.

        Raises
        ------
        Refused
            ``OUT_OF_RESOURCES`` where it cannot be made.
        """
        try:
            return Arrival(self._arriving / f"{kind}{uuid4().hex}", self.check_room)
        except OSError as error:
            raise Refused(OUT_OF_RESOURCES, f"cannot write: {error.strerror}") from error

    def holds(self, study: str, instance: str, arrival: Arrival) -> bool:
        """Say whether an instance is there already.

        Raises
        ------
        Refused
            ``DUPLICATE`` if another one, of the same UID, is.
        """
        try:
            same = filecmp.cmp(self._path(study, instance), arrival.path, shallow=False)
        except FileNotFoundError:
            return False
        if not same:
            raise Refused(DUPLICATE, "another instance has the same SOP Instance UID")
        sync_folder(self.incoming(study))  # whoever wrote it may not have come so far
        return True

    def keep(self, study: str, instance: str, arrival: Arrival) -> None:
        """Put an instance on the disk, for good.

        When this returns, neither a crash of this process nor of the machine loses it.

        Parameters
        ----------
        study, instance : str
            Checked UIDs.
        arrival : Arrival
            A complete DICOM file.

        Raises
        ------
        Refused
            ``OUT_OF_RESOURCES`` where it cannot be written, or too little of the disk would stay free; ``DUPLICATE``
            where another association was faster with another instance of this UID.
        """
        self.check_room()
        path = self._path(study, instance)
        try:
            arrival.end()
            self._make(study)
            os.link(arrival.path, path)  # renaming would replace
            sync_folder(path.parent)
        except FileExistsError:
            if not self.holds(study, instance, arrival):
                raise Refused(OUT_OF_RESOURCES, "it was just being deleted") from None
        except OSError as error:
            raise Refused(OUT_OF_RESOURCES, f"cannot write: {error.strerror}") from error

    def _make(self, study: str) -> None:
        """Make the folders of a study, so that they outlive a crash."""
        folder = self.incoming(study)
        if study in self._made and folder.is_dir():  # another process may have dropped it
            return
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
            sync_folder(each.parent)  # also where it is there: whoever made it may not have come so far
        self._made.add(study)

    def empty(self, study: str) -> bool:
        """Say whether nothing of a study is there."""
        return not any(self.incoming(study).glob("*.dcm"))

    def free(self) -> int:
        """Return how many bytes of the disk are free."""
        return shutil.disk_usage(self._studies).free

    def full(self) -> bool:
        """Say whether less of the disk is free than must stay so."""
        return self.free() < self._free

    def check_room(self) -> None:
        """Check that as much of the disk is free as must stay so.

        Raises
        ------
        Refused
            ``OUT_OF_RESOURCES`` if not.
        """
        if self.full():
            raise Refused(OUT_OF_RESOURCES, "the disk is full")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one that deletes studies, or adds what was fetched to one; processes wait for each other."""
        with (self._studies.parent / "alone.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Say that instances of the kind :data:`FETCHED` are arriving."""
        with (self._studies.parent / "fetching.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def find(self, instances: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return study and SOP Class UID of those of the instances that are there, by their UIDs (checked)."""
        there = {}
        for study in self.studies():
            for instance in instances:
                path = self._path(study, instance)
                if path.exists():
                    there[instance] = study, stored_as(path)[0]
        return there

    def studies(self) -> list[str]:
        """Return the UIDs of all studies of which there is a folder."""
        return [entry.name for entry in os.scandir(self._studies) if entry.is_dir()]

    def drop(self, study: str) -> None:
        """Remove all of a study."""
        self._made.discard(study)
        if (self._studies / study).exists():
            shutil.rmtree(self._studies / study)
        sync_folder(self._studies)

    def _path(self, study: str, instance: str) -> Path:
        return self.incoming(study) / f"{instance}.dcm"

    def tidy(self) -> None:
        """Remove what was arriving when a process ended; what is being fetched by another one stays."""
        with (self._studies.parent / "fetching.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kept = None
            except BlockingIOError:
                kept = FETCHED
            for path in self._arriving.iterdir():
                if kept is None or not path.name.startswith(kept):
                    path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the disk know what is in a folder, so that a crash of the machine takes none of it away."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
