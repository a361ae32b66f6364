"""Attributes of patient and scanner by which results are told apart, from a DICOM header."""

from __future__ import annotations

import re
from datetime import date, datetime

from pydicom import Dataset

_DATE = re.compile(r"\d{8}")
_AGE = re.compile(r"(\d{3})([DWMY])")
_IN_YEARS = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


def attributes_of(header: Dataset) -> dict[str, str]:
    """Read sex, age in years, manufacturer and slice thickness in mm, those of them that are there.

    Parameters
    ----------
    header : Dataset
        Of any image of the series.
    """
    found = {
        "sex": _text(header, "PatientSex"),
        "age": _age(header),
        "manufacturer": _text(header, "Manufacturer"),
        "slice_thickness": _text(header, "SliceThickness"),
    }
    return {name: value for name, value in found.items() if value}


def _text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip()


def _age(header: Dataset) -> str:
    """Return whole years, as stated or between the dates of birth and of the study."""
    stated = _AGE.fullmatch(_text(header, "PatientAge"))
    if stated:
        return str(int(int(stated[1]) / _IN_YEARS[stated[2]]))
    born, seen = (_date(_text(header, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    if born is None or seen is None or seen < born:
        return ""
    return str(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _date(text: str) -> date | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
