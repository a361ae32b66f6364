"""Every object of every kind of study, beside its source images, before validators from outside this project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from app.phantom.dicom import write_image
from operators.pm_writer import write_parametric_maps
from operators.remarks import Remark, RemarkCode
from operators.sc_writer import write_pictures
from operators.seg_writer import write_segmentation
from operators.sr_writer import Findings, write_report
from operators.summary_page import Summary
from tests.operators.dicom_results import CASES, Case, case, provenance
from tests.validation.tools import (
    changed_attributes,
    dcentvfy,
    dciodvfy,
    explained_messages,
    find_tool,
    pixelmed,
    unexplained,
)

pytestmark = pytest.mark.slow

INVALID = {"PatientBirthDate": "1950-01-01", "StudyTime": "240000", "PatientSex": "MALE"}
"""Values of the case of defective headers: left out."""
REMARKS = (Remark(RemarkCode.ONE_LUNG, "Only one lung was found."),)


def other_characters() -> Case:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    return case(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name, ReferringPhysicianName="Tanaka^Aiko")


def few_attributes() -> Case:
    """De-identified: what is of type 2 is empty or absent."""
    found = case(PatientName="", PatientID="ANON", PatientBirthDate="", PatientSex="", AccessionNumber="", StudyID="")
    for header in found.volume.headers:
        for keyword in ("ReferringPhysicianName", "StudyTime", "PatientAge", "StudyDescription"):
            del header[keyword]
    return found


def defective_headers() -> Case:
    """What scanners and de-identifiers leave behind: invalid, empty or wrong, though pixels and places are right."""
    found = case(
        PatientBirthDate="1950-01-01",
        StudyTime="240000",
        SliceThickness=0,
        SpacingBetweenSlices=-99,
        LossyImageCompression="",
        PatientSex="MALE",
    )
    for header in found.volume.headers:
        del header.Modality
        item = Dataset()
        item.CodeMeaning = "Chest CT"
        header.RequestedProcedureCodeSequence = [item]
    return found


def lossy() -> Case:
    return case(LossyImageCompression="01", LossyImageCompressionRatio=12.5, LossyImageCompressionMethod="ISO_15444_1")


ALL: dict[str, Callable[[], Case]] = {
    **CASES,
    "no lesions, positive": lambda: case(lesions=np.zeros_like(case().lesions.labels)),
    "lesions, negative": lambda: case(probability=0.1),
    "other characters": other_characters,
    "few attributes": few_attributes,
    "defective headers": defective_headers,
    "lossy": lossy,
}


@pytest.fixture(scope="module", params=ALL)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the source images and of the results."""
    found, root = ALL[request.param](), tmp_path_factory.mktemp("study")
    source, results = root / "source", root / "results"
    source.mkdir()
    for number, (header, hu) in enumerate(zip(found.volume.headers, found.volume.hu, strict=True)):
        write_image(source / f"{number}.dcm", header, hu)
    by = provenance()
    segmentation = write_segmentation(found.volume, found.lungs, found.lesions, by, results)
    stated = Findings(found.measurements, found.classification, found.relevance, REMARKS)
    write_report(found.volume, stated, segmentation, by, results)
    write_pictures(Summary(found.study, found.measurements, REMARKS, by.models.records), by, results, 2)
    write_parametric_maps(found.volume, found.classification, found.explanation, by, results)
    return source, results


def objects(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def test_dciodvfy_finds_nothing_unexplained(study: tuple[Path, Path]) -> None:
    written = objects(study[1])
    assert {path.parent.name for path in written} == {"seg", "sr", "sc", "pm"}
    for path in written:
        said = dciodvfy(path)
        assert any("IOD" in line for line in said), "it warns of a Device UID in every object"
        assert not unexplained(said), path.name


def test_dcentvfy_finds_nothing_unexplained(study: tuple[Path, Path]) -> None:
    assert not unexplained(dcentvfy(objects(study[0]), objects(study[1]), INVALID))


def test_pixelmed_finds_no_error(study: tuple[Path, Path]) -> None:
    if find_tool("DicomSRValidator") is None:
        pytest.skip("DicomSRValidator is not installed: make validate installs it")
    assert not pixelmed(study[1] / "sr" / "report.dcm")


def test_patient_and_study_are_as_in_the_source(study: tuple[Path, Path]) -> None:
    source = pydicom.dcmread(objects(study[0])[0], stop_before_pixels=True)
    invalid = {keyword for keyword, value in INVALID.items() if source.get(keyword) == value}
    changed = changed_attributes(objects(study[0]), objects(study[1]))
    assert {line.partition(": ")[2] for line in changed} == invalid


def test_geometry_is_measured_not_believed(study: tuple[Path, Path]) -> None:
    measures = pydicom.dcmread(study[1] / "seg" / "segmentation.dcm").SharedFunctionalGroupsSequence[0]
    assert measures.PixelMeasuresSequence[0].SpacingBetweenSlices == 3.0
    assert measures.PixelMeasuresSequence[0].SliceThickness == 3.0


def test_lossy_stays_lossy(study: tuple[Path, Path]) -> None:
    source = pydicom.dcmread(objects(study[0])[0], stop_before_pixels=True)
    for path in objects(study[1]):
        if path.parent.name != "sr":
            written = pydicom.dcmread(path, stop_before_pixels=True)
            assert (written.get("LossyImageCompression") == "01") == (source.get("LossyImageCompression") == "01")


def test_the_validators_would_find_something(study: tuple[Path, Path], tmp_path: Path) -> None:
    """A damaged object, and references that lead nowhere, are complained of."""
    assert explained_messages()
    damaged = pydicom.dcmread(study[1] / "sc" / "summary.dcm")
    del damaged.StudyInstanceUID, damaged.ConversionType
    damaged.save_as(tmp_path / "damaged.dcm")
    assert unexplained(dciodvfy(tmp_path / "damaged.dcm"))
    assert unexplained(dcentvfy(objects(study[0]), [study[1] / "sr" / "report.dcm"]))
