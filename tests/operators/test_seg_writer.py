import json
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.coding import Code
from pydicom.uid import EnhancedCTImageStorage

from operators.findings import Lesions, LesionType, Lung, Lungs
from operators.remarks import Remark, RemarkCode
from operators.seg_writer import LESION_SEGMENTS, LUNGS_SEGMENT, make_segmentation
from operators.volume import BoolArray, CTVolume
from tests.builders import ct_volume
from tests.operators.dicom_results import (
    CASES,
    Case,
    assert_valid,
    case,
    multi_frame,
    no_lesions,
    provenance,
    written,
)
from tests.validation.tools import run_tool

LABELS = [
    "Left lung",
    "Right lung",
    "Ground-glass opacity",
    "Consolidation",
    "Crazy paving",
    "Combined pattern",
    "Lungs",
]


def segmentation(found: Case) -> highdicom.seg.Segmentation:
    return make_segmentation(found.volume, found.lungs, found.lesions, provenance())


def masks(found: Case) -> dict[int, BoolArray]:
    return {
        1: found.lungs.labels == Lung.LEFT,
        2: found.lungs.labels == Lung.RIGHT,
        **{2 + kind: found.lesions.labels == kind for kind in LesionType},
        LUNGS_SEGMENT: found.lungs.labels > 0,
    }


@pytest.mark.parametrize("name", CASES)
def test_has_no_error_for_dciodvfy(name: str, tmp_path: Path) -> None:
    assert_valid(segmentation(CASES[name]()), tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_reads_back_voxel_for_voxel_in_the_geometry_of_the_ct(name: str, tmp_path: Path) -> None:
    found = CASES[name]()
    read = highdicom.seg.segread(written(segmentation(found), tmp_path / "seg.dcm"))
    images = [header.SOPInstanceUID for header in found.volume.headers]
    voxels = read.get_pixels_by_source_instance(
        images, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    for number, mask in masks(found).items():
        np.testing.assert_array_equal(voxels[..., number - 1].astype(bool), mask)
    assert [read.get_segment_description(number).segment_label for number in read.segment_numbers] == LABELS


@pytest.mark.parametrize("name", CASES)
def test_dcmqi_reads_the_same_voxels(name: str, tmp_path: Path) -> None:
    found = CASES[name]()
    file = written(segmentation(found), tmp_path / "seg.dcm")
    assert run_tool("segimage2itkimage", "--inputDICOM", file, "--outputDirectory", tmp_path)[0] == 0
    described = json.loads((tmp_path / "meta.json").read_text("utf-8"))["segmentAttributes"]
    assert [item["SegmentLabel"] for group in described for item in group] == LABELS
    for number, mask in masks(found).items():
        image = sitk.ReadImage(tmp_path / f"{number}.nrrd")
        voxels = sitk.GetArrayFromImage(image)
        assert np.count_nonzero(voxels) == np.count_nonzero(mask)
        if mask.any():
            first = np.argwhere(voxels)[0][::-1].tolist()
            index = np.append(np.argwhere(mask)[0], 1)
            expected = (found.volume.grid.affine @ index)[:3]
            np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(first), expected, atol=1e-4)


def test_each_of_several_multi_frame_sources_is_referred_to() -> None:
    found, volume = case(), multi_frame(3)
    made = make_segmentation(volume, found.lungs, found.lesions, provenance())
    (series,) = made.ReferencedSeriesSequence
    for items in (series.ReferencedInstanceSequence, made.SourceImageSequence):
        listed = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in items]
        assert listed == [(EnhancedCTImageStorage, f"1.2.{3 + k}") for k in range(3)]
    places = {
        tuple(map(float, header.ImagePositionPatient)): (header.SOPInstanceUID, frame)
        for header, frame in zip(volume.headers, volume.frames, strict=True)
    }
    for item in made.PerFrameFunctionalGroupsSequence:
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        place = tuple(map(float, item.PlanePositionSequence[0].ImagePositionPatient))
        assert (source.ReferencedSOPInstanceUID, int(source.ReferencedFrameNumber)) == places[place]
        assert source.ReferencedSOPClassUID == EnhancedCTImageStorage


def test_only_frames_with_something_in_them_are_stored() -> None:
    found = case()
    frames = sum(int(np.any(mask, axis=(1, 2)).sum()) for mask in masks(found).values())
    assert segmentation(found).NumberOfFrames == frames


def test_each_frame_names_its_position_and_source_image() -> None:
    found = case()
    positions = {header.SOPInstanceUID: header.ImagePositionPatient for header in found.volume.headers}
    made = segmentation(found)
    for frame in made.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == positions[source]
    shared = made.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == [1.5, 1.5]
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == found.volume.series_uid


def test_is_of_the_same_patient_study_and_frame_of_reference() -> None:
    found = case(IssuerOfPatientID="Clinic", PatientName="Müller^Jörg", AccessionNumber="A7")
    made, source = segmentation(found), found.volume.headers[0]
    keywords = (
        "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge StudyInstanceUID StudyDate "
        "StudyTime StudyID StudyDescription AccessionNumber FrameOfReferenceUID BodyPartExamined SpecificCharacterSet"
    )
    for keyword in keywords.split():
        assert made[keyword].value == source[keyword].value
    assert made.ContentQualification == "RESEARCH"


def test_codes_follow_the_standard() -> None:
    made = segmentation(case())
    left, ground_glass, combined = made.SegmentSequence[0], made.SegmentSequence[2], made.SegmentSequence[5]
    assert left.segmented_property_type == Code("39607008", "SCT", "Lung")
    modifiers = left.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert modifiers[0].CodeValue == "7771000"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in left
    assert ground_glass.segmented_property_type == Code("112120", "DCM", "Ground glass opacity")
    assert ground_glass.segmented_property_category == Code("49755003", "SCT", "Morphologically Abnormal Structure")
    assert combined.segmented_property_type.value == "112001"


def test_names_the_model_of_each_segment_and_a_colour_of_its_own() -> None:
    made = segmentation(case())
    models = provenance().models
    lesions = set(LESION_SEGMENTS.values())
    for item in made.SegmentSequence:
        model = models.lesions if item.SegmentNumber in lesions else models.lungs
        assert item.SegmentAlgorithmName == model.name
        assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == model.version
        assert item.SegmentAlgorithmType == "AUTOMATIC"
    assert len({tuple(item.RecommendedDisplayCIELabValue) for item in made.SegmentSequence}) == len(LABELS)


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (written(segmentation(case()), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_names_its_own_implementation(tmp_path: Path) -> None:
    read = pydicom.dcmread(written(segmentation(no_lesions()), tmp_path / "seg.dcm"))
    assert read.file_meta.ImplementationVersionName.startswith("COVIDCTMAP")
    assert read.InstanceCreationDate == "20260102"


def test_is_valid_where_the_source_lacks_patient_attributes(tmp_path: Path) -> None:
    found = case(PatientSex="")
    for header in found.volume.headers:
        del header.PatientName, header.PatientBirthDate, header.AccessionNumber, header.StudyTime
    assert_valid(segmentation(found), tmp_path)


def test_rejects_a_study_without_lungs_and_findings_on_another_grid() -> None:
    found = case()
    empty = np.zeros(found.volume.grid.shape, dtype=np.uint8)
    nothing = Lungs(empty, found.volume.grid), Lesions(empty.copy(), found.volume.grid)
    with pytest.raises(ValueError, match="at least one lung"):
        make_segmentation(found.volume, *nothing, provenance())
    other = ct_volume(found.volume.hu, (5.0, 1.5, 1.5))
    with pytest.raises(ValueError, match="grid"):
        make_segmentation(other, found.lungs, found.lesions, provenance())


@pytest.mark.parametrize("volume", [case().volume, multi_frame()], ids=["single-frame", "multi-frame"])
def test_is_oriented_as_the_volume_where_the_slices_differ_in_the_last_digits(volume: CTVolume) -> None:
    found = replace(case(), volume=volume)
    for header in found.volume.headers[1::2]:
        header.ImageOrientationPatient = [1, 1e-7, 0, 0, 1, 0]
    (shared,) = segmentation(found).SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("uneven", [False, True])
def test_states_the_spacing_of_frames_only_where_they_have_one(uneven: bool, tmp_path: Path) -> None:
    found = case()
    if uneven:
        resampled = Remark(RemarkCode.GAPS_RESAMPLED, "The gaps vary.")
        found = replace(found, volume=replace(found.volume, remarks=(resampled,)))
        found.volume.headers[3].ImagePositionPatient = [0, 0, 10]
    made = segmentation(found)
    ((measures,),) = [item.PixelMeasuresSequence for item in made.SharedFunctionalGroupsSequence]
    assert measures.get("SpacingBetweenSlices") == (None if uneven else 3)
    assert_valid(made, tmp_path)
