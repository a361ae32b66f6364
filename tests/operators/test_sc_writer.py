from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from highdicom.sc import SCImage
from holoscan.conditions import CountCondition
from monai.deploy.core import Application, ExecutionContext, InputContext, Operator, OperatorSpec, OutputContext

from operators.findings import Explanation, Involvement, Lesions, Lungs
from operators.identity import derived_uid
from operators.journal import Journal
from operators.measurements import MeasurementOperator
from operators.rendering import render_overlay
from operators.sc_writer import ScWriterOperator, choose_key_slices, make_pictures
from operators.seg_writer import SegWriterOperator
from operators.sr_writer import SrWriterOperator
from operators.summary_page import Summary
from tests.builders import axial_grid
from tests.operators.dicom_results import CASES, Case, assert_valid, case, no_lesions, provenance, written
from tests.validation.tools import dciodvfy, unexplained

SLICES = 60
ALL = range(SLICES)


def findings(
    area: npt.ArrayLike, relevance: npt.ArrayLike = 0.0, lung: slice = slice(5, 55)
) -> tuple[Lungs, Lesions, Explanation]:
    """Lesions of some pixels and relevance of some size in each slice."""
    grid = axial_grid((SLICES, 10, 10))
    lungs, lesions = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    lungs[lung] = 1
    for index, pixels in enumerate(np.broadcast_to(area, SLICES)):
        lesions[index].flat[: int(pixels)] = 1
    ct = np.zeros(grid.shape, np.float32)
    ct[:, 0, 0] = relevance
    return Lungs(lungs, grid), Lesions(lesions, grid), Explanation(ct, np.zeros_like(ct), grid, 1, 1.0)


def at(**values: float) -> npt.NDArray[np.float64]:
    array = np.zeros(SLICES)
    for name, value in values.items():
        array[int(name[1:])] = value
    return array


def test_slices_with_large_lesions_are_chosen_first() -> None:
    area = at(s10=20, s20=50, s30=10, s40=40)
    assert choose_key_slices(*findings(area), ALL, count=2) == [20, 40]
    assert choose_key_slices(*findings(area), ALL, count=9) == [10, 20, 30, 40]


def test_relevance_decides_between_lesions_of_the_same_size() -> None:
    area = at(s10=20, s20=20, s30=20)
    assert choose_key_slices(*findings(area, at(s20=-3.0, s30=1.0)), ALL, count=1) == [20]
    assert choose_key_slices(*findings(area, at(s20=-3.0, s30=1.0)), ALL, count=2) == [20, 30]


def test_chosen_slices_are_apart_and_no_more_than_asked_for() -> None:
    random = np.random.default_rng(0)
    area = np.where((np.arange(SLICES) > 5) & (np.arange(SLICES) < 54), random.integers(1, 90, SLICES), 0)
    for count in (1, 3, 6, 25):
        chosen = choose_key_slices(*findings(area, random.random(SLICES)), ALL, count=count)
        assert 1 <= len(chosen) <= count
        assert (np.diff(chosen) >= 2).all()
        assert all(area[index] > 0 for index in chosen)


def test_relevance_alone_does_not_make_a_key_slice_where_there_are_lesions() -> None:
    assert choose_key_slices(*findings(at(s10=1), at(s40=99.0)), ALL, count=3) == [10]


def test_without_lesions_the_slices_are_spread_evenly_over_the_lungs() -> None:
    chosen = choose_key_slices(*findings(0), ALL, count=5)
    assert chosen == [9, 19, 29, 39, 49]
    assert choose_key_slices(*findings(0, lung=slice(30, 33)), ALL, count=5) == [30, 32]
    assert choose_key_slices(*findings(0, lung=slice(30, 31)), ALL, count=5) == [30]


def test_relevance_is_found_on_the_classifiers_own_grid() -> None:
    lungs, lesions, _ = findings(at(s12=9, s48=9))
    grid = lungs.grid.resampled((20, 5, 5))
    ct = np.zeros(grid.shape, np.float32)
    ct[16] = -1.0  # slices 48 to 50 of the CT
    explanation = Explanation(ct, np.zeros_like(ct), grid, 1, 1.0)
    assert choose_key_slices(lungs, lesions, explanation, ALL, count=1) == [48]


def test_key_slices_need_lungs_and_a_count() -> None:
    with pytest.raises(ValueError, match="at least one"):
        choose_key_slices(*findings(0, lung=slice(0, 0)), ALL)
    with pytest.raises(ValueError, match="positive count"):
        choose_key_slices(*findings(0), ALL, count=0)


def pictures(found: Case, count: int = 2) -> list[SCImage]:
    return make_pictures(Summary(found.study, found.measurements, (), provenance().models.records), provenance(), count)


@pytest.mark.parametrize("name", CASES)
def test_has_no_error_for_dciodvfy(name: str, tmp_path: Path) -> None:
    for image in pictures(CASES[name]()):
        assert_valid(image, tmp_path)


def test_reads_back_pixel_for_pixel(tmp_path: Path) -> None:
    found = case()
    for image in pictures(found):
        read = pydicom.dcmread(written(image, tmp_path / "picture.dcm"))
        assert read.file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
        assert read.PhotometricInterpretation == "YBR_RCT"
        assert len(read.PixelData) < read.Rows * read.Columns
        if image.InstanceNumber > 1:
            index = slice_of(image, found)
            np.testing.assert_array_equal(read.pixel_array, render_overlay(found.study, index))


def slice_of(image: SCImage, found: Case) -> int:
    uids = [header.SOPInstanceUID for header in found.volume.headers]
    return uids.index(image.SourceImageSequence[0].ReferencedSOPInstanceUID)


def test_says_what_it_is_and_where_it_comes_from() -> None:
    found = case(IssuerOfPatientID="Clinic", PatientName="Müller^Jörg")
    summary, key_slice = pictures(found, 1)
    source = found.volume.headers[0]
    assert key_slice.PatientOrientation == ["L", "P"]
    assert not summary.PatientOrientation, "its panels are oriented in several ways"
    for image in (summary, key_slice):
        assert image.Modality == "CT"
        assert image.BurnedInAnnotation == "YES"
        assert image.ImageType == ["DERIVED", "SECONDARY"]
        assert image.ConversionType == "WSD"
        assert image.BodyPartExamined == "CHEST"
        assert image.ContentQualification == "RESEARCH"
        for keyword in [
            "PatientName",
            "PatientID",
            "IssuerOfPatientID",
            "PatientAge",
            "StudyInstanceUID",
            "StudyDescription",
            "StudyID",
            "AccessionNumber",
        ]:
            assert image[keyword].value == source[keyword].value


def test_the_summary_comes_first_then_the_slices_from_head_to_feet() -> None:
    found = case()
    images = pictures(found, 3)
    places = [slice_of(image, found) for image in images[1:]]
    assert places == sorted(places, reverse=True)
    assert len(images[0].SourceImageSequence) == len(found.volume.headers), "a coronal plane cuts every slice"
    assert [image.InstanceNumber for image in images] == list(range(1, len(images) + 1))
    assert {image.SeriesInstanceUID for image in images} == {
        derived_uid(found.volume, provenance(), "key slices series")
    }
    assert len({image.SOPInstanceUID for image in images}) == len(images)


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for first, second in zip(pictures(case()), pictures(case()), strict=True):
        once, again = (written(image, tmp_path / "picture.dcm").read_bytes() for image in (first, second))
        assert once == again


PORTS = ("volume", "lungs", "lesions", "involvement", "classification", "explanation", "remarks")


class Source(Operator):
    """Emits the findings of a study without lesions."""

    def setup(self, spec: OperatorSpec) -> None:
        for name in PORTS:
            spec.output(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        found = no_lesions()
        affected = Involvement(found.lungs.labels == 1, found.volume.grid)
        values = found.volume, found.lungs, found.lesions, affected, found.classification, found.explanation, ()
        for name, value in zip(PORTS, values, strict=True):
            op_output.emit(value, name)


class Graph(Application):
    def __init__(self, folder: Path, journal: Journal) -> None:
        self._output: dict[str, Any] = {"journal": journal, "folder": folder, "provenance": provenance()}
        super().__init__([])

    def compose(self) -> None:
        source = Source(self, CountCondition(self, 1), name="source")
        measurements = MeasurementOperator(self, journal=self._output["journal"], name="measurements")
        seg = SegWriterOperator(self, **self._output, name="seg")
        sr = SrWriterOperator(self, **self._output, name="sr")
        sc = ScWriterOperator(self, **self._output, key_slices=2, name="sc")
        flows = {
            measurements: ("volume", "lungs", "lesions", "involvement", "remarks"),
            seg: ("volume", "lungs", "lesions"),
            sr: ("volume", "classification", "explanation"),
            sc: ("volume", "lungs", "lesions", "classification", "explanation"),
        }
        for receiver, ports in flows.items():
            self.add_flow(source, receiver, {(port, port) for port in ports})
        for writer in (sr, sc):
            self.add_flow(measurements, writer, {(port, port) for port in ("measurements", "remarks")})
        self.add_flow(seg, sr, {("segmentation", "segmentation")})


def test_all_writers_work_in_a_graph_and_tell_what_they_wrote(tmp_path: Path) -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    Graph(tmp_path, journal).run()
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    pictures = ["sc/keyslice_01.dcm", "sc/keyslice_02.dcm", "sc/summary.dcm"]
    assert files == [*pictures, "seg/segmentation.dcm", "sr/report.dcm"]
    for name in files:
        assert not unexplained(dciodvfy(tmp_path / name)), name
    assert set(journal.seconds) == {"Measurements", "Segmentation writer", "Report writer", "Pictures writer"}
    found = no_lesions()
    left = 100 * found.measurements.left.volume_ml / found.measurements.total.volume_ml
    assert b"INVOLVEMENT_DISAGREES" in (tmp_path / "sr" / "report.dcm").read_bytes()
    said = [line.partition(" (")[0] for line in lines if not line.endswith("...")]
    litres = found.measurements.total.volume_ml / 1000
    doubt = f"Check how much of the lungs is affected: 0.0 % by the 3D U-Net, {left:.1f} % by 2DS."
    assert f"Measurements: {litres:.1f} L lung, {left:.1f} % involved, {doubt}" in said
    assert "Pictures writer: summary and 2 key slices" in said
