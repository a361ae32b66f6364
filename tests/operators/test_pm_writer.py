"""Parametric maps hold the heatmaps, where they belong in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from operators.pm_writer import CHANNELS, cropped_to_lungs, make_parametric_map
from tests.operators.dicom_results import CASES, Case, assert_valid, case, multi_frame, provenance, written


def _with_lungs(found: Case, rows: slice = slice(6, 14), columns: slice = slice(4, 20)) -> Case:
    inputs = np.zeros_like(found.classification.inputs)
    inputs[:, 0, rows, columns] = 0.5
    return replace(found, classification=replace(found.classification, inputs=inputs))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_is_valid(name: str, channel: str, tmp_path: Path) -> None:
    found = CASES[name]()
    assert_valid(make_parametric_map(found.volume, found.explanation, channel, provenance()), tmp_path)


@pytest.mark.parametrize("channel", CHANNELS)
def test_values_come_back_where_they_are_in_the_patient(channel: str, tmp_path: Path) -> None:
    found = _with_lungs(case())
    cropped = cropped_to_lungs(found.classification, found.explanation)
    path = written(make_parametric_map(found.volume, cropped, channel, provenance()), tmp_path / "pm.dcm")
    volume = hd.imread(path).get_volume()
    whole = getattr(found.explanation, channel)
    to_whole = np.linalg.inv(found.explanation.grid.affine)
    for index in [(0, 0, 0), (5, 2, 3), tuple(n - 1 for n in volume.shape[:3])]:
        k, i, j = np.rint((to_whole @ volume.affine @ [*index, 1])[:3]).astype(int)
        assert volume.array[index] == whole[k, i, j]
    kept = np.abs(cropped.ct).sum() / np.abs(found.explanation.ct).sum()
    assert 0 < kept <= 1


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (slice(6, 14), slice(4, 20), (12, 13, 21)),
        (slice(14, 19), slice(12, 23), (12, 9, 15)),  # 8 mm would lead over the end of both
        (slice(1, 3), slice(2, 4), (12, 5, 6)),  # and over their start
    ],
    ids=["in the middle", "near the bottom right", "near the top left"],
)
def test_crop_keeps_the_lungs_with_a_margin_and_all_slices(
    rows: slice, columns: slice, shape: tuple[int, int, int]
) -> None:
    """Pixels are 3 mm. All within 8 mm of the lungs stay, and next to nothing else; counted pixel by pixel."""
    found = _with_lungs(case(), rows, columns)
    whole = found.explanation
    cropped = cropped_to_lungs(found.classification, whole)
    assert cropped.grid.shape == cropped.ct.shape == cropped.lesions.shape == shape
    starts = np.rint(np.linalg.inv(whole.grid.affine) @ cropped.grid.affine @ [0, 0, 0, 1])[1:3].astype(int).tolist()
    for lung, start, kept, size in zip((rows, columns), starts, shape[1:], whole.grid.shape[1:], strict=True):
        near = [at for at in range(size) if any(3.0 * abs(at - there) <= 8.0 for there in range(size)[lung])]
        assert max(0, near[0] - 1) <= start <= near[0]
        assert near[-1] <= start + kept - 1 <= min(size - 1, near[-1] + 1)
    (row, column), (_, height, width) = starts, shape
    place = slice(None), slice(row, row + height), slice(column, column + width)
    np.testing.assert_array_equal(cropped.ct, whole.ct[place])
    np.testing.assert_array_equal(cropped.lesions, whole.lesions[place])


def test_without_lungs_nothing_is_cropped() -> None:
    found = case()
    assert cropped_to_lungs(found.classification, found.explanation).grid.shape == found.explanation.grid.shape


def test_real_world_values_are_relevance() -> None:
    found = case()
    made = make_parametric_map(found.volume, found.explanation, "ct", provenance())
    (shared,) = made.SharedFunctionalGroupsSequence
    (mapping,) = shared.RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130404"
    assert "COVID-19 positive" in mapping.LUTExplanation
    assert made.FrameOfReferenceUID == found.volume.headers[0].FrameOfReferenceUID
    assert made.ContentQualification == "RESEARCH"


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    found = case()
    maps = (make_parametric_map(found.volume, found.explanation, "ct", provenance()) for _ in range(2))
    first, second = (written(made, tmp_path / f"{k}.dcm").read_bytes() for k, made in enumerate(maps))
    assert first == second


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_a_heatmap_of_hardly_any_relevance_is_valid(scale: float, tmp_path: Path) -> None:
    found = case()
    faint = found.explanation.ct * np.float32(scale)
    made = make_parametric_map(found.volume, replace(found.explanation, ct=faint), "ct", provenance())
    assert_valid(made, tmp_path)
    assert not pydicom.dcmread(tmp_path / "object.dcm").get("PixelData")


@pytest.mark.parametrize("objects", [1, 3])
def test_multi_frame_sources_are_referred_to_once_as_what_they_are(objects: int) -> None:
    """And their frames, whose planes are those of the map here, by number."""
    found = case()
    volume = multi_frame(objects)
    made = make_parametric_map(volume, found.explanation, "ct", provenance())
    (series,) = made.ReferencedSeriesSequence
    enhanced = [(EnhancedCTImageStorage, f"1.2.{3 + k}") for k in range(objects)]
    assert references(series.ReferencedInstanceSequence) == references(made.SourceImageSequence) == enhanced
    places = {
        float(header.ImagePositionPatient[2]): (header.SOPInstanceUID, frame)
        for header, frame in zip(volume.headers, volume.frames, strict=True)
    }
    for frame in made.PerFrameFunctionalGroupsSequence:
        ((source,),) = [each.SourceImageSequence for each in frame.DerivationImageSequence]
        assert source.ReferencedSOPClassUID == EnhancedCTImageStorage
        place = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        assert (source.ReferencedSOPInstanceUID, int(source.ReferencedFrameNumber)) == places[place]


def references(items: Sequence[Dataset]) -> list[tuple[str, str]]:
    return [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in items]


def test_is_oriented_as_the_volume_where_the_slices_differ_in_the_last_digits() -> None:
    found = case()
    for header in found.volume.headers[1::2]:
        header.ImageOrientationPatient = [1, 1e-7, 0, 0, 1, 0]
    made = make_parametric_map(found.volume, found.explanation, "ct", provenance())
    (shared,) = made.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("stated", ["", [1.25, 5], None])
@pytest.mark.parametrize("shape", [(12, 20, 24), (6, 40, 48)], ids=["pixels larger", "pixels as of the CT"])
def test_measures_its_own_slices_whatever_the_source_says_of_its_own(
    stated: str | list[float] | None, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    found = case(SliceThickness=stated, SpacingBetweenSlices=stated)
    if stated is None:
        for header in found.volume.headers:
            del header.SliceThickness, header.SpacingBetweenSlices
    grid = found.volume.grid.resampled(shape)
    explanation = replace(found.explanation, **dict.fromkeys(CHANNELS, np.zeros(shape, np.float32)), grid=grid)
    made = make_parametric_map(found.volume, explanation, "ct", provenance())
    ((measures,),) = [item.PixelMeasuresSequence for item in made.SharedFunctionalGroupsSequence]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (grid.spacing[0], grid.spacing[0])
    assert_valid(made, tmp_path)
