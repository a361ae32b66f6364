"""Loading a folder: right, or refused with the reason code that applies."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from holoscan.conditions import CountCondition
from monai.deploy.core import Application, Operator
from pydicom import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from operators.journal import Journal
from operators.refusal import InputRefused, ReasonCode
from operators.series_loader import SeriesLoaderOperator, describe, load_ct_series
from tests.builders import axial_grid, write_series

SPACING = (30.0, 1.5, 0.75)
HU = np.random.default_rng(0).integers(-1024, 1500, (6, 8, 10)).astype(np.float32)
Damage = Callable[[list[Path]], None]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A series of six slices, in order from feet to head."""
    return write_series(tmp_path / "in", HU, SPACING, origin=(-5.0, -7.0, 100.0))


def edit(path: Path, change: Callable[[Dataset], object]) -> None:
    image = pydicom.dcmread(path)
    change(image)
    image.save_as(path)


def set_all(files: list[Path], **attributes: object) -> None:
    for path in files:
        edit(path, lambda image: [setattr(image, keyword, value) for keyword, value in attributes.items()])


def refusal(folder: Path) -> InputRefused:
    with pytest.raises(InputRefused) as refused:
        load_ct_series(folder)
    return refused.value


# --- what must load right ---


def test_series_is_loaded_as_it_was_written(files: list[Path]) -> None:
    volume = load_ct_series(files[0].parent)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.grid.matches(axial_grid((6, 8, 10), SPACING, (-5.0, -7.0, 100.0)))
    assert [header.ImagePositionPatient[2] for header in volume.headers] == [100.0 + 30.0 * k for k in range(6)]
    assert describe(volume) == "6 slices 10 x 8, 0.75 x 1.50 x 30.0 mm"


def test_headers_keep_everything_but_the_pixels(files: list[Path]) -> None:
    for header, path in zip(load_ct_series(files[0].parent).headers, files, strict=True):
        written = pydicom.dcmread(path)
        del written.PixelData
        assert header == written


def test_each_slice_has_its_own_rescale(files: list[Path]) -> None:
    stored = [pydicom.dcmread(path).pixel_array for path in files]
    for index, path in enumerate(files):
        edit(path, lambda image, k=index: image.update({"RescaleSlope": 0.5 + 0.25 * k, "RescaleIntercept": -10 * k}))
    hu = load_ct_series(files[0].parent).hu
    for k in range(6):
        for row in range(8):
            for column in range(10):
                expected = max(-1024.0, float(stored[k][row, column]) * (0.5 + 0.25 * k) - 10 * k)
                assert hu[k, row, column] == expected


def test_padding_and_what_is_less_than_air_become_air(files: list[Path]) -> None:
    stored = np.arange(80).reshape(8, 10).astype("<i2")
    stored[0, :4] = (-2000, -3000, -2500, -2001)

    def pad(image: Dataset) -> None:
        image.PixelData = stored.tobytes()
        image.RescaleIntercept = 0
        image.add_new("PixelPaddingValue", "SS", 10)
        image.add_new("PixelPaddingRangeLimit", "SS", 19)

    edit(files[2], pad)
    hu = load_ct_series(files[0].parent).hu[2]
    air = np.zeros((8, 10), dtype=bool)
    air[0, :4] = True
    air[1, :] = True
    np.testing.assert_array_equal(hu, np.where(air, -1024.0, stored))


def test_padding_of_signed_pixels_may_be_written_unsigned(files: list[Path]) -> None:
    stored = np.full((8, 10), 500, dtype="<i2")
    stored[3, 3] = -2000

    def pad(image: Dataset) -> None:
        image.PixelData = stored.tobytes()
        image.RescaleIntercept = 1500
        image.add_new("PixelPaddingValue", "US", 65536 - 2000)

    edit(files[1], pad)
    hu = load_ct_series(files[0].parent).hu[1]
    assert hu[3, 3] == -1024.0
    assert hu[3, 4] == 2000.0


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
)
def test_transfer_syntaxes_give_equal_values(files: list[Path], syntax: pydicom.uid.UID) -> None:
    for path in files:
        image = pydicom.dcmread(path)
        if syntax.is_encapsulated:
            image.compress(syntax, generate_instance_uid=False)
            image.save_as(path)
        else:
            if syntax == ExplicitVRBigEndian:
                image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
            bare = Dataset({element.tag: element for element in image})
            bare.file_meta = image.file_meta
            bare.file_meta.TransferSyntaxUID = syntax
            bare.save_as(path, enforce_file_format=True)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(load_ct_series(files[0].parent).hu, HU)


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_and_meta_information(files: list[Path], implicit: bool) -> None:
    for path in files:
        image = pydicom.dcmread(path)
        bare = Dataset({element.tag: element for element in image})
        bare.save_as(path, implicit_vr=implicit, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(load_ct_series(files[0].parent).hu, HU)


def test_nested_folders_links_and_other_files(files: list[Path]) -> None:
    folder = files[0].parent
    (folder / "a" / "b").mkdir(parents=True)
    shutil.move(files[0], folder / "a" / "b" / "1.2.840.113619")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "again.dcm").symlink_to(files[1])
    (folder / "notes.txt").write_text("DICM")
    (folder / "README").write_text("read me")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / ".DS_Store").write_bytes(b"")
    np.testing.assert_array_equal(load_ct_series(folder).hu, HU)


def test_localizers_pictures_and_other_objects_are_passed_over(files: list[Path]) -> None:
    def copy(name: str, **attributes: object) -> None:
        path = files[0].with_name(name)
        shutil.copy(files[0], path)
        set_all([path], SOPInstanceUID=generate_uid(), **attributes)

    copy("scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    copy("dose.dcm", SamplesPerPixel=3)
    copy("report.dcm", SOPClassUID=ComprehensiveSRStorage)
    copy("coronal.dcm", SeriesInstanceUID=generate_uid(), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    np.testing.assert_array_equal(load_ct_series(files[0].parent).hu, HU)


def test_longest_axial_series_wins(files: list[Path], tmp_path: Path) -> None:
    more = np.zeros((7, 8, 10), dtype=np.float32)
    other = write_series(files[0].parent / "other", more, SPACING, SeriesInstanceUID=generate_uid())
    for path in other:
        set_all([path], SOPInstanceUID=generate_uid())
    assert load_ct_series(files[0].parent).grid.shape == (7, 8, 10)


def test_other_patient_positions_keep_place_and_values(files: list[Path]) -> None:
    """Feet first, rows run to the right: the normal points to the feet, and slices ascend along it."""
    for path in files:
        edit(path, lambda image: setattr(image, "ImageOrientationPatient", [-1, 0, 0, 0, 1, 0]))
    volume = load_ct_series(files[0].parent)
    np.testing.assert_array_equal(volume.hu, HU[::-1])
    for k in (0, 5):
        np.testing.assert_allclose(
            volume.grid.affine @ [k, 2, 3, 1], [-5 - 3 * 0.75, -7 + 2 * 1.5, 100 + 30 * (5 - k), 1]
        )


def test_oblique_stack_has_an_oblique_affine(files: list[Path]) -> None:
    angle = np.radians(10.0)
    down = np.array([0.0, np.cos(angle), np.sin(angle)])
    normal = np.cross([1.0, 0.0, 0.0], down)
    for k, path in enumerate(files):
        set_all(
            [path],
            ImageOrientationPatient=[1, 0, 0, *down.round(8).tolist()],
            ImagePositionPatient=(30.0 * k * normal).round(6).tolist(),
        )
    volume = load_ct_series(files[0].parent)
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.grid.affine @ [2, 3, 0, 1], [*(60.0 * normal + 4.5 * down), 1.0], atol=1e-4)


def test_positions_rounded_by_the_scanner_are_uniform(tmp_path: Path) -> None:
    hu = np.zeros((200, 4, 4), dtype=np.float32)
    paths = write_series(tmp_path, hu, (0.625, 1.0, 1.0))
    for k, path in enumerate(paths):
        set_all([path], ImagePositionPatient=[0, 0, round(0.625 * k, 1)])
    assert load_ct_series(tmp_path).grid.spacing[0] == pytest.approx(0.625, abs=1e-3)


# --- what must be refused ---


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
    def damage(files: list[Path]) -> None:
        path = files[0].with_name(name)
        shutil.copy(files[0], path)
        set_all([path], **attributes)

    return damage


def _second_series(files: list[Path]) -> None:
    series = generate_uid()
    for k, path in enumerate(files):
        copy = path.with_name(f"second{k}.dcm")
        shutil.copy(path, copy)
        set_all([copy], SeriesInstanceUID=series, SOPInstanceUID=generate_uid())


def _shear(files: list[Path]) -> None:
    for k, path in enumerate(files):
        set_all([path], ImagePositionPatient=[0, 5.0 * k, 30.0 * k])


def _enhanced(files: list[Path]) -> None:
    for path in files:
        edit(path, lambda image: setattr(image, "SOPClassUID", EnhancedCTImageStorage))


def _truncated_codestream(files: list[Path]) -> None:
    image = pydicom.dcmread(files[-1])
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    frame = next(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=1))
    image.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 4 * 2]])
    image.save_as(files[-1])


REFUSALS: list[tuple[str, ReasonCode, Damage]] = [
    ("slice missing inside", ReasonCode.MISSING_SLICES, _drop(2)),
    ("first gap wrong", ReasonCode.MISSING_SLICES, _drop(1)),
    ("slice moved", ReasonCode.MISSING_SLICES, _set(3, ImagePositionPatient=[-5, -7, 195])),
    ("short stack", ReasonCode.PARTIAL_COVERAGE, lambda files: [path.unlink() for path in files[3:]]),
    ("two slices", ReasonCode.NO_CT_SERIES, lambda files: [path.unlink() for path in files[2:]]),
    ("two slices at a place", ReasonCode.DUPLICATE_POSITIONS, _copy("twice.dcm", SOPInstanceUID="1.2.3")),
    ("same file twice", ReasonCode.DUPLICATE_INSTANCES, _copy("twice.dcm")),
    ("two studies", ReasonCode.MIXED_STUDIES, _set(0, StudyInstanceUID="1.2.3")),
    ("two patients", ReasonCode.MIXED_STUDIES, _set(0, PatientID="another")),
    (
        "report of another study",
        ReasonCode.MIXED_STUDIES,
        _copy("sr", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", StudyInstanceUID="1.2"),
    ),
    ("two equal series", ReasonCode.AMBIGUOUS_SERIES, _second_series),
    ("no slope", ReasonCode.NO_RESCALE, _delete(4, "RescaleSlope")),
    ("empty intercept", ReasonCode.NO_RESCALE, _set(4, RescaleIntercept=None)),
    ("slope zero", ReasonCode.NO_RESCALE, _set(4, RescaleSlope=0)),
    ("not HU", ReasonCode.NO_RESCALE, _set(4, RescaleType="US")),
    ("no position", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "ImagePositionPatient")),
    ("half a position", ReasonCode.MISSING_ATTRIBUTE, _set(1, ImagePositionPatient=[1, 2])),
    ("no orientation", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "ImageOrientationPatient")),
    ("no pixel spacing", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "PixelSpacing")),
    ("empty SOP instance UID", ReasonCode.MISSING_ATTRIBUTE, _set(1, SOPInstanceUID="")),
    ("no frame of reference", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "FrameOfReferenceUID")),
    ("no series UID", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "SeriesInstanceUID")),
    ("no study UID", ReasonCode.MISSING_ATTRIBUTE, _delete(1, "StudyInstanceUID")),
    ("other frame of reference", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, FrameOfReferenceUID="1.2.3")),
    ("other pixel spacing", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, PixelSpacing=[1.5, 0.76])),
    ("other size", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, Rows=10, Columns=8)),
    ("other orientation", ReasonCode.INCONSISTENT_GEOMETRY, _set(1, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])),
    ("skew axes", ReasonCode.INCONSISTENT_GEOMETRY, _all(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0])),
    ("pixels without size", ReasonCode.INCONSISTENT_GEOMETRY, _all(PixelSpacing=[0, 0])),
    ("sheared stack", ReasonCode.INCONSISTENT_GEOMETRY, _shear),
    ("gantry tilt", ReasonCode.INCONSISTENT_GEOMETRY, _all(GantryDetectorTilt=12)),
    ("coronal", ReasonCode.NO_CT_SERIES, _all(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    ("MR", ReasonCode.NO_CT_SERIES, _all(SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    ("enhanced", ReasonCode.ENHANCED_CT, _enhanced),
    ("no pixels", ReasonCode.UNDECODABLE, _delete(5, "PixelData")),
    ("pixels cut off", ReasonCode.UNDECODABLE, _cut(0.97)),
    ("pixels too many", ReasonCode.UNDECODABLE, _set(5, PixelData=b"\0" * 200)),
    ("eight bits", ReasonCode.UNDECODABLE, _set(5, BitsStored=8)),
    ("codestream cut off", ReasonCode.UNDECODABLE, _truncated_codestream),
    ("header cut off", ReasonCode.UNREADABLE, _cut(0.5)),
    ("empty file", ReasonCode.UNREADABLE, _cut(0.0)),
    ("not DICOM inside", ReasonCode.UNREADABLE, lambda files: files[5].write_bytes(b"hello" * 100)),
    ("blank file", ReasonCode.UNREADABLE, lambda files: files[0].with_name("IM7").write_bytes(bytes(5000))),
    ("dangling link", ReasonCode.UNREADABLE, lambda files: files[0].with_name("x.dcm").symlink_to("nowhere")),
    ("nothing", ReasonCode.NO_DICOM, lambda files: [path.unlink() for path in files]),
    ("no folder", ReasonCode.NO_DICOM, lambda files: shutil.rmtree(files[0].parent)),
]


@pytest.mark.parametrize(("code", "damage"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_damaged_folder_is_refused(files: list[Path], code: ReasonCode, damage: Damage) -> None:
    damage(files)
    refused = refusal(files[0].parent)
    assert refused.code is code
    assert "\n" not in refused.message
    assert "Phantom" not in refused.message
    assert "PHANTOM" not in refused.message


def test_no_truncation_is_accepted(files: list[Path]) -> None:
    """Of the outermost slice, whose loss would leave a uniform stack."""
    whole = files[-1].read_bytes()
    for length in range(0, len(whole), 7):
        files[-1].write_bytes(whole[:length])
        assert refusal(files[0].parent).code


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_crash(files: list[Path]) -> None:
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


# --- the node ---


class _Sink(Operator):
    def setup(self, spec: object) -> None:
        spec.input("volume")

    def compute(self, op_input: object, op_output: object, context: object) -> None:
        self.fragment.received.append(op_input.receive("volume"))


class _Graph(Application):
    def __init__(self, folder: Path, journal: Journal) -> None:
        self.received: list[object] = []
        self._folder, self._journal = folder, journal
        super().__init__(["test"])

    def compose(self) -> None:
        loader = SeriesLoaderOperator(
            self, CountCondition(self, 1), name="loader", folder=self._folder, journal=self._journal
        )
        self.add_flow(loader, _Sink(self, name="sink"), {("volume", "volume")})


def test_operator_emits_the_volume_and_tells_what_it_found(files: list[Path]) -> None:
    lines: list[str] = []
    graph = _Graph(files[0].parent, Journal(lines.append))
    graph.run()
    (volume,) = graph.received
    np.testing.assert_array_equal(volume.hu, HU)
    assert lines[-1].startswith("Series loader: 6 slices 10 x 8, 0.75 x 1.50 x 30.0 mm (")


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
        ("robustness/enhanced_ct", ReasonCode.ENHANCED_CT),
        ("robustness/head_ct_gantry_tilt", ReasonCode.INCONSISTENT_GEOMETRY),
        ("robustness/localizers", ReasonCode.NO_CT_SERIES),
        ("robustness/lungmask_missing_tags", ReasonCode.NO_CT_SERIES),
        ("robustness/non_ct", ReasonCode.NO_CT_SERIES),
        ("robustness/pydicom_bad", ReasonCode.UNREADABLE),
        ("robustness/ts_chest_ctimage", ReasonCode.MIXED_STUDIES),
        ("robustness", ReasonCode.UNREADABLE),
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
def test_lost_real_slice_is_refused(real_data: Path, tmp_path: Path) -> None:
    for path in sorted((real_data / "covid_P001").iterdir())[:-1]:
        (tmp_path / path.name).symlink_to(path)
    assert refusal(tmp_path).code is ReasonCode.MISSING_SLICES
