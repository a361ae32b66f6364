"""Results are read back before anyone sees them."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from app.outcome import RunFailed
from app.publish import RESULT_FOLDERS
from operators.volume import CTVolume

_PATIENT = ("PatientID", "PatientName")
_CONTENTS = ("PixelData", "FloatPixelData", "ContentSequence", "EncapsulatedDocument")


def verify_objects(folder: Path, volume: CTVolume, promised: Collection[str]) -> None:
    """Check that every promised object can be read whole and belongs to the patient and study of ``volume``.

    Parameters
    ----------
    folder : Path
        Holds the result folders.
    volume : CTVolume
        The source.
    promised : collection of str
        The result folders that must hold an object.

    Raises
    ------
    RunFailed
        If an object is missing, damaged, of another patient or study, or has the UID of another.
    """
    uids: set[str] = set()
    for name in RESULT_FOLDERS:
        paths = sorted((folder / name).glob("*.dcm"))
        if name in promised and not paths:
            raise RunFailed(f"the graph ended without an object in {name}/")
        for path in paths:
            written = _read(path)
            if not _whole(written):
                raise RunFailed(f"the object {name}/{path.name} was not written whole")
            if not _same_study(written, volume):
                raise RunFailed(f"the object {name}/{path.name} is not of the study that was read")
            if written.SOPInstanceUID in uids:
                raise RunFailed(f"the object {name}/{path.name} has the UID of another")
            uids.add(written.SOPInstanceUID)


def _read(path: Path) -> Dataset:
    try:
        written = pydicom.dcmread(path)
        for _ in written.iterall():  # sequences are only read when they are looked into
            pass
    except (OSError, EOFError, zlib.error, InvalidDicomError) as error:
        raise RunFailed(f"the object {path.parent.name}/{path.name} cannot be read back") from error
    return written


def _whole(written: Dataset) -> bool:
    """Tell whether content is there, and as many bytes of pixels as the header says where they are not compressed."""
    content = next((written[keyword] for keyword in _CONTENTS if keyword in written), None)
    if content is None or not content.value:
        return False
    if content.keyword == "EncapsulatedDocument":
        length = int(written.EncapsulatedDocumentLength)
        return len(content.value) == length + length % 2
    if content.keyword == "ContentSequence" or written.file_meta.TransferSyntaxUID.is_compressed:
        return True
    expected = get_expected_length(written)
    return len(content.value) == expected + expected % 2


def _same_study(written: Dataset, volume: CTVolume) -> bool:
    source = volume.headers[0]
    return (
        written.StudyInstanceUID == volume.study_uid
        and all((written.get(keyword) or "") == (source.get(keyword) or "") for keyword in _PATIENT)
        and written.file_meta.MediaStorageSOPInstanceUID == written.SOPInstanceUID
    )
