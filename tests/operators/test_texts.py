"""Texts of patient and study are in every object as the source has them, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from operators.identity import source_headers
from operators.saving import save
from operators.series_loader import load_ct_series
from tests.builders import write_series
from tests.operators.dicom_results import SHAPE, Case, case
from tests.operators.test_identity import every_object

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

KEYWORDS = ("PatientName", "PatientID", "StudyDescription", "PatientComments", "ReferringPhysicianName")
TEXTS = {
    "fits": ("ISO_IR 192", "Müller^Jörg".encode()),
    "fits, several sets": (["", "ISO 2022 IR 87"], b"Yamada^T=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "Shift JIS as Katakana": ("ISO_IR 13", "山田^太郎".encode("shift_jis")),
    "only Kanji": ("ISO 2022 IR 87", b"Y^T=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "Latin as UTF-8": ("ISO_IR 192", "Müller^Jörg".encode("latin-1")),
    "Shift JIS with a backslash as UTF-8": ("ISO_IR 192", "表^能".encode("shift_jis")),
    "undeclared escapes": (None, b"Y^T=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "undeclared": (None, "山田^太郎".encode("shift_jis")),
    "empty parts": ("ISO_IR 100", b"Y^T=="),
}


def _padded(text: bytes) -> bytes:
    return text + b" " * (len(text) % 2)


def _source(folder: Path, characters: str | list[str] | None, text: bytes) -> Case:
    """Findings of a series whose attributes have the bytes of ``text``."""
    text = _padded(text)
    stand_in = "N" * len(text)
    attributes = dict.fromkeys(KEYWORDS, stand_in) | {"SpecificCharacterSet": characters}
    for path in write_series(folder, np.zeros(SHAPE), (10.0, 1.5, 1.5), **attributes):
        path.write_bytes(path.read_bytes().replace(stand_in.encode(), text))
    loaded, found = load_ct_series(folder), case()
    return replace(found, volume=replace(found.volume, headers=loaded.headers, texts=loaded.texts))


@pytest.mark.parametrize("name", TEXTS)
def test_are_kept_byte_for_byte(name: str, tmp_path: Path) -> None:
    characters, text = TEXTS[name]
    found = _source(tmp_path / "in", characters, text)
    for number, made in enumerate(every_object(found)):
        save(made, tmp_path / f"{number}.dcm")
        read = pydicom.dcmread(tmp_path / f"{number}.dcm")
        kept = {keyword: read.get_item(keyword).value for keyword in KEYWORDS if keyword in read}
        assert kept == dict.fromkeys(KEYWORDS, _padded(text))
        assert read.get("SpecificCharacterSet") == characters
        assert read.SeriesDescription.startswith("COVID-CT")
        assert str(read.PatientName) == str(source_headers(found.volume)[0].PatientName) or "backslash" in name


@pytest.mark.parametrize("name", ["fits", "undeclared", "Latin as UTF-8"])
def test_are_remembered_only_where_they_would_change(name: str, tmp_path: Path) -> None:
    remembered = {text.keyword for text in _source(tmp_path, *TEXTS[name]).volume.texts}
    assert remembered == (set(KEYWORDS) if name == "Latin as UTF-8" else set())
