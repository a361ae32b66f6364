"""Finding the DICOM objects of a folder, losing none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import CTImageStorage, MediaStorageDirectoryStorage

from operators.refusal import InputRefused, ReasonCode

_PREAMBLE = 128
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""First bytes of an object without preamble: group 0002 or 0008 in either byte order (PS3.5, 7.1)."""
_IDENTIFYING_GROUP = 0x0008
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, slots=True, eq=False)
class DicomFile:
    """One DICOM object: its file and its header without pixel data."""

    path: Path
    header: FileDataset

    @property
    def sop_class(self) -> str:
        """SOP Class UID; empty for a directory, which has none."""
        return str(self.header.get("SOPClassUID") or "")


def read_folder(folder: Path) -> list[DicomFile]:
    """Read the headers of all DICOM objects below a folder.

    Sub-folders and links are followed, each real file is read once. Files that are not DICOM and directory
    files (``DICOMDIR``) are passed over.

    Parameters
    ----------
    folder : Path
        Folder to search.

    Returns
    -------
    list of DicomFile
        At least one object, ordered by path.

    Raises
    ------
    InputRefused
        ``NO_DICOM`` where there is no object; ``UNREADABLE`` where a file is a DICOM object, or by its name
        ought to be one, and cannot be read: it may be a slice.
    """
    if not folder.is_dir():
        raise InputRefused(ReasonCode.NO_DICOM, "The input folder does not exist; name the folder of a CT study.")
    found: list[DicomFile] = []
    damaged = 0
    for path in sorted(_files_below(folder)):
        try:
            file = _read_object(path)
        except Exception:  # a damaged file can make the parser raise anything
            damaged += 1
            continue
        if file is not None:
            found.append(file)
    if damaged:
        message = f"{damaged} damaged or incomplete DICOM file(s) in the folder; send the study again."
        raise InputRefused(ReasonCode.UNREADABLE, message)
    if not found:
        raise InputRefused(ReasonCode.NO_DICOM, "The folder holds no DICOM file; name the folder of a CT study.")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below the folder once, however links lead to it."""
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        real = path.resolve()
        if real in seen:
            continue
        seen.add(real)
        if path.is_dir():
            waiting.extend(path.iterdir())
        elif path.is_file() or not path.exists():  # a dangling link may be a lost slice; devices are none
            yield path


def _read_object(path: Path) -> DicomFile | None:
    """Return a DICOM object, or None for a file that is none; raise for a damaged object."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return None
    with path.open("rb") as stream:
        start = stream.read(_PREAMBLE + 4)
        if start[_PREAMBLE:] != b"DICM" and not start.startswith(_FIRST_GROUPS):
            if _ought_to_be_dicom(path, start):
                raise ValueError("not the DICOM object that its name promises")
            return None
        stream.seek(0)
        file = DicomFile(path, pydicom.dcmread(stream, stop_before_pixels=True, force=True))
    if _ends_early(file):
        raise ValueError("the header ends early")
    for tag in file.header.keys():  # noqa: SIM118 - decode each element now: a damaged one raises here, not later
        if not tag.is_private:
            file.header[tag]
    return file


def _ends_early(file: DicomFile) -> bool:
    """Tell whether a header is cut off before it says for sure what the object is and where it belongs.

    Elements come in the order of their tags (PS3.5, 7.1): the last value read may be a part of the true one, so
    a cut UID may look like that of another class or series.
    """
    if file.header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return False
    if file.sop_class == CTImageStorage:
        return "Rows" not in file.header
    return not file.sop_class or max(file.header.keys()).group <= _IDENTIFYING_GROUP


def _ought_to_be_dicom(path: Path, start: bytes) -> bool:
    """Tell whether a file may be a spoilt slice: by its suffix, or for being blank without a telling suffix."""
    suffix = path.suffix.lower()
    return suffix in _DICOM_SUFFIXES or (not any(start) and (suffix == "" or suffix[1:].isdigit()))
