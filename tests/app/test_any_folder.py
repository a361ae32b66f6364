"""The whole application on folders as hospitals have them: several studies, missing slices, frames, any orientation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from app.outcome import RunFailed
from app.settings import load_settings
from app.study import Request, SomeRefused, run_folder
from operators.refusal import InputRefused, ReasonCode
from operators.selection_rules import ANY_SERIES
from tests.app.test_application import models  # noqa: F401 - a fixture
from tests.builders import write_series
from tests.operators.test_series_loader import set_all
from tests.validation.tools import dciodvfy, unexplained

pytestmark = pytest.mark.whole

SPACING = (4.0, 6.0, 6.0)
SETTINGS = ["in_plane=32"]


def _hu() -> np.ndarray:
    """Tissue with a right lung that is larger than the left, of other attenuation, and reaches higher."""
    hu = np.full((36, 30, 36), 40.0)
    hu[4:32, 6:24, 4:17] = -850.0
    hu[4:26, 8:22, 20:31] = -700.0
    return hu


def _run(folder: Path, output: Path, models_: Path) -> Any:
    return run_folder(Request(folder, output, models_, load_settings(SETTINGS), ANY_SERIES), lambda line: None)


def _result(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "result.json").read_text("utf-8")))


def _text(report: Path) -> str:
    """All text of a report."""
    elements = pydicom.dcmread(report).iterall()
    return "\n".join(str(element.value) for element in elements if element.keyword == "TextValue")


@pytest.fixture(scope="module")
def axial(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """Result of the plain axial series."""
    folder = tmp_path_factory.mktemp("axial")
    write_series(folder / "in", _hu(), SPACING)
    _run(folder / "in", folder / "out", models)
    return _result(folder / "out")


def _turned(folder: Path, axes: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    """Write the same body as another acquisition would show it: array axes permuted, then some reversed."""
    hu = np.flip(_hu().transpose(axes), flips)
    directions = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])[list(axes)]
    spacing = [SPACING[axis] for axis in axes]
    first = np.zeros(3)
    for axis in flips:
        first += directions[axis] * spacing[axis] * (hu.shape[axis] - 1)
        directions[axis] *= -1
    assert np.dot(np.cross(directions[2], directions[1]), directions[0]) > 0.99, "slices must ascend along the normal"
    for k, path in enumerate(write_series(folder, hu, tuple(spacing))):  # type: ignore[arg-type]
        place = first + k * spacing[0] * directions[0]
        set_all([path], ImageOrientationPatient=[*directions[2], *directions[1]], ImagePositionPatient=place.tolist())


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        pytest.param((0, 1, 2), (0, 2), id="feet first", marks=pytest.mark.slow),
        pytest.param((0, 1, 2), (1, 2), id="prone", marks=pytest.mark.slow),
        pytest.param((0, 2, 1), (1,), id="decubitus", marks=pytest.mark.slow),
        pytest.param((1, 0, 2), (1,), id="coronal"),
        pytest.param((2, 0, 1), (0, 1), id="sagittal", marks=pytest.mark.slow),
    ],
)
def test_left_is_left_in_every_output(
    axes: tuple[int, int, int],
    flips: tuple[int, ...],
    axial: dict[str, Any],
    models: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    _turned(tmp_path / "in", axes, flips)
    _run(tmp_path / "in", tmp_path / "out", models)
    found = _result(tmp_path / "out")
    for side in ("left", "right", "total"):
        ours, expected = found["measurements"][side], axial["measurements"][side]
        assert ours["volume_ml"] == pytest.approx(expected["volume_ml"])
        assert ours["mean_hu"] == pytest.approx(expected["mean_hu"])
        for finding in ("all_lesions", "involvement"):
            assert ours[finding]["volume_ml"] == pytest.approx(expected[finding]["volume_ml"])
    assert found["probability"] == pytest.approx(axial["probability"], abs=1e-6)
    segmentation = hd.seg.segread(tmp_path / "out" / "seg" / "segmentation.dcm")
    for number, sign in ((1, 1), (2, -1)):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
        middle = (volume.affine @ [*np.argwhere(volume.array).mean(axis=0), 1])[0]
        assert sign * (middle - 17.5 * 6.0) > 10.0, "left lies at larger x"
    for path in sorted((tmp_path / "out").rglob("*.dcm")):
        assert not unexplained(dciodvfy(path)), path.name


def test_a_missing_slice_is_remarked_on_everywhere(models: Path, tmp_path: Path) -> None:  # noqa: F811
    files = write_series(tmp_path / "in", np.repeat(_hu(), 2, axis=0), (2.0, 6.0, 6.0))
    files[30].unlink()
    _run(tmp_path / "in", tmp_path / "out", models)
    result = _result(tmp_path / "out")
    assert result["remarks"][0]["code"] == "SLICES_INTERPOLATED"
    assert "SLICES_INTERPOLATED: 1 of 72 slices are missing" in _text(tmp_path / "out" / "sr" / "report.dcm")
    segmentation = pydicom.dcmread(tmp_path / "out" / "seg" / "segmentation.dcm")
    heights = {
        float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        for item in segmentation.PerFrameFunctionalGroupsSequence
    }
    assert heights >= {2.0 * k for k in range(8, 64)} - {60.0}
    assert 60.0 not in heights, "no image shows this slice"
    for path in sorted((tmp_path / "out").rglob("*.dcm")):
        assert not unexplained(dciodvfy(path)), path.name


def test_a_multi_frame_ct_is_read_and_referred_to_by_its_frames(
    axial: dict[str, Any],
    models: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    images = [pydicom.dcmread(path) for path in write_series(tmp_path / "single", _hu(), SPACING)]
    for image in images:
        image.BurnedInAnnotation = "NO"
    enhanced = LegacyConvertedEnhancedCTImage(images[::-1], generate_uid(), 1, generate_uid(), 1)
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    (tmp_path / "in").mkdir()
    enhanced.save_as(tmp_path / "in" / "enhanced.dcm", enforce_file_format=True)
    _run(tmp_path / "in", tmp_path / "out", models)
    assert _result(tmp_path / "out")["measurements"] == axial["measurements"]
    for path in sorted((tmp_path / "out").rglob("*.dcm")):
        assert not unexplained(dciodvfy(path)), path.name
    segmentation = pydicom.dcmread(tmp_path / "out" / "seg" / "segmentation.dcm")
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
        frame = enhanced.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        assert item.PlanePositionSequence[0].ImagePositionPatient == frame.PlanePositionSequence[0].ImagePositionPatient
    (references,) = segmentation.ReferencedSeriesSequence
    assert [r.ReferencedSOPInstanceUID for r in references.ReferencedInstanceSequence] == [enhanced.SOPInstanceUID]
    report = pydicom.dcmread(tmp_path / "out" / "sr" / "report.dcm")
    evidence = [
        reference.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]
    assert sorted(evidence) == sorted([enhanced.SOPInstanceUID, segmentation.SOPInstanceUID])


def _two_studies(folder: Path) -> None:
    write_series(folder / "a", _hu(), SPACING, study="one", PatientID="A1", StudyInstanceUID="1.2.3")
    write_series(folder / "b", _hu() - 60.0, SPACING, study="two", PatientID="B2", StudyInstanceUID="1.2.4")


def test_each_study_gets_results_of_its_own(axial: dict[str, Any], models: Path, tmp_path: Path) -> None:  # noqa: F811
    _two_studies(tmp_path / "in")
    results = _run(tmp_path / "in", tmp_path / "out", models)
    assert [result.study_uid for result in results] == ["1.2.3", "1.2.4"]
    listed = _result(tmp_path / "out")
    assert listed["status"] == "completed"
    assert [(study["folder"], study["status"]) for study in listed["studies"]] == [
        ("1.2.3", "completed"),
        ("1.2.4", "completed"),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "1.2.3",
        "1.2.4",
        "metadata.json",
        "result.json",
    ]
    for uid, patient in (("1.2.3", "A1"), ("1.2.4", "B2")):
        own = _result(tmp_path / "out" / uid)
        assert own["study_uid"] == uid
        for path in sorted((tmp_path / "out" / uid).rglob("*.dcm")):
            written = pydicom.dcmread(path, stop_before_pixels=True)
            assert (written.StudyInstanceUID, written.PatientID) == (uid, patient)
    first, second = (_result(tmp_path / "out" / uid)["measurements"]["total"] for uid in ("1.2.3", "1.2.4"))
    assert first == axial["measurements"]["total"]
    assert second["mean_hu"] == pytest.approx(first["mean_hu"] - 60.0, abs=2.0)


def test_a_refused_study_does_not_keep_the_others_from_their_results(models: Path, tmp_path: Path) -> None:  # noqa: F811
    _two_studies(tmp_path / "in")
    for path in list((tmp_path / "in" / "a").iterdir())[:34]:
        path.unlink()
    with pytest.raises(SomeRefused, match="1 of 2 studies") as refused:
        _run(tmp_path / "in", tmp_path / "out", models)
    assert refused.value.code in (ReasonCode.NO_CT_SERIES, ReasonCode.PARTIAL_COVERAGE)
    listed = _result(tmp_path / "out")
    assert listed["status"] == "partly_refused"
    assert listed["reason_codes"] == [refused.value.code]
    assert _result(tmp_path / "out" / "1.2.3")["status"] == "refused"
    assert _result(tmp_path / "out" / "1.2.4")["status"] == "completed"


def test_a_study_that_fails_does_not_keep_the_others_from_their_results(models: Path, tmp_path: Path) -> None:  # noqa: F811
    """And no list of an earlier run says that it is completed."""
    _two_studies(tmp_path / "in")
    foreign = tmp_path / "out" / "1.2.3" / "sr"
    foreign.mkdir(parents=True)
    (foreign / "letter.txt").write_text("of another")
    (tmp_path / "out" / "result.json").write_text(json.dumps({"software": {"name": "covid-ct-map"}, "files": []}))
    said: list[str] = []

    def listen(line: str) -> None:
        said.append(line)
        assert not line.startswith("Study ") or not (tmp_path / "out" / "result.json").exists(), "a run may be killed"

    settings = load_settings(SETTINGS)
    with pytest.raises(RunFailed, match="1 of 2 studies failed"):
        run_folder(Request(tmp_path / "in", tmp_path / "out", models, settings, ANY_SERIES), listen)
    assert any(line.startswith("error: ") and "1.2.3" in line for line in said)
    listed = _result(tmp_path / "out")
    assert listed["status"] == "failed"
    assert listed["message"] == "1 of 2 studies were processed"
    assert [(each["folder"], each["status"]) for each in listed["studies"]] == [
        ("1.2.3", "failed"),
        ("1.2.4", "completed"),
    ]
    assert _result(tmp_path / "out" / "1.2.4")["status"] == "completed"
    assert [path.name for path in foreign.parent.rglob("*")] == ["sr", "letter.txt"]


def test_without_models_nothing_of_several_studies_is_begun(tmp_path: Path) -> None:
    _two_studies(tmp_path / "in")
    (tmp_path / "none").mkdir()
    with pytest.raises(RunFailed):
        _run(tmp_path / "in", tmp_path / "out", tmp_path / "none")
    assert not (tmp_path / "out").exists()


def _one(folder: Path, output: Path, models_: Path) -> Any:
    settings = load_settings([*SETTINGS, "studies=one"])
    return run_folder(Request(folder, output, models_, settings, ANY_SERIES), lambda line: None)


def test_a_folder_of_several_studies_is_refused_where_one_is_expected(models: Path, tmp_path: Path) -> None:  # noqa: F811
    _two_studies(tmp_path / "in")
    with pytest.raises(Exception, match="2 studies with CT images") as refused:
        _one(tmp_path / "in", tmp_path / "out", models)
    assert refused.value.code is ReasonCode.MIXED_STUDIES  # type: ignore[attr-defined]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metadata.json", "result.json"]


def test_flat_results_are_of_one_study(
    models: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder of its own, mercure would not see those of another."""
    monkeypatch.setenv("MERCURE_OUT_DIR", str(tmp_path))
    _two_studies(tmp_path / "in")
    with pytest.raises(InputRefused) as refused:
        _run(tmp_path / "in", tmp_path / "out", models)
    assert refused.value.code is ReasonCode.MIXED_STUDIES
    _run(tmp_path / "in" / "a", tmp_path / "out", models)
    result = _result(tmp_path / "out")
    assert result["settings"]["layout"] == "flat"
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted([*(file["path"] for file in result["files"]), "metadata.json", "result.json"])
    assert {name.partition("-")[0] for name in written if name.endswith(".dcm")} == {"sr", "seg", "sc", "pm"}


def _bulging(hu: np.ndarray) -> np.ndarray:
    """A lung that goes on beyond the first column."""
    hu[8:20, 8:20, 0:5] = -850.0
    return hu


Cut = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    ("cut", "code"),
    [
        (_bulging, "LUNGS_CUT_BY_FIELD_OF_VIEW"),
        (lambda hu: np.where(hu == -700.0, 40.0, hu), "ONE_LUNG"),
    ],
)
@pytest.mark.slow
def test_doubts_about_the_content_are_in_result_and_report(
    cut: Cut,
    code: str,
    models: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "in", cut(_hu()), SPACING)
    _run(tmp_path / "in", tmp_path / "out", models)
    assert code in [remark["code"] for remark in _result(tmp_path / "out")["remarks"]]
    assert f"{code}: " in _text(tmp_path / "out" / "sr" / "report.dcm")
