"""Loading a folder: right, or refused with the reason code that applies. Every case states exactly what must come."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from holoscan.conditions import CountCondition
from monai.deploy.core import Application, Operator
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from operators.dicom_folder import scan_folder
from operators.journal import Journal
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import RemarkCode
from operators.selection_rules import ANY_SERIES, SelectionRules
from operators.series_loader import SeriesLoaderOperator, describe, load_ct_series, load_study
from operators.studies import group_studies
from operators.volume import CTVolume
from tests.builders import axial_grid, write_series

SPACING = (30.0, 1.5, 0.75)
ORIGIN = (-5.0, -7.0, 100.0)
HU = np.random.default_rng(0).integers(-1024, 1500, (6, 8, 10)).astype(np.float32)
AFFINE = axial_grid((6, 8, 10), SPACING, ORIGIN).affine
Files = list[Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A series of six slices, in order from feet to head."""
    return write_series(tmp_path / "in", HU, SPACING, origin=ORIGIN)


def edit(path: Path, change: Callable[[Dataset], object]) -> None:
    image = pydicom.dcmread(path)
    change(image)
    image.save_as(path)


def set_all(files: Files, **attributes: object) -> None:
    for path in files:
        edit(path, lambda image: [setattr(image, keyword, value) for keyword, value in attributes.items()])


def copy(path: Path, name: str, **attributes: object) -> Path:
    target = path.parent / name
    target.parent.mkdir(exist_ok=True)
    shutil.copy(path, target)
    if attributes:
        set_all([target], **attributes)
    return target


def copy_series(files: Files, folder: str, **attributes: object) -> Files:
    """Another series of the same slices."""
    common = {"SeriesInstanceUID": generate_uid(), **attributes}
    return [copy(path, f"{folder}/{path.name}", SOPInstanceUID=generate_uid(), **common) for path in files]


def refusal(folder: Path) -> InputRefused:
    with pytest.raises(InputRefused) as refused:
        load_ct_series(folder)
    return refused.value


# --- what must load, and what it must be ---


@dataclass
class Expected:
    """What must come of a folder."""

    hu: npt.NDArray[np.float32] = field(default_factory=lambda: HU)
    affine: npt.NDArray[np.float64] = field(default_factory=lambda: AFFINE)
    remarks: tuple[RemarkCode, ...] = ()
    places: tuple[int, ...] = ()


Accepted = Callable[[Files], Expected | None]
ACCEPTED: dict[str, Accepted] = {}


def accepted(case: Accepted) -> Accepted:
    ACCEPTED[case.__name__] = case
    return case


@accepted
def as_written(files: Files) -> None:
    """Nothing is changed."""


@accepted
def rescale_of_each_slice(files: Files) -> Expected:
    stored = [pydicom.dcmread(path).pixel_array for path in files]
    for k, path in enumerate(files):
        set_all([path], RescaleSlope=0.5 + 0.25 * k, RescaleIntercept=-10 * k)
    hu = np.empty_like(HU)
    for k in range(6):
        for row in range(8):
            for column in range(10):
                hu[k, row, column] = max(-1024.0, float(stored[k][row, column]) * (0.5 + 0.25 * k) - 10 * k)
    return Expected(hu)


@accepted
def first_slice_all_dense(files: Files) -> Expected:
    """The SDK takes the type of all from the first slice."""
    edit(files[0], lambda image: setattr(image, "PixelData", np.full((8, 10), 1524, "<i2").tobytes()))
    hu = HU.copy()
    header = pydicom.dcmread(files[0])
    hu[0] = 1524 * float(header.RescaleSlope) + float(header.RescaleIntercept)
    return Expected(hu)


@accepted
def padding(files: Files) -> Expected:
    stored = np.arange(80).reshape(8, 10).astype("<i2")
    stored[0, :4] = (-2000, -3000, -2500, -2001)

    def pad(image: Dataset) -> None:
        image.PixelData = stored.tobytes()
        image.RescaleIntercept = 0
        image.add_new("PixelPaddingValue", "SS", 10)
        image.add_new("PixelPaddingRangeLimit", "SS", 19)

    edit(files[2], pad)
    hu = HU.copy()
    hu[2] = stored
    hu[2, 0, :4] = hu[2, 1, :] = -1024.0
    return Expected(hu)


@accepted
def padding_written_unsigned(files: Files) -> Expected:
    stored = np.full((8, 10), 500, dtype="<i2")
    stored[3, 3] = -2000

    def pad(image: Dataset) -> None:
        image.PixelData = stored.tobytes()
        image.RescaleIntercept = 1500
        image.add_new("PixelPaddingValue", "US", 65536 - 2000)

    edit(files[1], pad)
    hu = HU.copy()
    hu[1] = 2000.0
    hu[1, 3, 3] = -1024.0
    return Expected(hu)


def _rewritten(files: Files, syntax: UID) -> None:
    for path in files:
        image = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        bare = Dataset({element.tag: element for element in image})
        bare.file_meta = image.file_meta
        bare.file_meta.TransferSyntaxUID = syntax
        bare.save_as(path, enforce_file_format=True)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


def _compressed(files: Files, syntax: UID) -> None:
    for path in files:
        edit(path, lambda image: image.compress(syntax, generate_instance_uid=False))
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


@accepted
def implicit_little_endian(files: Files) -> None:
    _rewritten(files, ImplicitVRLittleEndian)


@accepted
def explicit_big_endian(files: Files) -> None:
    _rewritten(files, ExplicitVRBigEndian)


@accepted
def deflated(files: Files) -> None:
    _rewritten(files, DeflatedExplicitVRLittleEndian)


@accepted
def rle(files: Files) -> None:
    _compressed(files, RLELossless)


@accepted
def jpeg_ls(files: Files) -> None:
    _compressed(files, JPEGLSLossless)


@accepted
def several_syntaxes_in_one_series(files: Files) -> None:
    _compressed(files[:2], JPEGLSLossless)
    _compressed(files[2:3], RLELossless)
    _rewritten(files[3:4], ExplicitVRBigEndian)


def _bare(files: Files, implicit: bool) -> None:
    for path in files:
        image = pydicom.dcmread(path)
        bare = Dataset({element.tag: element for element in image})
        bare.save_as(path, implicit_vr=implicit, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"


@accepted
def no_preamble_implicit(files: Files) -> None:
    _bare(files, implicit=True)


@accepted
def no_preamble_explicit(files: Files) -> None:
    _bare(files, implicit=False)


@accepted
def nested_folders_links_and_other_files(files: Files) -> None:
    folder = files[0].parent
    (folder / "a" / "b").mkdir(parents=True)
    shutil.move(files[0], folder / "a" / "b" / "1.2.840.113619")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself.link")
    (folder / "itself.link").symlink_to(folder / "again")
    (folder / "again").symlink_to(files[1])
    (folder / "notes.txt").write_text("DICM")
    (folder / "README").write_text("read me")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / ".DS_Store").write_bytes(b"")


@accepted
def forty_folders_deep(files: Files) -> None:
    deep = files[0].parent.joinpath(*(str(k) for k in range(40)))
    deep.mkdir(parents=True)
    for path in files:
        shutil.move(path, deep / path.name)


@accepted
def two_thousand_unrelated_files(files: Files) -> None:
    for k in range(2000):
        (files[0].parent / f"{k}.txt").write_bytes(b"no DICOM" * 20)


@accepted
def a_directory_file_under_another_name(files: Files) -> None:
    directory = Dataset()
    directory.FileSetID = "DISC"
    directory.DirectoryRecordSequence = []
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.save_as(files[0].with_name("index.dcm"), enforce_file_format=True)


@accepted
def files_in_any_order_of_names(files: Files) -> None:
    for path, name in zip(files, "dacfbe", strict=True):
        path.rename(path.with_name(f"{name}.dcm"))


@accepted
def instance_numbers_against_the_positions(files: Files) -> None:
    for k, path in enumerate(files):
        set_all([path], InstanceNumber=[3, 1, 5, 2, 6, 4][k])


@accepted
def localizer_series_picture_and_report(files: Files) -> None:
    copy(
        files[0],
        "scout.dcm",
        SOPInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.4",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    copy(files[0], "dose.dcm", SOPInstanceUID="1.2.5", SeriesInstanceUID="1.2.6", SamplesPerPixel=3)
    copy(files[0], "report.dcm", SOPInstanceUID="1.2.7", SeriesInstanceUID="1.2.8", SOPClassUID=ComprehensiveSRStorage)


@accepted
def report_of_another_study(files: Files) -> None:
    copy(files[0], "sr", SOPClassUID=ComprehensiveSRStorage, StudyInstanceUID="1.2", SOPInstanceUID="1.3")


@accepted
def localizer_inside_the_series(files: Files) -> Expected:
    copy(files[0], "scout.dcm", SOPInstanceUID=generate_uid(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return Expected(remarks=(RemarkCode.STRAY_IMAGES_DROPPED,))


@accepted
def unmarked_localizer_inside_the_series(files: Files) -> Expected:
    copy(files[0], "scout.dcm", SOPInstanceUID=generate_uid(), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    return Expected(remarks=(RemarkCode.STRAY_IMAGES_DROPPED,))


@accepted
def dose_picture_inside_the_series(files: Files) -> Expected:
    copy(files[0], "dose.dcm", SOPInstanceUID=generate_uid(), SamplesPerPixel=3)
    return Expected(remarks=(RemarkCode.STRAY_IMAGES_DROPPED,))


@accepted
def same_file_twice(files: Files) -> Expected:
    copy(files[3], "twice.dcm")
    return Expected(remarks=(RemarkCode.DUPLICATES_DROPPED,))


@accepted
def whole_series_twice_in_other_folders(files: Files) -> Expected:
    for path in files:
        copy(path, f"backup/{path.name}")
    return Expected(remarks=(RemarkCode.DUPLICATES_DROPPED,))


@accepted
def same_slice_under_another_uid(files: Files) -> Expected:
    copy(files[3], "twice.dcm", SOPInstanceUID=generate_uid())
    return Expected(remarks=(RemarkCode.DUPLICATES_DROPPED,))


@accepted
def no_frame_of_reference(files: Files) -> Expected:
    for path in files:
        edit(path, lambda image: image.__delattr__("FrameOfReferenceUID"))
    return Expected(remarks=(RemarkCode.FRAME_OF_REFERENCE_ADDED,))


@accepted
def empty_frame_of_reference(files: Files) -> Expected:
    set_all(files, FrameOfReferenceUID="")
    return Expected(remarks=(RemarkCode.FRAME_OF_REFERENCE_ADDED,))


@accepted
def two_overlapping_acquisitions(files: Files) -> Expected:
    set_all(files, AcquisitionNumber=1)
    for k, path in enumerate(files[1:]):
        copy(path, f"second{k}.dcm", SOPInstanceUID=generate_uid(), AcquisitionNumber=2, RescaleIntercept=7)
    return Expected(remarks=(RemarkCode.ACQUISITION_CHOSEN,))


@accepted
def interleaved_acquisitions(files: Files) -> Expected:
    """Inspiration and expiration half a gap apart would make a uniform stack of twice as many slices."""
    set_all(files, AcquisitionNumber=4)
    for k, path in enumerate(files[:5]):
        place = [*ORIGIN[:2], 115 + 30 * k]
        copy(path, f"second{k}.dcm", SOPInstanceUID=generate_uid(), AcquisitionNumber=5, ImagePositionPatient=place)
    return Expected(remarks=(RemarkCode.ACQUISITION_CHOSEN,))


@accepted
def two_kernels_in_one_series(files: Files) -> Expected:
    set_all(files, ConvolutionKernel="B30f")
    for k, path in enumerate(files[2:]):
        copy(path, f"sharp{k}.dcm", SOPInstanceUID=generate_uid(), ConvolutionKernel="B70f", RescaleIntercept=3)
    return Expected(remarks=(RemarkCode.ACQUISITION_CHOSEN,))


@accepted
def acquisitions_one_after_the_other(files: Files) -> None:
    for k, path in enumerate(files):
        set_all([path], AcquisitionNumber=1 + k // 3, AcquisitionTime=f"1200{k:02d}")


@accepted
def longest_series_wins(files: Files) -> Expected:
    hu = np.arange(7 * 80, dtype=np.float32).reshape(7, 8, 10)
    more = write_series(files[0].parent / "other", hu, SPACING, ORIGIN, SeriesInstanceUID=generate_uid())
    for path in more:
        set_all([path], SOPInstanceUID=generate_uid())
    return Expected(hu)


@accepted
def original_before_derived(files: Files) -> None:
    more = np.zeros((7, 8, 10), np.float32)
    other = {"SeriesInstanceUID": generate_uid(), "ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}
    for path in write_series(files[0].parent / "other", more, SPACING, ORIGIN, **other):
        set_all([path], SOPInstanceUID=generate_uid())


@accepted
def projections_are_no_slices(files: Files) -> None:
    set_all(copy_series(files, "mip", SeriesNumber=0), ImageType=["DERIVED", "SECONDARY", "MIP"], RescaleIntercept=5)


@accepted
def two_equal_series_the_lower_number(files: Files) -> None:
    number = int(pydicom.dcmread(files[0]).SeriesNumber)
    set_all(copy_series(files, "second", SeriesNumber=number + 1), RescaleIntercept=9)


@accepted
def another_body_part_comes_last(files: Files) -> None:
    set_all(files, BodyPartExamined="CHEST", SeriesNumber=9)
    set_all(copy_series(files, "head"), BodyPartExamined="HEAD", SeriesNumber=1, RescaleIntercept=5)


@accepted
def body_part_is_only_a_hint(files: Files) -> None:
    set_all(files, BodyPartExamined="ABDOMEN")


@accepted
def rounded_positions(files: Files) -> Expected:
    """Some scanners round positions to 0.1 mm."""
    for path in files:
        path.unlink()
    hu = np.zeros((200, 4, 4), dtype=np.float32)
    for k, path in enumerate(write_series(files[0].parent, hu, (0.625, 1.0, 1.0))):
        set_all([path], ImagePositionPatient=[0, 0, round(0.625 * k, 1)])
    last = round(0.625 * 199, 1)
    return Expected(hu, axial_grid((200, 4, 4), (last / 199, 1.0, 1.0)).affine)


def _thin(files: Files) -> tuple[npt.NDArray[np.float32], Files]:
    """60 slices 2 mm apart in the place of the six."""
    for path in files:
        path.unlink()
    hu = np.random.default_rng(1).integers(-1024, 1500, (60, 4, 5)).astype(np.float32)
    return hu, write_series(files[0].parent, hu, (2.0, 1.0, 1.0))


@accepted
def one_thin_slice_missing(files: Files) -> Expected:
    hu, thin = _thin(files)
    thin[30].unlink()
    hu[30] = (hu[29] + hu[31]) / 2
    places = (*range(30), *range(31, 60))
    return Expected(hu, axial_grid(hu.shape, (2.0, 1.0, 1.0)).affine, (RemarkCode.SLICES_INTERPOLATED,), places)


@accepted
def three_thin_slices_missing_in_two_places(files: Files) -> Expected:
    hu, thin = _thin(files)
    for k in (10, 40):
        thin[k].unlink()
        hu[k] = (hu[k - 1] + hu[k + 1]) / 2
    places = tuple(k for k in range(60) if k not in (10, 40))
    return Expected(hu, axial_grid(hu.shape, (2.0, 1.0, 1.0)).affine, (RemarkCode.SLICES_INTERPOLATED,), places)


def _millimetre(files: Files, *, missing: Sequence[int]) -> Expected:
    """120 slices 1 mm apart in the place of the six, of which some are gone; what they hold is found by a loop."""
    for path in files:
        path.unlink()
    written = np.random.default_rng(2).integers(-1024, 1500, (120, 4, 5)).astype(np.float32)
    paths = write_series(files[0].parent, written, (1.0, 1.0, 1.0))
    hu = written.copy()
    for k in missing:
        paths[k].unlink()
        below, above = k, k
        while below in missing:
            below -= 1
        while above in missing:
            above += 1
        hu[k] = ((above - k) * written[below] + (k - below) * written[above]) / (above - below)
    places = tuple(k for k in range(120) if k not in missing)
    affine = axial_grid((120, 4, 5), (1.0, 1.0, 1.0)).affine
    return Expected(hu, affine, (RemarkCode.SLICES_INTERPOLATED,), places)


@accepted
def two_thin_slices_missing_in_a_row(files: Files) -> Expected:
    """Each is nearer to one of its neighbours: two thirds of it."""
    return _millimetre(files, missing=(40, 41, 70))


@accepted
def a_tenth_of_the_slices_missing(files: Files) -> Expected:
    return _millimetre(files, missing=range(5, 120, 10))


@accepted
def gaps_of_two_and_three_millimetres(files: Files) -> Expected:
    """Every place is interpolated between its neighbours, naively here."""
    hu, thin = _thin(files)
    z = np.cumsum([0, *([2.0, 3.0] * 30)])[:60]
    for path, place in zip(thin, z.tolist(), strict=True):
        set_all([path], ImagePositionPatient=[0, 0, place])
    count = int(np.ceil(z[-1] / 2.0)) + 1
    gap = z[-1] / (count - 1)
    expected = np.empty((count, 4, 5), np.float32)
    for row in range(4):
        for column in range(5):
            expected[:, row, column] = np.interp(np.arange(count) * gap, z, hu[:, row, column])
    places = tuple(int(np.floor(place / gap + 0.5)) for place in z)
    affine = axial_grid(expected.shape, (gap, 1.0, 1.0)).affine  # type: ignore[arg-type]
    return Expected(expected, affine, (RemarkCode.GAPS_RESAMPLED,), places)


@accepted
def slices_thinner_than_their_gaps(files: Files) -> Expected:
    set_all(files, SliceThickness=1.0)
    return Expected(remarks=(RemarkCode.SPARSE_SLICES,))


def _turned(files: Files, row: list[float], column: list[float], normal: list[float]) -> Expected:
    """Give the slices other directions; they are stacked along the normal, from the origin."""
    axes = np.array([normal, column, row], float).T
    for k, path in enumerate(files):
        place = (np.array(ORIGIN) + 30.0 * k * axes[:, 0]).tolist()
        set_all([path], ImageOrientationPatient=[*row, *column], ImagePositionPatient=place)
    affine = np.eye(4)
    affine[:3, :3] = axes * SPACING
    affine[:3, 3] = ORIGIN
    return Expected(HU, affine)


@accepted
def feet_first(files: Files) -> Expected:
    return _turned(files, [-1, 0, 0], [0, 1, 0], [0, 0, -1])


@accepted
def prone(files: Files) -> Expected:
    return _turned(files, [-1, 0, 0], [0, -1, 0], [0, 0, 1])


@accepted
def feet_first_prone(files: Files) -> Expected:
    return _turned(files, [1, 0, 0], [0, -1, 0], [0, 0, -1])


@accepted
def decubitus_right(files: Files) -> Expected:
    return _turned(files, [0, 1, 0], [-1, 0, 0], [0, 0, 1])


@accepted
def decubitus_left(files: Files) -> Expected:
    return _turned(files, [0, -1, 0], [1, 0, 0], [0, 0, 1])


@accepted
def coronal(files: Files) -> Expected:
    return _turned(files, [1, 0, 0], [0, 0, -1], [0, 1, 0])


@accepted
def sagittal(files: Files) -> Expected:
    return _turned(files, [0, 1, 0], [0, 0, -1], [-1, 0, 0])


@accepted
def ten_degrees_oblique(files: Files) -> Expected:
    c, s = round(float(np.cos(np.radians(10))), 8), round(float(np.sin(np.radians(10))), 8)
    return _turned(files, [1, 0, 0], [0, c, s], [0, -s, c])


def _multi_frame(files: Files) -> Dataset:
    images = [pydicom.dcmread(path) for path in files]
    for image in images:
        image.BurnedInAnnotation = "NO"
    return LegacyConvertedEnhancedCTImage(images, generate_uid(), 1, generate_uid(), 1)


@accepted
def multi_frame(files: Files) -> None:
    enhanced = _multi_frame(files)
    for path in files:
        path.unlink()
    enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)


@accepted
def multi_frame_deflated(files: Files) -> None:
    multi_frame(files)
    _rewritten([files[0].with_name("enhanced.dcm")], DeflatedExplicitVRLittleEndian)


@accepted
def multi_frame_in_fragments_without_table(files: Files) -> None:
    enhanced = _multi_frame(files[::-1])
    enhanced.compress(JPEGLSLossless, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(enhanced.PixelData, number_of_frames=len(files)))
    enhanced.PixelData = pydicom.encaps.encapsulate(frames, fragments_per_frame=3, has_bot=False)
    for path in files:
        path.unlink()
    enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)


@accepted
def character_set_of_another_language(files: Files) -> None:
    set_all(files, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")


@accepted
def a_deeply_nested_sequence(files: Files) -> None:
    inner = Dataset()
    for _ in range(60):
        outer = Dataset()
        outer.RequestAttributesSequence = [inner]
        inner = outer
    set_all(files[:1], RequestAttributesSequence=[inner])


@accepted
def a_long_private_value(files: Files) -> None:
    edit(files[2], lambda image: image.private_block(0x0029, "US", create=True).add_new(1, "OB", bytes(3_000_000)))


@accepted
def trailing_bytes_after_the_pixels(files: Files) -> None:
    edit(files[2], lambda image: image.add_new(0xFFFCFFFC, "OB", bytes(64)))


@pytest.mark.parametrize(
    ("change", "kind"),
    [({}, np.int16), ({"RescaleSlope": 0.5}, np.float32), ({"RescaleSlope": 40.0}, np.float32)],
    ids=["whole numbers", "fractions", "beyond 16 bits"],
)
def test_whole_numbers_take_half_the_memory(files: Files, change: dict[str, float], kind: type) -> None:
    """A single slice of others makes them all float32, and nothing is rounded."""
    stored = pydicom.dcmread(files[-1])
    set_all(files[-1:], **change)
    volume = load_ct_series(files[0].parent)
    assert volume.hu.dtype == kind
    slope = change.get("RescaleSlope", float(stored.RescaleSlope))
    expected = np.maximum(stored.pixel_array * slope + float(stored.RescaleIntercept), -1024.0)
    np.testing.assert_array_equal(volume.hu[-1], expected)
    np.testing.assert_array_equal(volume.hu[:-1], HU[:-1])


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_folder_is_read_as_expected(files: Files, case: Accepted) -> None:
    expected = case(files) or Expected()
    volume = load_ct_series(files[0].parent)
    np.testing.assert_allclose(volume.hu, expected.hu, rtol=0, atol=1e-3 if expected.places else 0)
    np.testing.assert_allclose(volume.grid.affine, expected.affine, rtol=0, atol=1e-6)
    assert tuple(remark.code for remark in volume.remarks) == expected.remarks
    assert volume.places == (expected.places or tuple(range(len(expected.hu))))
    assert len(volume.headers) == len(volume.places)


def test_description_and_places_are_those_of_the_slices(files: Files) -> None:
    volume = load_ct_series(files[0].parent)
    assert [header.ImagePositionPatient[2] for header in volume.headers] == [100.0 + 30.0 * k for k in range(6)]
    assert describe(volume.grid) == "6 slices 10 x 8, 0.75 x 1.50 x 30.00 mm"


def test_headers_keep_everything_but_the_pixels(files: Files) -> None:
    for header, path in zip(load_ct_series(files[0].parent).headers, files, strict=True):
        written = pydicom.dcmread(path)
        del written.PixelData
        assert header == written


def test_frames_are_numbered_and_described_like_images(files: Files) -> None:
    enhanced = _multi_frame(files[::-1])
    for path in files:
        path.unlink()
    enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)
    volume = load_ct_series(files[0].parent)
    positions = [
        [float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient]
        for item in enhanced.PerFrameFunctionalGroupsSequence
    ]
    for frame, header in zip(volume.frames, volume.headers, strict=True):
        assert positions[frame - 1] == [float(v) for v in header.ImagePositionPatient]
        assert header.SOPInstanceUID == enhanced.SOPInstanceUID
    assert [float(header.ImagePositionPatient[2]) for header in volume.headers] == [100.0 + 30.0 * k for k in range(6)]


# --- what must be refused ---

Damage = Callable[[Files], object]


def _drop(index: int) -> Damage:
    return lambda files: files[index].unlink()


def _set(index: int, **attributes: object) -> Damage:
    return lambda files: set_all([files[index]], **attributes)


def _all(**attributes: object) -> Damage:
    return lambda files: set_all(files, **attributes)


def _delete(index: int, keyword: str) -> Damage:
    return lambda files: edit(files[index], lambda image: image.__delattr__(keyword))


def _cut(keep: float) -> Damage:
    return lambda files: files[-1].write_bytes(files[-1].read_bytes()[: int(keep * files[-1].stat().st_size)])


def _copy(name: str, **attributes: object) -> Damage:
    return lambda files: copy(files[0], name, **attributes)


def _shear(files: Files) -> None:
    for k, path in enumerate(files):
        set_all([path], ImagePositionPatient=[0, 5.0 * k, 30.0 * k])


def _half_missing(files: Files) -> None:
    """Of 60 slices, the second half of the outer third is gone: gaps of 2 and 4 mm, too many to interpolate."""
    _, thin = _thin(files)
    for path in thin[1:40:2]:
        path.unlink()


def _more_than_a_tenth_missing(files: Files) -> None:
    _millimetre(files, missing=(*range(5, 120, 10), 60))


def _wild_gaps(files: Files) -> None:
    _, thin = _thin(files)
    for k, path in enumerate(thin):
        set_all([path], ImagePositionPatient=[0, 0, 2.0 * k + (1.9 if k % 5 == 0 else 0.0)])


def _truncated_codestream(files: Files) -> None:
    image = pydicom.dcmread(files[-1])
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    frame = next(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=1))
    image.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 4 * 2]])
    image.save_as(files[-1])


def _rle(change: Callable[[bytes], bytes]) -> Damage:
    def damage(files: Files) -> None:
        image = pydicom.dcmread(files[-1])
        image.compress(RLELossless, generate_instance_uid=False)
        frame = next(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=1))
        image.PixelData = pydicom.encaps.encapsulate([change(frame)])
        image.save_as(files[-1])

    return damage


def _codestream_of_another_image(files: Files) -> None:
    image, half = pydicom.dcmread(files[-1]), pydicom.dcmread(files[-1])
    half.Rows, half.PixelData = half.Rows // 2, half.PixelData[: len(half.PixelData) // 2]
    for each in (image, half):
        each.compress(JPEGLSLossless, generate_instance_uid=False)
    image.PixelData = half.PixelData
    image.save_as(files[-1])


def _one_slice_three_times(files: Files) -> None:
    for path in files[1:]:
        path.write_bytes(files[0].read_bytes())


def _two_acquisitions_nothing_tells_apart(files: Files) -> None:
    for k, path in enumerate(files):
        copy(path, f"second{k}.dcm", SOPInstanceUID=generate_uid(), RescaleIntercept=7)


def _frames_not_described(files: Files) -> None:
    enhanced = _multi_frame(files)
    enhanced.PerFrameFunctionalGroupsSequence = enhanced.PerFrameFunctionalGroupsSequence[:-1]
    for path in files:
        path.unlink()
    enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)


def _frames(change: Callable[[list[bytes]], list[bytes]], *, table: bool = True) -> Damage:
    def damage(files: Files) -> None:
        enhanced = _multi_frame(files)
        enhanced.compress(JPEGLSLossless, generate_instance_uid=False)
        count = enhanced.NumberOfFrames
        frames = list(pydicom.encaps.generate_frames(enhanced.PixelData, number_of_frames=count))
        enhanced.PixelData = pydicom.encaps.encapsulate(change(frames), has_bot=table)
        for path in files:
            path.unlink()
        enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)

    return damage


def _multi_frame_header_cut_off(files: Files) -> None:
    """Beside a series that could be read."""
    enhanced = _multi_frame(files)
    enhanced.SeriesInstanceUID = "1.2.3.4"
    path = files[0].with_name("enhanced.dcm")
    enhanced.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\x00\x52\x30\x92") + 40])


def _two_images_in_one(files: Files) -> None:
    image = pydicom.dcmread(files[-1])
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    frame = next(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=1))
    image.PixelData = pydicom.encaps.encapsulate([frame, frame], has_bot=False)
    image.save_as(files[-1])


def _two_birth_dates(files: Files) -> None:
    set_all(files[:3], PatientBirthDate="19500101")
    set_all(files[3:], PatientBirthDate="19600101")


def _frames_cut_off(files: Files) -> None:
    enhanced = _multi_frame(files)
    enhanced.PixelData = enhanced.PixelData[:-160]
    for path in files:
        path.unlink()
    enhanced.save_as(files[0].with_name("enhanced.dcm"), enforce_file_format=True)


REFUSALS: list[tuple[str, ReasonCode, Damage]] = [
    ("slice missing inside", ReasonCode.MISSING_SLICES, _drop(2)),
    ("first gap wrong", ReasonCode.MISSING_SLICES, _drop(1)),
    ("slice moved", ReasonCode.MISSING_SLICES, _set(3, ImagePositionPatient=[-5, -7, 195])),
    ("many thin slices missing", ReasonCode.MISSING_SLICES, _half_missing),
    ("more than a tenth missing", ReasonCode.MISSING_SLICES, _more_than_a_tenth_missing),
    ("gaps vary wildly", ReasonCode.MISSING_SLICES, _wild_gaps),
    ("short stack", ReasonCode.PARTIAL_COVERAGE, lambda files: [path.unlink() for path in files[3:]]),
    ("two slices", ReasonCode.NO_CT_SERIES, lambda files: [path.unlink() for path in files[2:]]),
    ("one slice three times", ReasonCode.PARTIAL_COVERAGE, _one_slice_three_times),
    (
        "two different slices at a place",
        ReasonCode.DUPLICATE_POSITIONS,
        _copy("twice.dcm", SOPInstanceUID="1.2.3", RescaleIntercept=5),
    ),
    (
        "two acquisitions that nothing tells apart",
        ReasonCode.DUPLICATE_POSITIONS,
        _two_acquisitions_nothing_tells_apart,
    ),
    ("two different slices of a UID", ReasonCode.DUPLICATE_INSTANCES, _copy("twice.dcm", InstanceNumber=77)),
    ("two studies", ReasonCode.MIXED_STUDIES, _set(0, StudyInstanceUID="1.2.3")),
    ("two patients", ReasonCode.MIXED_STUDIES, _set(0, PatientID="another")),
    ("no slope", ReasonCode.NO_RESCALE, _delete(4, "RescaleSlope")),
    ("empty intercept", ReasonCode.NO_RESCALE, _set(4, RescaleIntercept=None)),
    ("slope zero", ReasonCode.NO_RESCALE, _set(4, RescaleSlope=0)),
    ("slope negative", ReasonCode.NO_RESCALE, _set(4, RescaleSlope=-1)),
    ("slope absurd", ReasonCode.NO_RESCALE, _set(4, RescaleSlope=1e30)),
    ("not HU", ReasonCode.NO_RESCALE, _set(4, RescaleType="US")),
    ("iodine map", ReasonCode.NO_CT_SERIES, _all(RescaleType="MGML")),
    ("no position", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "ImagePositionPatient")),
    ("half a position", ReasonCode.MISSING_ATTRIBUTE, _set(1, ImagePositionPatient=[1, 2])),
    ("no orientation", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "ImageOrientationPatient")),
    ("no pixel spacing", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "PixelSpacing")),
    ("empty SOP instance UID", ReasonCode.MISSING_ATTRIBUTE, _set(1, SOPInstanceUID="")),
    ("no series UID", ReasonCode.MISSING_ATTRIBUTE, _delete(5, "SeriesInstanceUID")),
    ("no study UID in one slice", ReasonCode.MIXED_STUDIES, _delete(5, "StudyInstanceUID")),
    ("no study UID at all", ReasonCode.MISSING_ATTRIBUTE, _all(StudyInstanceUID="")),
    ("one slice without frame of reference", ReasonCode.INCONSISTENT_GEOMETRY, _delete(1, "FrameOfReferenceUID")),
    ("other frame of reference", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, FrameOfReferenceUID="1.2.3")),
    ("other pixel spacing", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, PixelSpacing=[1.5, 0.76])),
    ("other size", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, Rows=10, Columns=8)),
    ("other orientation", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])),
    ("skew axes", ReasonCode.INCONSISTENT_GEOMETRY, _all(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])),
    ("pixels without size", ReasonCode.INCONSISTENT_GEOMETRY, _all(PixelSpacing=[0, 0])),
    ("sheared stack", ReasonCode.INCONSISTENT_GEOMETRY, _shear),
    ("gantry tilt", ReasonCode.GANTRY_TILT, _all(GantryDetectorTilt=12)),
    ("all slices at one place", ReasonCode.DUPLICATE_POSITIONS, _all(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    ("45 degrees oblique", ReasonCode.NO_CT_SERIES, _all(ImageOrientationPatient=[1, 0, 0, 0, 0.70710678, 0.70710678])),
    ("absurd size", ReasonCode.TOO_LARGE, _all(Rows=65535, Columns=65535)),
    ("MR", ReasonCode.NO_CT_SERIES, _all(SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    ("localizers only", ReasonCode.NO_CT_SERIES, _all(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    ("projections only", ReasonCode.NO_CT_SERIES, _all(ImageType=["DERIVED", "SECONDARY", "MIP"])),
    ("single frames called enhanced", ReasonCode.MISSING_ATTRIBUTE, _all(SOPClassUID=EnhancedCTImageStorage)),
    ("frames not described", ReasonCode.MISSING_ATTRIBUTE, _frames_not_described),
    ("a frame too many", ReasonCode.UNDECODABLE, _frames(lambda frames: [*frames[:3], *frames[2:]], table=False)),
    ("a frame too many in the table", ReasonCode.UNDECODABLE, _frames(lambda frames: [frames[0], *frames])),
    ("a frame too few", ReasonCode.UNDECODABLE, _frames(lambda frames: frames[1:], table=False)),
    ("two images in a frame", ReasonCode.UNDECODABLE, _frames(lambda frames: [frames[0] * 2, *frames[1:]])),
    ("multi-frame header cut off", ReasonCode.UNREADABLE, _multi_frame_header_cut_off),
    ("two images in a single-frame object", ReasonCode.UNDECODABLE, _two_images_in_one),
    ("slices of two names", ReasonCode.MIXED_STUDIES, _set(2, PatientName="Another^Patient")),
    ("slices of two birth dates", ReasonCode.MIXED_STUDIES, _two_birth_dates),
    ("frames cut off", ReasonCode.UNDECODABLE, _frames_cut_off),
    ("no pixels", ReasonCode.UNDECODABLE, _delete(5, "PixelData")),
    ("pixels cut off", ReasonCode.UNDECODABLE, _cut(0.97)),
    ("pixels too many", ReasonCode.UNDECODABLE, _set(5, PixelData=b"\0" * 200)),
    ("eight bits", ReasonCode.UNDECODABLE, _set(5, BitsStored=8)),
    ("pixels in the upper bits", ReasonCode.UNDECODABLE, _set(5, BitsStored=12, HighBit=15)),
    ("more bits stored than allocated", ReasonCode.UNDECODABLE, _set(5, BitsStored=20, HighBit=19)),
    ("two samples per pixel", ReasonCode.UNDECODABLE, _set(5, SamplesPerPixel=2)),
    ("palette", ReasonCode.UNDECODABLE, _set(5, PhotometricInterpretation="PALETTE COLOR")),
    ("two frames in a single-frame image", ReasonCode.UNDECODABLE, _set(5, NumberOfFrames=2)),
    ("RLE cut off", ReasonCode.UNDECODABLE, _rle(lambda frame: frame[: len(frame) // 4 * 2])),
    ("RLE with segments beyond its end", ReasonCode.UNDECODABLE, _rle(lambda f: f[:8] + b"\0\0\0\x3c" + f[12:])),
    ("RLE of one segment", ReasonCode.UNDECODABLE, _rle(lambda frame: b"\x01" + frame[1:])),
    ("codestream of another image", ReasonCode.UNDECODABLE, _codestream_of_another_image),
    ("codestream cut off", ReasonCode.UNDECODABLE, _truncated_codestream),
    ("header cut off", ReasonCode.UNREADABLE, _cut(0.5)),
    ("empty file", ReasonCode.UNREADABLE, _cut(0.0)),
    ("not DICOM inside", ReasonCode.UNREADABLE, lambda files: files[5].write_bytes(b"hello" * 100)),
    ("blank file", ReasonCode.UNREADABLE, lambda files: files[0].with_name("IM7").write_bytes(bytes(5000))),
    ("dangling link", ReasonCode.UNREADABLE, lambda files: files[0].with_name("x.dcm").symlink_to("nowhere")),
    ("link to itself", ReasonCode.UNREADABLE, lambda files: files[0].with_name("x.dcm").symlink_to("x.dcm")),
    ("all damaged", ReasonCode.UNREADABLE, lambda files: [path.write_bytes(b"x" * 999) for path in files]),
    ("nothing", ReasonCode.NO_DICOM, lambda files: [path.unlink() for path in files]),
    ("no folder", ReasonCode.NO_DICOM, lambda files: shutil.rmtree(files[0].parent)),
]


@pytest.mark.parametrize(("code", "damage"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_damaged_folder_is_refused(files: Files, code: ReasonCode, damage: Damage) -> None:
    damage(files)
    refused = refusal(files[0].parent)
    assert refused.code is code
    assert "\n" not in refused.message
    assert "Phantom" not in refused.message
    assert "PHANTOM" not in refused.message


def test_how_large_a_gap_is_interpolated_can_be_set(files: Files) -> None:
    """Slices 2 mm apart, with one gap of 6 mm."""
    _, thin = _thin(files)
    for path in thin[30:32]:
        path.unlink()
    (study,) = group_studies(scan_folder(files[0].parent))
    with pytest.raises(InputRefused, match="more than 5 mm are not interpolated") as refused:
        load_study(study, ANY_SERIES, 5.0)
    assert refused.value.code is ReasonCode.MISSING_SLICES
    volume = load_study(study, ANY_SERIES, 7.0)
    assert volume.grid.shape == (60, 4, 5)
    assert [remark.code for remark in volume.remarks] == [RemarkCode.SLICES_INTERPOLATED]


def test_no_truncation_is_accepted(files: Files) -> None:
    """Of the outermost slice, whose loss would leave a uniform stack."""
    whole = files[-1].read_bytes()
    for length in range(0, len(whole), 7):
        files[-1].write_bytes(whole[:length])
        assert refusal(files[0].parent).code


def test_bytes_after_a_deflated_data_set_do_no_harm(files: Files) -> None:
    expected = load_ct_series(files[0].parent).hu
    _rewritten(files, DeflatedExplicitVRLittleEndian)
    for path in files:
        path.write_bytes(path.read_bytes() + bytes(range(200)))
    np.testing.assert_array_equal(load_ct_series(files[0].parent).hu, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_crash(files: Files) -> None:
    rng = np.random.default_rng(1)
    whole = files[2].read_bytes()
    refused = 0
    for _ in range(150):
        spoilt = bytearray(whole)
        spoilt[rng.integers(132, len(whole) - 170)] = rng.integers(256)
        files[2].write_bytes(bytes(spoilt))
        try:
            load_ct_series(files[0].parent)
        except InputRefused:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("deflated", [False, True])
def test_a_file_that_changes_after_its_header_was_read_is_refused(files: Files, deflated: bool) -> None:
    if deflated:
        _rewritten(files, DeflatedExplicitVRLittleEndian)
    (study,) = group_studies(scan_folder(files[0].parent))
    set_all(files[2:3], RescaleIntercept=0, StudyDescription="longer than before")
    with pytest.raises(InputRefused, match="have changed") as refused:
        load_study(study, ANY_SERIES)
    assert refused.value.code is ReasonCode.UNDECODABLE


def test_a_name_written_in_two_ways_is_one_name(files: Files) -> None:
    set_all(files[:3], PatientName="Doe^Jane")
    set_all(files[3:], PatientName="DOE^JANE^^")
    assert load_ct_series(files[0].parent).hu.shape == HU.shape


def test_a_frame_of_reference_that_is_added_has_the_root_of_all_uids_and_is_the_same_again(files: Files) -> None:
    set_all(files, FrameOfReferenceUID="")
    first, again = (load_ct_series(files[0].parent).headers[0].FrameOfReferenceUID for _ in range(2))
    assert first == again
    assert 0 < int(first.removeprefix("2.25.")) < 2**128


@pytest.mark.parametrize("preferred", ["^STANDARD", "^LUNG"])
def test_of_two_kernels_in_one_series_the_preferred_is_taken(files: Files, preferred: str) -> None:
    set_all(files, ConvolutionKernel="STANDARD")
    for k, path in enumerate(files):
        other = {"ConvolutionKernel": ["LUNG", "2"], "RescaleIntercept": 3}
        copy(path, f"sharp{k}.dcm", SOPInstanceUID=generate_uid(), **other)
    (study,) = group_studies(scan_folder(files[0].parent))
    volume = load_study(study, SelectionRules.model_validate({"preferred-kernels": [preferred]}))
    assert [remark.code for remark in volume.remarks] == [RemarkCode.ACQUISITION_CHOSEN]
    assert np.array_equal(volume.hu, HU) == (preferred == "^STANDARD")


def test_of_two_acquisitions_the_same_is_taken_whatever_the_names(files: Files) -> None:
    for k, path in enumerate(files):
        copy(path, f"other{k}.dcm", SOPInstanceUID=generate_uid(), AcquisitionNumber=10, RescaleIntercept=-900)
    set_all(files, AcquisitionNumber=9)
    first = load_ct_series(files[0].parent)
    for path in sorted(files[0].parent.iterdir()):
        path.rename(path.with_name(("a" if "other" in path.name else "z") + path.name))
    np.testing.assert_array_equal(load_ct_series(files[0].parent).hu, first.hu)
    np.testing.assert_array_equal(first.hu, HU)


@pytest.mark.parametrize("name", ["0.dcm", "zzz.dcm"])
def test_a_projection_among_the_slices_is_left_out_whatever_its_name(files: Files, name: str) -> None:
    kinds = ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
    copy(files[-1], name, SOPInstanceUID="1.2.3", ImageType=kinds, ImagePositionPatient=[0, 0, 30.0 * len(files)])
    volume = load_ct_series(files[0].parent)
    assert volume.hu.shape == HU.shape
    assert [remark.code for remark in volume.remarks] == [RemarkCode.STRAY_IMAGES_DROPPED]


@pytest.mark.parametrize("seed", range(6))
def test_names_order_and_coding_of_the_files_change_nothing(files: Files, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain = load_ct_series(files[0].parent)
    other = tmp_path / "other"
    for path in rng.permutation(np.array(files, dtype=object)).tolist():
        target = other / f"{rng.integers(3)}" / f"{rng.integers(1 << 40)}{rng.choice(['.dcm', '', '.IMA', '.1'])}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        syntax = rng.choice(["raw", "implicit", "big", "deflated", "rle", "ls"])
        match str(syntax):
            case "implicit":
                _rewritten([target], ImplicitVRLittleEndian)
            case "big":
                _rewritten([target], ExplicitVRBigEndian)
            case "deflated":
                _rewritten([target], DeflatedExplicitVRLittleEndian)
            case "rle":
                _compressed([target], RLELossless)
            case "ls":
                _compressed([target], JPEGLSLossless)
    again = load_ct_series(other)
    np.testing.assert_array_equal(again.hu, plain.hu)
    np.testing.assert_array_equal(again.grid.affine, plain.grid.affine)
    assert [h.SOPInstanceUID for h in again.headers] == [h.SOPInstanceUID for h in plain.headers]
    assert again.remarks == plain.remarks == ()


# --- the node ---


class _Sink(Operator):
    def setup(self, spec: object) -> None:
        spec.input("volume")

    def compute(self, op_input: object, op_output: object, context: object) -> None:
        self.fragment.received.append(op_input.receive("volume"))


class _Graph(Application):
    def __init__(self, folder: Path, journal: Journal) -> None:
        self.received: list[CTVolume] = []
        (self._study,) = group_studies(scan_folder(folder))
        self._journal = journal
        super().__init__(["test"])

    def compose(self) -> None:
        arguments = {"study": self._study, "rules": ANY_SERIES, "max_gap_mm": 5.0, "journal": self._journal}
        loader = SeriesLoaderOperator(self, CountCondition(self, 1), name="loader", **arguments)
        self.add_flow(loader, _Sink(self, name="sink"), {("volume", "volume")})


def test_operator_emits_the_volume_and_tells_what_it_found(files: Files) -> None:
    lines: list[str] = []
    set_all(files, SliceThickness=1.0)
    graph = _Graph(files[0].parent, Journal(lines.append))
    graph.run()
    (volume,) = graph.received
    np.testing.assert_array_equal(volume.hu, HU)
    assert lines[-1].startswith("Series loader: 6 slices 10 x 8, 0.75 x 1.50 x 30.00 mm, Slices of 1 mm lie 30.0 mm")


# --- real data ---


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("covid_P001", (148, 512, 512), (2.0, 0.748, 0.748)),
        ("cap_001", (168, 512, 512), (2.0, 0.590, 0.590)),
        ("normal_001", (154, 512, 512), (2.0, 0.635, 0.635)),
        ("screening_lowdose", (143, 512, 512), (2.0, 0.54, 0.54)),
    ],
)
def test_real_series(real_data: Path, name: str, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    volume = load_ct_series(real_data / name)
    assert volume.grid.shape == shape
    assert volume.grid.spacing == pytest.approx(spacing, abs=1e-3)
    assert volume.hu.min() == -1024.0
    middle = volume.hu[shape[0] // 2]
    assert -1000 < np.median(middle[middle < -500]) < -750
    assert -150 < np.median(middle[middle > -500]) < 150


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("partial_15_slices", ReasonCode.PARTIAL_COVERAGE),
        ("covid20_slices", ReasonCode.NO_DICOM),
        ("robustness/covidctmd_raw_empty_sopuid", ReasonCode.MISSING_ATTRIBUTE),
        ("robustness/enhanced_ct", ReasonCode.NO_CT_SERIES),
        ("robustness/head_ct_gantry_tilt", ReasonCode.GANTRY_TILT),
        ("robustness/localizers", ReasonCode.MIXED_STUDIES),
        ("robustness/lungmask_missing_tags", ReasonCode.NO_CT_SERIES),
        ("robustness/non_ct", ReasonCode.NO_CT_SERIES),
        ("robustness/pydicom_bad", ReasonCode.MIXED_STUDIES),
        ("robustness/ts_chest_ctimage", ReasonCode.MIXED_STUDIES),
        ("robustness", ReasonCode.MIXED_STUDIES),
    ],
)
def test_real_folder_is_refused(real_data: Path, name: str, code: ReasonCode) -> None:
    assert refusal(real_data / name).code is code


def _stack_of(source: Path, folder: Path) -> Path:
    """Four copies of one real image, moved and renamed to a valid series; the pixel data stay as they are."""
    folder.mkdir()
    for k in range(4):
        image = pydicom.dcmread(source)
        image.SOPInstanceUID = generate_uid()
        image.ImagePositionPatient[2] = 40.0 * k
        image.save_as(folder / f"{k}.dcm")
    return folder


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("syntax", "tolerance"),
    [
        ("1.2.840.10008.1.2.1", 0),
        ("1.2.840.10008.1.2.2", 0),
        ("1.2.840.10008.1.2.1.99", 0),
        ("1.2.840.10008.1.2.4.57", 0),
        ("1.2.840.10008.1.2.4.70", 0),
        ("1.2.840.10008.1.2.4.80", 0),
        ("1.2.840.10008.1.2.4.81", 1),
        ("1.2.840.10008.1.2.4.90", 0),
        ("1.2.840.10008.1.2.4.91", 5),
        ("1.2.840.10008.1.2.5", 0),
    ],
)
def test_real_transfer_syntaxes_give_equal_hu(real_data: Path, tmp_path: Path, syntax: str, tolerance: float) -> None:
    folder = real_data / "robustness" / "ts_chest_ctimage"
    (source,) = folder.glob(f"CTImage.dcm_*_{syntax}.dcm")
    raw = load_ct_series(_stack_of(folder / "CTImage.dcm", tmp_path / "raw"))
    assert np.abs(load_ct_series(_stack_of(source, tmp_path / "coded")).hu - raw.hu).max() <= tolerance


@pytest.mark.real_data
@pytest.mark.parametrize("syntax", ["4.50", "4.51", "4.53", "4.55"])
def test_real_lossy_jpeg_is_refused(real_data: Path, tmp_path: Path, syntax: str) -> None:
    """Eight bits are too coarse; the twelve-bit processes have no trusted decoder."""
    (source,) = (real_data / "robustness" / "ts_chest_ctimage").glob(f"CTImage.dcm_*_1.2.840.10008.1.2.{syntax}.dcm")
    assert refusal(_stack_of(source, tmp_path / "coded")).code is ReasonCode.UNDECODABLE


@pytest.mark.real_data
def test_lost_real_slice_is_interpolated_and_remarked_on(real_data: Path, tmp_path: Path) -> None:
    whole = load_ct_series(real_data / "covid_P001")
    lost = str(whole.headers[70].SOPInstanceUID)
    for path in (real_data / "covid_P001").iterdir():
        if pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID != lost:
            (tmp_path / path.name).symlink_to(path)
    volume = load_ct_series(tmp_path)
    assert [remark.code for remark in volume.remarks] == [RemarkCode.SLICES_INTERPOLATED]
    np.testing.assert_array_equal(np.delete(volume.hu, 70, axis=0), np.delete(whole.hu, 70, axis=0))
    np.testing.assert_allclose(volume.hu[70], (whole.hu[69] + whole.hu[71]) / 2, atol=1e-2)
    assert 70 not in volume.places


def _assert_equals_simple_itk(folder: Path) -> None:
    """Hounsfield units and geometry are those of SimpleITK, but for what lies below -1024 HU."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    ours = load_ct_series(folder)
    theirs = sitk.GetArrayViewFromImage(image)
    np.testing.assert_array_equal(ours.hu, np.maximum(theirs, -1024.0))
    slices, rows, columns = ours.grid.shape
    for index in ((0, 0, 0), (slices - 1, 0, 0), (0, rows - 1, 0), (0, 0, columns - 1), (slices // 2, 3, 5)):
        point = image.TransformIndexToPhysicalPoint(tuple(int(i) for i in index[::-1]))
        np.testing.assert_allclose((ours.grid.affine @ [*index, 1])[:3], point, atol=1e-2)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["covid_P001", "cap_001", "normal_001", "screening_lowdose"])
def test_real_series_equals_simple_itk(real_data: Path, name: str) -> None:
    _assert_equals_simple_itk(real_data / name)


@pytest.mark.real_data
@pytest.mark.parametrize("syntax", ["1", "2", "1.99", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5"])
def test_real_transfer_syntax_equals_simple_itk(real_data: Path, tmp_path: Path, syntax: str) -> None:
    (source,) = (real_data / "robustness" / "ts_chest_ctimage").glob(f"CTImage.dcm_*_1.2.840.10008.1.2.{syntax}.dcm")
    _assert_equals_simple_itk(_stack_of(source, tmp_path / "coded"))
