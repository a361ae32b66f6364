"""What networks learn from is what the CT and its masks say, at the resolution that was asked for."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from safetensors.numpy import save_file

from app.cohort import preparation
from app.cohort.cache import Array, prepare
from app.cohort.images import load_mask, load_study, write_masks
from app.cohort.preparation import POINTS_KEPT, GivenSlices, SlicePreparation, VolumePreparation, slice_preparation
from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy
from app.outcome import RunFailed, UsageError
from models.classifier.studies import LESION, LUNG, PreparedStudy
from models.involvement.network import InvolvementNetwork
from models.involvement.network import predict as involvement_probability
from models.lesions.network import UNKNOWN_TYPE, LesionNetwork
from models.lesions.network import predict as lesions_probability
from models.lung_region import normalise
from models.lungs.network import DeepMedic
from models.record import METADATA, WEIGHTS, ModelUnavailable
from models.runtime import choose
from models.store import save_weights
from models.training.volumes import Volume
from operators.classification import classifier_input
from operators.findings import Involvement, Lesions, Lungs
from operators.involvement import segment_involvement
from operators.lesion_segmentation import segment_lesions
from operators.lung_segmentation import segment_lungs
from operators.software import MANUFACTURER
from operators.volume import CTVolume
from tests.app.tiny_run import SPACING as TINY_MM
from tests.app.tiny_run import write_lungs, write_models
from tests.builders import Triple, write_series

SPACING = (3.0, 2.0, 2.0)
NATIVE = VolumePreparation(SPACING, ("lungs", "lesions"))
Labels = npt.NDArray[np.uint8]


def _write_image(
    path: Path, values: Array, *, order: str = "LPS", spacing: Triple = SPACING, origin: Triple = (0.0, 0.0, 0.0)
) -> Path:
    """Write an array (z, y, x to the head, to the back and to the left) as NIfTI with its axes in another order."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    sitk.WriteImage(sitk.DICOMOrient(image, order), str(path))
    return path


def _thorax(shape: tuple[int, int, int] = (36, 24, 30)) -> tuple[npt.NDArray[np.int16], Labels, Labels]:
    """Two lungs, a noise of its own in each voxel, and lesions at random in the lower half."""
    rng = np.random.default_rng(0)
    lungs = np.zeros(shape, np.uint8)
    lungs[1:-1, 3:-3, 2:13], lungs[1:-1, 3:-3, 17:-2] = 2, 1
    hu = np.where(lungs > 0, -850, 40) + rng.integers(-60, 60, shape)
    lesions = np.where(lungs > 0, rng.integers(0, 5, shape), 0)
    lesions[20:] = 0
    return hu.astype(np.int16), lungs, lesions.astype(np.uint8)


def _study(folder: Path, order: str = "LPS", *, hu: Array | None = None) -> CohortStudy:
    """Write the thorax as NIfTI."""
    folder.mkdir(exist_ok=True)
    own, lungs, lesions = _thorax()
    paths = [folder / f"{name}.nii.gz" for name in ("ct", "lungs", "lesions")]
    for path, values in zip(paths, (own if hu is None else hu, lungs, lesions), strict=True):
        _write_image(path, values, order=order)
    return CohortStudy("p", paths[0], 1, lungs=paths[1], lesions=paths[2])


def _equal(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def test_at_its_own_resolution_a_study_stays_as_it_is(tmp_path: Path) -> None:
    hu, lungs, lesions = _thorax()
    arrays, said = NATIVE.make(_study(tmp_path))
    voxels = {"hu": hu, "lungs": lungs, "lesions": lesions}
    _equal({name: arrays[name] for name in voxels}, voxels)
    assert said == {}
    kinds = ("lung", "lesion", "lesion_1", "lesion_2", "lesion_3", "lesion_4", "lesion_5")
    assert arrays.keys() - voxels.keys() == {f"points_{kind}" for kind in kinds}
    assert all(
        arrays[f"points_{kind}"].dtype == np.int32 and arrays[f"points_{kind}"].shape[1:] == (3,) for kind in kinds
    )


@pytest.mark.parametrize("order", ["RAI", "RAS", "PSR", "IAL", "SLA"])
def test_the_order_of_the_axes_does_not_matter(order: str, tmp_path: Path) -> None:
    expected, _ = NATIVE.make(_study(tmp_path / "usual"))
    turned = _study(tmp_path / order, order)
    assert sitk.ReadImage(str(turned.path)).GetDirection() != (1, 0, 0, 0, 1, 0, 0, 0, 1)
    found, _ = NATIVE.make(turned)
    _equal(found, expected)


def test_dicom_gives_the_same_as_nifti(tmp_path: Path) -> None:
    study = _study(tmp_path / "nifti")
    write_series(tmp_path / "series", _thorax()[0], SPACING)
    found, _ = NATIVE.make(replace(study, path=tmp_path / "series"))
    _equal(found, NATIVE.make(study)[0])


def test_a_patient_on_the_belly_gives_the_same(tmp_path: Path) -> None:
    """Rows run to the front and columns to the right."""
    study = _study(tmp_path / "nifti")
    hu = _thorax()[0]
    _, rows, columns = hu.shape
    corner = ((columns - 1) * SPACING[2], (rows - 1) * SPACING[1], 0.0)
    orientation = [-1, 0, 0, 0, -1, 0]
    write_series(tmp_path / "series", hu[:, ::-1, ::-1], SPACING, corner, ImageOrientationPatient=orientation)
    found, _ = NATIVE.make(replace(study, path=tmp_path / "series"))
    _equal(found, NATIVE.make(study)[0])


def test_hu_are_rounded_and_kept_within_bounds(tmp_path: Path) -> None:
    hu = _thorax()[0].astype(np.float32)
    hu[0, 0, :6] = -3000.0, -1024.4, -0.4, 0.6, 32767.4, 1e6
    arrays, _ = NATIVE.make(_study(tmp_path, hu=hu))
    assert arrays["hu"][0, 0, :6].tolist() == [-1024, -1024, 0, 1, 32767, 32767]


def test_the_result_fits_what_reads_it(tmp_path: Path) -> None:
    hu, lungs, _ = _thorax()
    study = _study(tmp_path)
    (path,) = prepare([study], NATIVE, tmp_path / "cache", workers=1)
    volume = Volume(path)
    np.testing.assert_array_equal(volume.box("hu", (2, 3, 4), (5, 6, 7)), hu[2:7, 3:9, 4:11])
    np.testing.assert_array_equal(volume.box("lungs", (0, 0, 0), lungs.shape), lungs)
    assert (lungs[tuple(volume.points("lung").T)] > 0).all()
    made = path.stat().st_mtime_ns
    assert prepare([study], NATIVE, tmp_path / "cache", workers=1) == [path]
    assert path.stat().st_mtime_ns == made, "made again"


def _weights(size: int) -> npt.NDArray[np.float64]:
    """How much each of ``size`` voxels counts in each of half as many: a triangle of twice their width."""
    weights = np.zeros((size // 2, size))
    for coarse in range(size // 2):
        for offset, weight in ((-1, 1), (0, 3), (1, 3), (2, 1)):
            if 0 <= 2 * coarse + offset < size:
                weights[coarse, 2 * coarse + offset] = weight
    return weights / weights.sum(axis=1, keepdims=True)


def _halved(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    z, y, x = map(_weights, values.shape)
    return np.einsum("az,by,cx,zyx->abc", z, y, x, values.astype(np.float64), optimize=True)


def _block_means(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    z, y, x = (n // 2 for n in values.shape)
    return values.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))


def test_coarser_voxels_are_weighted_means(tmp_path: Path) -> None:
    hu, lungs, lesions = _thorax()
    arrays, _ = VolumePreparation((6.0, 4.0, 4.0), ("lungs", "lesions")).make(_study(tmp_path))
    assert arrays["hu"].shape == arrays["lungs"].shape == arrays["lesions"].shape == (18, 12, 15)
    assert np.abs(arrays["hu"] - _halved(hu)).max() <= 0.51
    for name, labels in (("lungs", lungs), ("lesions", lesions)):
        covered = _halved(labels > 0)
        shares = np.stack([_halved(labels == kind) for kind in range(1, 5)])
        second, first = np.sort(shares, axis=0)[-2:]
        clear = (np.abs(covered - 0.5) > 1e-5) & ((first - second > 1e-5) | (covered < 0.5))
        expected = np.where(covered >= 0.5, shares.argmax(axis=0) + 1, 0)
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(arrays[name][clear], expected[clear])
        assert set(np.unique(arrays[name])) == set(np.unique(labels))


def test_a_coarser_voxel_is_labelled_where_its_plane_is_covered(tmp_path: Path) -> None:
    """Slices stay; in their plane, blocks of two by two voxels are covered or not."""
    blocks = np.random.default_rng(1).integers(0, 3, (36, 12, 15)).astype(np.uint8)
    study = replace(_study(tmp_path), lesions=None)
    assert study.lungs is not None
    _write_image(study.lungs, blocks.repeat(2, axis=1).repeat(2, axis=2))
    arrays, _ = VolumePreparation((None, 4.0, 4.0), ("lungs",)).make(study)
    assert arrays["hu"].shape == (36, 12, 15)
    np.testing.assert_array_equal(arrays["lungs"] > 0, blocks > 0)


def test_lung_networks_learn_how_much_of_a_voxel_is_lung(tmp_path: Path) -> None:
    """Away from borders all or nothing; at a border half way through a voxel, a half; all together the same volume."""
    lungs = np.zeros(_thorax()[1].shape, np.uint8)
    lungs[8:28, 5:19, 4:21] = 1
    study = replace(_study(tmp_path), lesions=None)
    assert study.lungs is not None
    _write_image(study.lungs, lungs)
    arrays, _ = VolumePreparation((None, 4.0, 4.0), ("lungs",)).make(study)
    share = arrays["coverage"] / 255.0
    assert arrays["coverage"].dtype == np.uint8
    assert share.shape == arrays["lungs"].shape
    assert share[10:26, 5:7, 4:8].min() == 1.0
    assert share[:8].max() == share[28:].max() == share[:, :, :1].max() == share[:, :, 13:].max() == 0.0
    assert share[15, 2, 5] == pytest.approx(0.5, abs=0.01)
    assert share.sum() * 4 == pytest.approx(lungs.sum(), rel=0.02)
    assert "coverage" not in NATIVE.make(_study(tmp_path))[0]


def test_points_are_of_their_kind_and_evenly_over_it(tmp_path: Path) -> None:
    arrays, _ = NATIVE.make(_study(tmp_path))
    _, lungs, lesions = _thorax()
    kinds = {"lung": lungs > 0, "lesion": lesions > 0, **{f"lesion_{k}": lesions == k for k in range(1, 5)}}
    for kind, mask in kinds.items():
        points = arrays[f"points_{kind}"]
        every = np.argwhere(mask)
        assert len(points) == min(len(every), POINTS_KEPT)
        ranks = {tuple(voxel): rank for rank, voxel in enumerate(every.tolist())}
        places = [ranks[tuple(point)] for point in points.tolist()]
        steps = np.diff(places)
        assert (places[0], places[-1]) == (0, len(every) - 1)
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1
    assert len(arrays["points_lung"]) == POINTS_KEPT < (lungs > 0).sum()
    assert len(arrays["points_lesion_1"]) == (lesions == 1).sum() < POINTS_KEPT


def test_points_around_lungs_are_at_surfaces_other_air_in_the_body_and_beside_it(tmp_path: Path) -> None:
    shape = (24, 64, 72)
    hu, lungs = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    hu[:, 4:-4, 4:-4] = 40
    lungs[4:-4, 12:-12, 12:28], lungs[4:-4, 12:-12, 44:60] = 2, 1
    hu[lungs > 0] = -850
    trachea = np.s_[:, 30:38, 33:39]
    hu[trachea] = -1000
    table = np.s_[:, -2:, 6:-6]
    hu[table] = -900
    study = _study(tmp_path)
    assert study.lungs is not None
    _write_image(study.path, hu)
    _write_image(study.lungs, lungs)
    arrays, _ = VolumePreparation(SPACING, ("lungs",)).make(study)
    assert {name for name in arrays if name.startswith("points_")} == {
        f"points_{kind}" for kind in ("lung", "surface", "other_air", "body", "beside")
    }
    surface = [voxel for voxel in np.argwhere(lungs) if any(lungs[n] == 0 for n in _neighbours(voxel))]
    at_surface = {tuple(point) for point in arrays["points_surface"].tolist()}
    assert len(surface) > POINTS_KEPT == len(at_surface)
    assert at_surface <= {tuple(voxel) for voxel in np.array(surface).tolist()}
    in_trachea = np.zeros(hu.shape, bool)
    in_trachea[trachea] = True
    assert len(arrays["points_other_air"]) > 0.5 * in_trachea.sum()
    assert in_trachea[tuple(arrays["points_other_air"].T)].all()
    in_body = np.zeros(hu.shape, bool)
    in_body[:, 4:-4, 4:-4] = True
    assert len(arrays["points_body"]) == POINTS_KEPT
    assert in_body[tuple(arrays["points_body"].T)].all()
    in_table = np.zeros(hu.shape, bool)
    in_table[table] = True
    beside = tuple(arrays["points_beside"].T)
    assert len(arrays["points_beside"]) == POINTS_KEPT
    assert in_table[beside].mean() > 0.8, "the opening takes edges off the body"
    assert not (lungs[beside] > 0).any()
    assert hu[beside].min() > -950


def _neighbours(voxel: npt.NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Give the six voxels that share a face."""
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    return [tuple(each) for each in (voxel + steps).tolist()]


def test_without_lesions_there_are_no_points_at_them(tmp_path: Path) -> None:
    study = _study(tmp_path)
    assert study.lesions is not None
    _write_image(study.lesions, np.zeros((36, 24, 30), np.uint8))
    arrays, _ = NATIVE.make(study)
    points = {name.removeprefix("points_"): len(array) for name, array in arrays.items() if name.startswith("points_")}
    assert points == {"lung": POINTS_KEPT, "lesion": 0, **{f"lesion_{kind}": 0 for kind in range(1, 6)}}


def test_a_mask_without_lung_cannot_be_used(tmp_path: Path) -> None:
    study = _study(tmp_path)
    assert study.lungs is not None
    _write_image(study.lungs, np.zeros((36, 24, 30), np.uint8))
    with pytest.raises(UsageError, match="holds no lung"):
        NATIVE.make(study)


def test_settings_and_code_tell_preparations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    finer, other = VolumePreparation((None, 1.5, 1.5), ("lungs",)), VolumePreparation(SPACING, ("lungs",))
    assert (NATIVE.name, finer.name, other.name) == ("volumes-3x2x2", "volumes-zx1.5x1.5", "volumes-3x2x2")
    made = [json.dumps(dict(each.made_with)) for each in (NATIVE, finer, other)]
    monkeypatch.setattr(preparation, "code_digest", lambda *packages: " ".join(packages))
    made.append(json.dumps(dict(NATIVE.made_with)))
    assert len(set(made)) == 4
    assert "app/cohort models operators" in made[-1]
    assert pickle.loads(pickle.dumps(NATIVE)) == NATIVE  # noqa: S301 - our own


def _on(kind: str, change: Callable[[Array], Array], **geometry: Triple) -> Callable[[CohortStudy], CohortStudy]:
    """Write the CT or a mask anew."""

    def spoil(study: CohortStudy) -> CohortStudy:
        values = dict(zip(("path", "lungs", "lesions"), _thorax(), strict=True))[kind]
        _write_image(getattr(study, kind), change(values), **geometry)
        return study

    return spoil


def _with(value: float) -> Callable[[Array], Array]:
    def change(values: Array) -> Array:
        changed = values.astype(np.float32)
        changed[3, 4, 5] = value
        return changed

    return change


def _colours(study: CohortStudy) -> CohortStudy:
    image = sitk.GetImageFromArray(np.stack([_thorax()[1]] * 3, axis=-1), isVector=True)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(study.lungs))
    return study


def _twice(study: CohortStudy) -> CohortStudy:
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(study.path))] * 2), str(study.path))
    return study


def _one_slice(study: CohortStudy) -> CohortStudy:
    sitk.WriteImage(sitk.GetImageFromArray(_thorax()[0][0]), str(study.path))
    return study


def _cut(study: CohortStudy) -> CohortStudy:
    content = study.path.read_bytes()
    study.path.write_bytes(content[: len(content) // 2])
    return study


def _no_image(study: CohortStudy) -> CohortStudy:
    study.path.write_bytes(b"no image")
    return study


def _no_dicom(study: CohortStudy) -> CohortStudy:
    folder = study.path.with_name("series")
    folder.mkdir()
    (folder / "read.me").write_text("no image")
    return replace(study, path=folder)


def _mask_gone(study: CohortStudy) -> CohortStudy:
    assert study.lungs is not None
    study.lungs.unlink()
    return study


_SPOILS: dict[str, Callable[[CohortStudy], CohortStudy]] = {
    "no mask": lambda study: replace(study, lesions=None),
    "mask gone": _mask_gone,
    "mask moved": _on("lungs", lambda labels: labels, origin=(0.0, 0.0, 1.0)),
    "mask of another size": _on("lesions", lambda labels: labels[:-1]),
    "mask of another spacing": _on("lungs", lambda labels: labels, spacing=(3.0, 2.0, 2.1)),
    "three lungs": _on("lungs", lambda labels: labels + np.uint8(labels == 2)),
    "six lesions": _on("lesions", lambda labels: labels + np.uint8(2 * (labels == 4))),
    "half a label": _on("lungs", lambda labels: labels * np.float32(0.5)),
    "no number in a mask": _on("lungs", _with(np.nan)),
    "a mask of colours": _colours,
    "no image": _no_image,
    "several images": _twice,
    "one slice": _one_slice,
    "no number": _on("path", _with(np.nan)),
    "infinite": _on("path", _with(np.inf)),
    "half a file": _cut,
    "no Hounsfield units": _on("path", lambda hu: np.interp(hu, (-1250, 250), (0, 255)).astype(np.int16)),
    "no dicom": _no_dicom,
}


def _problem(kind: str, folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        NATIVE.make(_SPOILS[kind](_study(folder)))
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no mask", "study ct.nii.gz has no mask of the lesions"),
        ("mask gone", "lungs.nii.gz"),
        ("mask moved", "mask lungs.nii.gz does not lie on the grid of its CT"),
        ("mask of another size", "mask lesions.nii.gz does not lie on the grid of its CT"),
        ("mask of another spacing", "mask lungs.nii.gz does not lie on the grid of its CT"),
        ("three lungs", "mask lungs.nii.gz holds other labels than 0 to 2"),
        ("six lesions", "mask lesions.nii.gz holds other labels than 0 to 5"),
        ("half a label", "mask lungs.nii.gz holds other labels than 0 to 2"),
        ("no number in a mask", "mask lungs.nii.gz holds other labels than 0 to 2"),
        ("a mask of colours", "lungs.nii.gz"),
        ("no image", "ct.nii.gz"),
        ("several images", "ct.nii.gz"),
        ("one slice", "ct.nii.gz"),
        ("no number", "study ct.nii.gz: hu must be finite"),
        ("infinite", "study ct.nii.gz: hu must be finite"),
        ("half a file", "ct.nii.gz"),
        ("no Hounsfield units", "study ct.nii.gz: IMPLAUSIBLE_HU: The lungs lie at 67 HU in the median"),
        ("no dicom", "study series: NO_DICOM: "),
    ],
)
def test_what_cannot_be_used_is_one_line(kind: str, says: str, tmp_path: Path) -> None:
    assert says in _problem(kind, tmp_path)


@pytest.mark.parametrize("kind", ["mask gone", "mask moved", "mask of another size", "three lungs", "six lesions"])
def test_what_is_wrong_with_a_mask_names_the_study(kind: str, tmp_path: Path) -> None:
    assert "ct.nii.gz" in _problem(kind, tmp_path)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CohortStudy:
    """The tiny series, with a bulla that is as dark as what lies outside the lungs."""
    folder = tmp_path_factory.mktemp("cohort")
    write_lungs(folder / "usual")
    hu = np.array(load_study(CohortStudy("p", folder / "usual", 1)).hu)
    hu[10:14, 8:12, 6:9] = -1020
    write_series(folder / "tiny", hu, TINY_MM, PatientName="Doe^Jane", PatientID="4711")
    return CohortStudy("p", folder / "tiny", 1)


@pytest.fixture(scope="module")
def models(series: CohortStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models at the resolution of the tiny series; those of lesions and involvement mark half of the lungs or so."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    metadata = json.loads((folder / "lungs" / METADATA).read_text("utf-8"))
    metadata["network_settings"] = {"spacing": list(TINY_MM)}
    (folder / "lungs" / METADATA).write_text(json.dumps(metadata), "utf-8")
    hu = torch.from_numpy(np.array(load_study(series).hu))
    hu = hu[4:12]  # as good as all
    lung = hu < -400
    image = normalise(hu, torch.ones_like(lung))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        settings = {"spacing": list(TINY_MM), "patch": [40, 24, 32]}
        lesions = LesionNetwork(**settings).eval()
        background = lesions_probability(lesions, image)[0][lung]
        lesions.head.bias[0] += torch.logit(1.0 - background).median()
        save_weights(folder / "lesions", lesions, {"name": "test lesions", "version": "0"}, settings)
        involvement = InvolvementNetwork(pixel_mm=TINY_MM[1]).eval()
        affected = involvement_probability(involvement, image)[lung]
        involvement.head.bias -= torch.logit(affected).median()
        named = {"name": "test involvement", "version": "0"}
        save_weights(folder / "involvement", involvement, named, {"pixel_mm": TINY_MM[1]})
    return folder


@pytest.fixture(scope="module")
def slices(series: CohortStudy, models: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The series prepared with pixels of its own size."""
    return slice_preparation(models, 30).make(series)


def _segmented(series: CohortStudy, models: Path) -> tuple[CTVolume, Lungs, Lesions, Involvement]:
    """Segment the series, whose lungs are known, in the arithmetic in which studies are prepared."""
    volume = load_study(series)
    lungs = Lungs((volume.hu < -400).astype(np.uint8), volume.grid)
    runtime = choose("openvino")
    lesions = segment_lesions(volume, lungs, runtime.load(models / "lesions", LesionNetwork)[0])
    involvement = segment_involvement(volume, lungs, runtime.load(models / "involvement", InvolvementNetwork)[0])
    return volume, lungs, lesions, involvement


def test_slices_hold_what_the_classifier_sees(
    slices: tuple[dict[str, Array], dict[str, str]], series: CohortStudy, models: Path
) -> None:
    arrays, said = slices
    volume, lungs, lesions, involvement = _segmented(series, models)
    with_lung = slice(4, 32)
    lung, lesion = lungs.mask[with_lung], lesions.mask[with_lung]
    assert arrays.keys() == {"ct", "labels"}
    assert (arrays["ct"].dtype, arrays["labels"].dtype) == (np.float16, np.uint8)
    brightness = np.where(lung, (volume.hu[with_lung] + 1000) / 1400, 0).clip(0).astype(np.float16)
    np.testing.assert_array_equal(arrays["ct"], brightness)
    np.testing.assert_array_equal(arrays["labels"] & LUNG > 0, lung)
    np.testing.assert_array_equal(arrays["labels"] & LESION > 0, lesion)
    assert 0.2 < lesion.sum() / lung.sum() < 0.8
    inputs, _ = classifier_input(volume, lungs, lesions, 30)
    np.testing.assert_array_equal(arrays["ct"], inputs[:, 0].astype(np.float16))
    assert float(said["involvement"]) == pytest.approx(100 * involvement.mask.sum() / lungs.mask.sum(), abs=1e-4)
    assert 20 < float(said["involvement"]) < 80


def test_slices_say_who_was_examined_how_but_no_name(slices: tuple[dict[str, Array], dict[str, str]]) -> None:
    _, said = slices
    assert said.keys() == {"attributes", "involvement", "spacing"}
    attributes = {"sex": "O", "age": "60", "manufacturer": MANUFACTURER, "slice_thickness": "3.0"}
    assert json.loads(said["attributes"]) == attributes
    assert json.loads(said["spacing"]) == pytest.approx(TINY_MM)
    assert not any(secret in json.dumps(said) for secret in ("Doe", "4711", "1960"))


def test_slices_are_read_as_the_classifier_learns_them(
    slices: tuple[dict[str, Array], dict[str, str]], tmp_path: Path
) -> None:
    save_file(slices[0], tmp_path / "study")
    read = PreparedStudy(tmp_path / "study", 1).slices().numpy()
    labels = slices[0]["labels"]
    assert (read.shape, read.dtype) == ((28, 3, 24, 30), np.float32)
    np.testing.assert_array_equal(read[:, 0], slices[0]["ct"].astype(np.float32))
    np.testing.assert_array_equal(read[:, 1], np.isin(labels, (LESION, LESION + LUNG)))
    np.testing.assert_array_equal(read[:, 2], np.isin(labels, (LUNG, LESION + LUNG)))


def _with_masks(series: CohortStudy, folder: Path) -> CohortStudy:
    """Give the series masks: left and right lung, and lesions of two types in them."""
    volume = load_study(series)
    lung = volume.hu < -400
    lungs = np.where(lung, 1 + (np.arange(lung.shape[2]) >= 15), 0).astype(np.uint8)
    lesions = np.zeros_like(lungs)
    lesions[8:20, 6:12], lesions[20:26, 6:12] = 1, 3
    (folder / "masks").mkdir()
    paths = write_masks(folder, "tiny", lungs, lesions * lung, volume.grid)
    return replace(series, lungs=paths[0], lesions=paths[1])


def test_given_slices_hold_what_the_classifier_would_see_of_the_masks_of_the_cohort(
    series: CohortStudy, slices: tuple[dict[str, Array], dict[str, str]], tmp_path: Path
) -> None:
    study = _with_masks(series, tmp_path)
    arrays, said = GivenSlices(30).make(study)
    np.testing.assert_array_equal(arrays["ct"], slices[0]["ct"])
    np.testing.assert_array_equal(arrays["labels"] & LUNG, slices[0]["labels"] & LUNG)
    lung = load_study(series).hu < -400
    expected = np.zeros(lung.shape, bool)
    expected[8:26, 6:12] = lung[8:26, 6:12]
    np.testing.assert_array_equal(arrays["labels"] & LESION > 0, expected[4:32])
    assert 100 < expected.sum() < lung.sum()
    assert said == {"spacing": slices[1]["spacing"]}
    assert GivenSlices(30).made_with != GivenSlices(32).made_with


def test_given_lesions_may_be_of_unknown_type(series: CohortStudy, tmp_path: Path) -> None:
    study = _with_masks(series, tmp_path)
    assert study.lesions is not None
    expected, _ = GivenSlices(30).make(study)
    volume = load_study(study)
    unknown = UNKNOWN_TYPE * (load_mask(study.lesions, volume.grid, UNKNOWN_TYPE) > 0)
    (tmp_path / "other" / "masks").mkdir(parents=True)
    lungs = np.where(volume.hu < -400, 1, 0).astype(np.uint8)
    _, lesions = write_masks(tmp_path / "other", "tiny", lungs, unknown.astype(np.uint8), volume.grid)
    arrays, _ = GivenSlices(30).make(replace(study, lesions=lesions))
    np.testing.assert_array_equal(arrays["labels"], expected["labels"])
    assert (arrays["labels"] & LESION).any()


@pytest.mark.parametrize("mask", ["lungs", "lesions"])
def test_slices_are_not_given_without_masks(mask: str, series: CohortStudy, tmp_path: Path) -> None:
    study = replace(_with_masks(series, tmp_path), **{mask: None})
    with pytest.raises(UsageError, match=f"study tiny has no mask of the {mask}"):
        GivenSlices(30).make(study)


def test_given_slices_without_hounsfield_units_cannot_be_used(
    series: CohortStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, volume = _with_masks(series, tmp_path), load_study(series)
    scaled = replace(volume, hu=np.interp(volume.hu, (-1250, 250), (0, 255)).astype(np.float32))
    monkeypatch.setattr(preparation, "load_study", lambda study: scaled)
    with pytest.raises(StudyRefused, match="IMPLAUSIBLE_HU"):
        GivenSlices(30).make(study)


def test_a_study_without_lungs_cannot_be_used(models: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "legs", np.full((36, 24, 30), 40.0), TINY_MM)
    with pytest.raises(StudyRefused, match=r"^study legs: NO_LUNGS: no lungs were found: .*$") as error:
        slice_preparation(models, 30).make(CohortStudy("p", tmp_path / "legs", 0))
    assert error.value.code == "NO_LUNGS"


def test_slices_without_hounsfield_units_cannot_be_used(
    series: CohortStudy, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the lung network takes for lungs in them."""
    volume = load_study(series)
    scaled = replace(volume, hu=np.interp(volume.hu, (-1250, 250), (0, 255)).astype(np.float32))
    lungs = segment_lungs(volume, choose().load(models / "lungs", DeepMedic)[0])
    monkeypatch.setattr(preparation, "segment_lungs", lambda volume, network: lungs)
    monkeypatch.setattr(preparation, "load_study", lambda study: scaled)
    with pytest.raises(UsageError, match=r"^study tiny: IMPLAUSIBLE_HU: The lungs lie at \d+ HU"):
        slice_preparation(models, 30).make(series)


def test_lungs_that_vanish_in_large_pixels_cannot_be_used(series: CohortStudy, models: Path) -> None:
    with pytest.raises(UsageError, match="study tiny: NO_LUNGS: "):
        slice_preparation(models, 1).make(series)


def test_models_and_sizes_tell_preparations_of_slices_apart(models: Path, tmp_path: Path) -> None:
    preparation = slice_preparation(models, 30)
    assert preparation.name == "slices-30"
    assert slice_preparation(models, 30) == preparation
    assert slice_preparation(models, 32).made_with != preparation.made_with
    assert pickle.loads(pickle.dumps(preparation)) == preparation  # noqa: S301 - our own
    for task in ("lungs", "lesions", "involvement"):
        shutil.copytree(models / task, tmp_path / task)
    assert slice_preparation(tmp_path, 30).made_with == preparation.made_with
    metadata = json.loads((tmp_path / "lesions" / METADATA).read_text("utf-8"))
    metadata["network_settings"]["patch"] = [24, 48, 48]
    (tmp_path / "lesions" / METADATA).write_text(json.dumps(metadata), "utf-8")
    assert slice_preparation(tmp_path, 30).made_with != preparation.made_with
    with (tmp_path / "involvement" / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ModelUnavailable, match="model involvement: "):
        slice_preparation(tmp_path, 30)


def test_models_that_are_gone_are_our_failure(series: CohortStudy, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="model lungs: cannot read"):
        SlicePreparation(tmp_path, ("hash",), 30).make(series)


def test_lesions_of_unknown_type_are_kept_as_such(tmp_path: Path) -> None:
    study = _study(tmp_path)
    _, _, lesions = _thorax()
    assert study.lesions is not None
    _write_image(study.lesions, np.where(lesions == 2, 5, lesions).astype(np.uint8))
    arrays, _ = NATIVE.make(study)
    np.testing.assert_array_equal(arrays["lesions"] == 5, lesions == 2)
    assert len(arrays["points_lesion_5"]) == min((lesions == 2).sum(), POINTS_KEPT)
    assert len(arrays["points_lesion_2"]) == 0
