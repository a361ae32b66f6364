"""Damaged, foreign or missing objects are never published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from app.outcome import RunFailed
from app.verification import verify_objects
from operators.pm_writer import write_parametric_maps
from operators.sc_writer import write_pictures
from operators.seg_writer import write_segmentation
from operators.sr_writer import Findings, write_report
from operators.summary_page import Summary
from tests.operators.dicom_results import Case, case, provenance

PROMISED = ("sr", "seg", "sc", "pm")


@pytest.fixture(scope="module")
def found() -> Case:
    return case()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "deflated"])
def results(request: pytest.FixtureRequest, found: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, by, deflate = tmp_path_factory.mktemp("results"), provenance(), request.param
    segmentation = write_segmentation(found.volume, found.lungs, found.lesions, by, folder, deflate=deflate)
    findings = Findings(found.measurements, found.classification, found.relevance)
    write_report(found.volume, findings, segmentation, by, folder)
    write_pictures(Summary(found.study, found.measurements, (), by.models.records), by, folder, 1)
    write_parametric_maps(found.volume, found.classification, found.explanation, by, folder, deflate=deflate)
    return folder


def test_what_the_writers_write_is_whole(found: Case, results: Path) -> None:
    verify_objects(results, found.volume, PROMISED)


def _change(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _foreign(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = "1.2.3"


def _of_another_patient(dataset: Dataset) -> None:
    dataset.PatientID = "another"


def _of_another_name(dataset: Dataset) -> None:
    dataset.PatientName = "another"


def _emptied(dataset: Dataset) -> None:
    dataset.ContentSequence = []


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("seg/segmentation.dcm", lambda path: _cut(path, 0.99), "not written whole|cannot be read back"),
        ("pm/relevance_ct.dcm", lambda path: _cut(path, 0.5), "not written whole|cannot be read back"),
        ("seg/segmentation.dcm", lambda path: path.write_bytes(b""), "cannot be read back"),
        ("sr/report.dcm", Path.unlink, "without an object in sr/"),
        ("sr/report.dcm", lambda path: _change(path, _emptied), "not written whole"),
        ("sc/summary.dcm", lambda path: _change(path, _foreign), "not of the study"),
        ("pm/relevance_lesions.dcm", lambda path: _change(path, _of_another_patient), "not of the study"),
        ("pm/relevance_lesions.dcm", lambda path: _change(path, _of_another_name), "not of the study"),
        (
            "sc/keyslice_01.dcm",
            lambda path: shutil.copy(path.parent / "summary.dcm", path),
            "UID of another",
        ),
    ],
)
def test_what_is_wrong_is_found(
    found: Case, results: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    copied = shutil.copytree(results, tmp_path / "results")
    damage(copied / name)
    with pytest.raises(RunFailed, match=told):
        verify_objects(copied, found.volume, PROMISED)
