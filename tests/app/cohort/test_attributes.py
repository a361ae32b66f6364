"""Attributes are read where a header has them; whatever it holds instead is no error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword

from app.cohort.attributes import attributes_of
from tests.builders import write_series

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def _header(**attributes: object) -> Dataset:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header


def _age(**attributes: object) -> str | None:
    return attributes_of(_header(**attributes)).get("age")


def test_all_that_is_there_is_read() -> None:
    header = _header(
        PatientName="Doe^Jane",
        PatientID="4711",
        PatientSex="F",
        PatientAge="061Y",
        Manufacturer=" Acme ",
        SliceThickness="1.25",
        PatientBirthDate="19600101",
    )
    assert attributes_of(header) == {"sex": "F", "age": "61", "manufacturer": "Acme", "slice_thickness": "1.25"}


def test_of_nothing_nothing_is_said() -> None:
    assert attributes_of(Dataset()) == {}
    empty = dict.fromkeys(
        ("PatientSex", "PatientAge", "Manufacturer", "SliceThickness", "PatientBirthDate", "StudyDate")
    )
    assert attributes_of(_header(**empty)) == {}
    assert attributes_of(_header(**dict.fromkeys(empty, ""))) == {}


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        ("012Y", "12"),
        ("000Y", "0"),
        ("101Y", "101"),
        ("018M", "1"),
        ("024M", "2"),
        ("023M", "1"),
        ("006W", "0"),
        ("053W", "1"),
        ("003D", "0"),
        ("365D", "0"),
        ("366D", "1"),
        (" 045Y ", "45"),
    ],
)
def test_stated_ages_become_whole_years(stated: str, years: str) -> None:
    assert _age(PatientAge=stated) == years


@pytest.mark.parametrize(
    "stated", ["", "45", "45Y", "0045Y", "045", "045y", "Y", "-45Y", "forty", "045Y\\046Y", "04.5Y"]
)
def test_instead_of_a_nonsense_age_the_dates_count(stated: str) -> None:
    header = _header(PatientAge=stated)
    assert "age" not in attributes_of(header)
    header.PatientBirthDate, header.StudyDate = "19500701", "20200101"
    assert attributes_of(header) == {"age": "69"}


@pytest.mark.parametrize(
    ("born", "seen", "years"),
    [
        ("19500701", "20200630", "69"),
        ("19500701", "20200702", "70"),
        ("20191231", "20200101", "0"),
        ("20200101", "20200101", "0"),
        ("20000229", "20200301", "20"),
        ("19000101", "20200102", "120"),
    ],
)
def test_ages_lie_between_dates(born: str, seen: str, years: str) -> None:
    assert _age(PatientBirthDate=born, StudyDate=seen) == years
    assert _age(PatientBirthDate=born, StudyDate=seen, PatientAge="007Y") == "7"


def test_on_a_birthday_the_year_is_whole() -> None:
    wrong = [
        born
        for born in range(1920, 2020)
        if _age(PatientBirthDate=f"{born}0101", StudyDate="20200101") != str(2020 - born)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("born", "seen"),
    [
        ("20200102", "20200101"),
        ("1950", "20200101"),
        ("19501301", "20200101"),
        ("19500230", "20200101"),
        ("00000000", "20200101"),
        ("1950.07.01", "20200101"),
        ("unknown", "20200101"),
        ("19500701", ""),
        ("19500701", None),
        ("", "20200101"),
        ("19500701", "99999999"),
    ],
)
def test_of_impossible_dates_there_is_no_age(born: str, seen: str | None) -> None:
    assert _age(PatientBirthDate=born, StudyDate=seen) is None


def test_several_values_are_no_error() -> None:
    header = _header(
        PatientAge=["012Y", "013Y"], PatientBirthDate=["19500101", "19600101"], StudyDate="20200101", Manufacturer="A"
    )
    assert attributes_of(header)["manufacturer"] == "A"
    assert "age" not in attributes_of(header)
    header.SliceThickness = ["1", "2"]
    header.PatientSex = ["M", "F"]
    assert all(isinstance(value, str) for value in attributes_of(header).values())


@pytest.mark.parametrize("content", [b"\xff\xfe\xfd\xfc", b"    ", b"\x00\x00\x00\x00", b"\\\\\\\\", b"a\\b,", b"1e99"])
@pytest.mark.parametrize("keyword", ["PatientAge", "SliceThickness", "PatientBirthDate", "StudyDate", "Manufacturer"])
def test_whatever_a_file_holds_is_no_error(keyword: str, content: bytes, tmp_path: Path) -> None:
    path, _ = write_series(tmp_path, np.zeros((2, 8, 8)))
    whole = path.read_bytes()
    tag = tag_for_keyword(keyword)
    assert tag is not None
    group, element = tag >> 16, tag & 0xFFFF
    start = whole.index(group.to_bytes(2, "little") + element.to_bytes(2, "little")) + 6
    length = int.from_bytes(whole[start : start + 2], "little")
    value = (content * length)[:length]
    path.write_bytes(whole[: start + 2] + value + whole[start + 2 + length :])
    attributes = attributes_of(dcmread(path))
    assert attributes["sex"] == "O"
    assert all(isinstance(value, str) and value for value in attributes.values())
