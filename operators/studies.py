"""Sorting the DICOM objects of a folder into studies and series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pydicom.uid import UID, CTImageStorage

from operators.dicom_folder import MULTI_FRAME_CT, DicomFile, FolderScan
from operators.refusal import InputRefused, ReasonCode

CT_CLASSES = (CTImageStorage, *MULTI_FRAME_CT)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The objects of one series, in the order of their files; never empty."""

    uid: str
    files: tuple[DicomFile, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """The objects of one study.

    Parameters
    ----------
    uid : str
        Study Instance UID as the objects give it; empty where they give none.
    series : tuple of Series
        In the order of their first files.
    damaged : tuple of int
        Numbers of damaged files of the folder that may belong to this study.
    """

    uid: str
    series: tuple[Series, ...]
    damaged: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[DicomFile, ...]:
        """All objects."""
        return tuple(file for series in self.series for file in series.files)

    @property
    def has_ct(self) -> bool:
        """Whether any object is a CT image."""
        return any(file.sop_class in CT_CLASSES for file in self.files)


def group_studies(scan: FolderScan) -> tuple[Study, ...]:
    """Sort objects by Study and Series Instance UID; studies in the order of their UIDs.

    A damaged file, or a CT image that does not name its study, may belong to any study of the folder, so it counts
    for all of them.
    """
    by_study = _grouped(scan.files, "StudyInstanceUID")
    homeless = tuple(file.number for file in by_study.get("", []) if file.sop_class in CT_CLASSES)
    studies = []
    for uid in sorted(by_study):
        series = _grouped(by_study[uid], "SeriesInstanceUID")
        damaged = scan.damaged if uid == "" else tuple(sorted({*scan.damaged, *homeless}))
        studies.append(Study(uid, tuple(Series(key, tuple(files)) for key, files in series.items()), damaged))
    return tuple(studies)


def _grouped(files: Iterable[DicomFile], keyword: str) -> dict[str, list[DicomFile]]:
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    for file in files:
        groups[str(file.header.get(keyword) or "")].append(file)
    return groups


def check_study(study: Study) -> None:
    """Refuse a study of which a slice may be lost, or that names several patients.

    Raises
    ------
    InputRefused
        ``UNREADABLE``, ``MISSING_ATTRIBUTE`` or ``MIXED_STUDIES``.
    """
    for series in study.series:
        images = [file for file in series.files if file.sop_class in CT_CLASSES]
        for keyword, value in (("StudyInstanceUID", study.uid), ("SeriesInstanceUID", series.uid)):
            if images and not UID(value).is_valid:
                message = f"File {images[0].number} has no valid {keyword}; send the original series of the PACS."
                raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    if study.damaged:
        message = (
            f"{len(study.damaged)} damaged or incomplete DICOM file(s), the first is number {study.damaged[0]}"
            " in order of the paths; send the study again."
        )
        raise InputRefused(ReasonCode.UNREADABLE, message)
    patients = {str(file.header.get("PatientID") or "") for file in study.files}
    if len(patients) > 1:
        message = f"The study names {len(patients)} patients; correct or part them in the PACS, then send it again."
        raise InputRefused(ReasonCode.MIXED_STUDIES, message)


def check_patient(files: Iterable[DicomFile]) -> None:
    """Refuse images of one series that name several patients, whatever their Patient ID says.

    Compared are name, birth date and sex, as far as the images state them; not the case,
    punctuation and spaces of a name, which systems write as they like.

    Raises
    ------
    InputRefused
        ``MIXED_STUDIES``.
    """
    images = list(files)
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex"):
        stated = {_letters(str(file.header.get(keyword) or "")) for file in images} - {""}
        if len(stated) > 1:
            message = (
                f"The images of the series differ in {keyword}; correct or part them in the PACS, then send it again."
            )
            raise InputRefused(ReasonCode.MIXED_STUDIES, message)


def _letters(value: str) -> str:
    return "".join(character for character in value.casefold() if character.isalnum())
