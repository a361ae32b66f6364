"""The three segmentation nodes, with networks whose answer is known: they threshold."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from models.lesions.network import LesionNetwork
from models.lungs.network import predict
from models.lungs.reference import AERATED_HU
from models.morphology import body_region
from operators.findings import LesionType, Lung, Lungs
from operators.involvement import segment_involvement
from operators.lesion_segmentation import MIN_LESION_ML, around_lungs, remove_specks, segment_lesions
from operators.lung_segmentation import (
    MEDIASTINAL_MM,
    PLEURAL_MM,
    RIM_MM,
    close_sides,
    label_sides,
    lung_components,
    near_body,
    segment_lungs,
    with_rim,
    within_body,
    without_bowel,
)
from operators.refusal import InputRefused, ReasonCode
from operators.volume import CTVolume, Grid
from tests.builders import axial_grid, ct_volume

SPACING = (3.0, 1.5, 1.5)
SHAPE = (30, 100, 140)
LEFT, RIGHT = np.s_[4:26, 20:80, 76:130], np.s_[4:26, 20:80, 10:64]  # column index runs to the patient's left


class _Air(nn.Module):
    """Logit of lung: below -500 HU."""

    spacing = (3.0, 2.0, 2.0)

    def survey(self, x: Tensor) -> Tensor:
        return avg_pool3d(x, 3)[:, :, 5:-5, 10:-10, 10:-10]

    def decide(self, x: Tensor, coarse: Tensor) -> Tensor:
        return (0.5 - x[:, :, 5:-5, 10:-10, 10:-10]) * 100


class _ByDensity(LesionNetwork):
    """Ground glass from -650 HU, consolidation from -200 HU, as five logits."""

    def forward(self, x: Tensor) -> Tensor:
        hu = x * 1400 - 1000
        zero = torch.zeros_like(hu)
        ground_glass, consolidation = (hu + 650) / 5, (hu + 650) / 5 + (hu + 200)
        return torch.cat([zero, ground_glass, consolidation, zero - 50, zero - 50], dim=1)


class _Dense(nn.Module):
    """Logit of affected lung: above -650 HU."""

    pixel_mm = 1.5
    patch = (192, 192)

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1400 - 350) / 5


class _LesionShare(LesionNetwork):
    """Gives the lesions together the intensity as probability; most of it to consolidation, less than background."""

    def forward(self, x: Tensor) -> Tensor:
        share = torch.tensor([0.3, 0.4, 0.2, 0.1])[:, None, None, None]
        return torch.cat([(1 - x).log(), (x * share).log()], dim=1).clamp(min=-50.0)


class _AffectedShare(nn.Module):
    """Gives affected lung the intensity as probability."""

    pixel_mm = 2.0
    patch = (192, 192)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(x, eps=1e-6)


def _chest() -> CTVolume:
    hu = np.full(SHAPE, 40.0)
    hu[LEFT] = hu[RIGHT] = -850.0
    return ct_volume(hu, SPACING)


def _truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[LEFT], labels[RIGHT] = Lung.LEFT, Lung.RIGHT
    return labels


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _mirrored(grid: Grid) -> Grid:
    """The same grid with columns that run to the patient's right."""
    affine = np.array(grid.affine)
    affine[:3, 3] += affine[:3, 2] * (grid.shape[2] - 1)
    affine[:3, 2] *= -1
    return Grid(grid.shape, affine)


def test_lungs_are_found_where_they_are_and_told_apart() -> None:
    lungs = segment_lungs(_chest(), _Air())  # type: ignore[arg-type]
    for side in Lung:
        assert _dice(lungs.labels == side, _truth() == side) > 0.97


def test_no_lung_is_looked_for_far_from_the_body() -> None:
    hu, _ = _clothed_chest()
    wide = np.pad(hu, [(0, 0), (0, 0), (20, 30)], constant_values=-1000.0)
    wide[:, 20:, 5:8] = -850.0  # a blanket beside the body
    near = near_body(wide, (3.0, 2.0, 2.0))
    rows = np.flatnonzero(near.any(axis=(0, 2)))
    assert (rows[0], rows[-1]) == (1, 59)  # in front 20 mm before the row of the shirt that lies on the body
    columns = np.flatnonzero(near.any(axis=(0, 1)))
    assert (columns[0], columns[-1]) == (20, 109)  # 20 mm beside the body, which lies in columns 30 to 99
    assert not near[:, :, 5:8].any()


@pytest.mark.parametrize(
    "cut",
    [np.s_[:, :, 20:], np.s_[:, :, 36:], np.s_[:, 24:, :], np.s_[:, :, 20:70], np.s_[4:16, 20:44, 18:70]],
    ids=str,
)
def test_all_lung_in_a_narrow_field_of_view_is_found(cut: tuple[slice, ...]) -> None:
    """Also where only the mediastinum is left of all tissue, and the lungs reach to every side."""
    hu, _ = _clothed_chest()
    hu[hu == -100.0] = -1000.0
    lungs = hu[cut] == -850.0
    found = predict(_Air(), torch.from_numpy(hu[cut]), near_body(hu[cut], (3.0, 2.0, 2.0)))  # type: ignore[arg-type]
    assert (found.numpy() >= 0.45)[lungs].all()


def _clothed_chest() -> tuple[np.ndarray, np.ndarray]:
    """HU of a body with lungs and a shirt, and where the air under the shirt is."""
    hu = np.full((20, 60, 90), -1000.0, np.float32)
    hu[:, 12:52, 10:80] = 40.0
    hu[2:18, 18:46, 16:40] = hu[2:18, 18:46, 50:74] = -850.0
    hu[:, 5, 20:70] = -100.0  # one voxel thin, touching the body at its ends
    hu[:, 5:12, 20] = hu[:, 5:12, 69] = -100.0
    under = np.zeros(hu.shape, bool)
    under[4:12, 7:11, 50:60] = True
    return hu, under


def test_air_under_clothes_is_no_lung() -> None:
    hu, under = _clothed_chest()
    lungs = hu == -850.0
    np.testing.assert_array_equal(within_body(lungs | under, hu), lungs)
    np.testing.assert_array_equal(within_body(lungs, hu), lungs)


@pytest.mark.parametrize("cut", [np.s_[:, :, 20:], np.s_[:, :, 36:], np.s_[:, 24:, :], np.s_[:, :, 20:70]], ids=str)
def test_lungs_that_the_field_of_view_opens_stay(cut: tuple[slice, ...]) -> None:
    hu, _ = _clothed_chest()
    lungs = hu[cut] == -850.0
    np.testing.assert_array_equal(within_body(lungs, hu[cut]), lungs)


def test_a_lung_behind_a_wall_too_thin_to_be_seen_stays() -> None:
    hu, _ = _clothed_chest()
    hu[:, 12:52, 10:15] = -1000.0  # one voxel of wall is left beside the right lung
    lungs = hu == -850.0
    np.testing.assert_array_equal(within_body(lungs, hu), lungs)


def test_apices_that_the_shoulders_leave_open_stay() -> None:
    hu, _ = _clothed_chest()
    hu[14:, 12:18, 25:30] = hu[14:, 12:18, 60:65] = -1000.0  # air reaches both lungs in their upper slices
    hu[13:18, 18:46, 16:40] = hu[13:18, 18:46, 50:74] = -850.0
    lungs = hu == -850.0
    assert (lungs & ~body_region(hu > AERATED_HU, opening=1)).any()
    np.testing.assert_array_equal(within_body(lungs, hu), lungs)


def test_left_is_left_when_the_image_is_mirrored() -> None:
    mask = _truth() > 0
    grid = axial_grid(SHAPE, SPACING)
    assert (label_sides(mask, grid)[LEFT] == Lung.LEFT).all()
    assert (label_sides(mask, _mirrored(grid))[LEFT] == Lung.RIGHT).all()


def test_small_pockets_of_air_are_not_lungs_and_holes_are_filled() -> None:
    mask = _truth() > 0
    mask[15, 50, 100] = False
    mask[0:2, 0:5, 0:5] = True
    got = lung_components(mask, axial_grid(SHAPE, SPACING))
    np.testing.assert_array_equal(got, _truth() > 0)


CLOSING_STEP = (3.0, 2.0, 2.0)


def _ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Voxels within ``radius`` mm of a point in mm, on a grid of 40 x 60 x 90."""
    z, y, x = (np.arange(n) * step - c for n, step, c in zip((40, 60, 90), CLOSING_STEP, centre, strict=True))
    return np.asarray(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2)


def _tube(centre: tuple[float, float], radius: float) -> np.ndarray:
    """Voxels within ``radius`` mm of a line along x, on the grid of the balls."""
    z, y = (np.arange(n) * step - c for n, step, c in zip((40, 60), CLOSING_STEP, centre, strict=False))
    return np.broadcast_to((z[:, None] ** 2 + y**2 <= radius**2)[..., None], (40, 60, 90))


def _two_lungs() -> np.ndarray:
    """Two balls 24 mm apart, the right one at low columns."""
    right, left = _ball((60, 60, 46), 34), _ball((60, 60, 138), 34)
    return np.uint8(Lung.RIGHT) * right + np.uint8(Lung.LEFT) * left


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_lung_is_closed_over_disease_at_the_pleura_and_not_over_the_hilum(mirrored: bool) -> None:
    whole = _two_lungs()
    channel = _tube((60, 60), (PLEURAL_MM + MEDIASTINAL_MM) / 2)
    at_pleura, at_hilum = channel.copy(), channel.copy()
    at_pleura[..., 13:], at_hilum[..., :33], at_hilum[..., 45:] = False, False, False
    dented = np.where(at_pleura | at_hilum, 0, whole).astype(np.uint8)
    if mirrored:
        whole, dented, at_pleura, at_hilum = (each[..., ::-1] for each in (whole, dented, at_pleura, at_hilum))
    closed = close_sides(dented, CLOSING_STEP)
    lost = (whole > 0) & (dented == 0)
    assert (closed[dented > 0] == dented[dented > 0]).all()
    assert (closed[lost & at_pleura] == Lung.RIGHT).mean() > 0.7
    assert (closed[lost & at_hilum] > 0).mean() < 0.3
    assert not (closed[whole == 0] > 0).any()


def _left_out(radius: float, shell_hu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two lungs of -850 HU in tissue whose outermost shell has other HU; what was found of them, and the whole."""
    whole = _two_lungs()
    found = np.where(_ball((60, 60, 46), radius) | _ball((60, 60, 138), radius), whole, 0).astype(np.uint8)
    hu = np.where(whole > 0, np.where(found > 0, -850.0, shell_hu), 40.0).astype(np.float32)
    return whole, found, hu


def test_a_thin_shell_of_aerated_lung_is_taken_in_on_its_side_but_not_where_bronchi_enter() -> None:
    whole, found, hu = _left_out(30.0, -700.0)
    got = with_rim(found, hu, CLOSING_STEP)
    shell = (whole > 0) & (found == 0)
    facing = shell.copy()
    facing[..., :20], facing[..., 73:] = False, False
    rows = np.arange(60) * CLOSING_STEP[1]
    middle = facing & (np.abs(rows - 60.0) < 10.0)[None, :, None]
    middle[:17], middle[24:] = False, False
    assert middle.any()
    assert not (got[middle] > 0).any(), "this faces the other lung"
    assert (got[shell & ~facing] == whole[shell & ~facing]).all()
    assert (got[found > 0] == found[found > 0]).all()
    assert not (got[whole == 0] > 0).any()


@pytest.mark.parametrize("shell_hu", [-1000.0, -300.0])
def test_neither_gas_nor_what_is_dense_is_a_rim(shell_hu: float) -> None:
    _, found, hu = _left_out(30.0, shell_hu)
    np.testing.assert_array_equal(with_rim(found, hu, CLOSING_STEP), found)


def test_a_rim_is_thin_and_hangs_on_the_lung() -> None:
    _, found, hu = _left_out(20.0, -700.0)
    hu[_ball((60, 60, 46), 24.0) & ~_ball((60, 60, 46), 20.0)] = 40.0  # a wall around the right one
    got = with_rim(found, hu, CLOSING_STEP)
    lateral = np.arange(90) > 70
    assert (got[_ball((60, 60, 138), 20.0 + RIM_MM - 3.0) & lateral] == Lung.LEFT).all()
    assert not got[~_ball((60, 60, 138), 20.0 + RIM_MM) & lateral].any()
    np.testing.assert_array_equal(got == Lung.RIGHT, found == Lung.RIGHT)


def test_one_lung_has_a_rim_all_around() -> None:
    whole, found, hu = _left_out(30.0, -700.0)
    alone = np.where(found == Lung.LEFT, found, 0).astype(np.uint8)
    np.testing.assert_array_equal(with_rim(alone, hu, CLOSING_STEP), np.where(whole == Lung.LEFT, whole, 0))


def test_convex_lungs_are_closed_already_and_stay_apart() -> None:
    whole = _two_lungs()
    np.testing.assert_array_equal(close_sides(whole, CLOSING_STEP), whole)
    one = np.where(whole == Lung.LEFT, whole, 0).astype(np.uint8)
    np.testing.assert_array_equal(close_sides(one, CLOSING_STEP), one)


def test_the_segmented_lung_holds_a_dense_nodule_at_the_pleura() -> None:
    hu = np.full((40, 60, 90), 40.0, np.float32)
    whole = _two_lungs()
    nodule = _ball((60, 60, 138 + 29), 6.0)
    hu[whole > 0] = -850.0
    hu[nodule] = 20.0
    found = segment_lungs(ct_volume(hu, CLOSING_STEP), _Air()).labels  # type: ignore[arg-type]
    lost = nodule & (whole > 0)
    assert lost.any()
    assert (found[lost] == Lung.LEFT).mean() > 0.7
    assert (found > 0)[whole == 0].mean() < 0.005


def _lung_over_bowel(
    bowel_hu: float, upside_down: bool = False, wide: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lung, something round below it, a bridge between them, and Hounsfield units with noise."""
    lung, bowel = _ball((80, 60, 90), 32), _ball((24, 60, 90), 18)
    bridge = np.zeros(lung.shape, bool)
    bridge[13:17, 29 : 29 + wide, 44 : 44 + wide] = True
    hu = np.where(bowel, bowel_hu, -850.0) + np.random.default_rng(0).normal(0, 30, lung.shape)
    if upside_down:
        lung, bowel, bridge, hu = (each[::-1] for each in (lung, bowel, bridge, hu))
    return lung | bridge, bowel, hu.astype(np.float32)


@pytest.mark.parametrize("offset", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("wide", [3, 6])
def test_bowel_that_hangs_on_a_lung_is_taken_out(offset: float, wide: int) -> None:
    lung, bowel, hu = _lung_over_bowel(-1000.0, wide=wide)
    found = without_bowel(lung | bowel, hu + np.float32(offset), CLOSING_STEP)
    assert found[_ball((80, 60, 90), 32)].all()
    assert (found & bowel & ~lung).sum() < 0.02 * bowel.sum()


@pytest.mark.parametrize(
    ("bowel_hu", "upside_down"),
    [
        pytest.param(-870.0, False, id="filled with lung"),
        pytest.param(-1000.0, True, id="a bulla at the apex"),
    ],
)
def test_a_part_of_a_lung_behind_a_bridge_stays(bowel_hu: float, upside_down: bool) -> None:
    lung, bowel, hu = _lung_over_bowel(bowel_hu, upside_down)
    np.testing.assert_array_equal(without_bowel(lung | bowel, hu, CLOSING_STEP), lung | bowel)


def test_a_broad_base_full_of_air_stays() -> None:
    """Emphysema is as light as gas, but nothing parts it from the lung."""
    lung = _ball((60, 60, 90), 55)
    hu = np.full(lung.shape, -850.0, np.float32)
    hu[:18] = -1000.0
    np.testing.assert_array_equal(without_bowel(lung, hu, CLOSING_STEP), lung)


def test_one_lung_is_enough() -> None:
    mask = _truth() == Lung.RIGHT
    grid = axial_grid(SHAPE, SPACING)
    labels = label_sides(lung_components(mask, grid), grid)
    assert (labels[RIGHT] == Lung.RIGHT).mean() > 0.99


def test_a_lung_parted_by_dense_disease_keeps_all_its_pieces() -> None:
    mask = _truth() > 0
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    mask[slices[len(slices) // 2]] &= _truth()[slices[len(slices) // 2]] == Lung.RIGHT
    grid = axial_grid(SHAPE, SPACING)
    labels = label_sides(lung_components(mask, grid), grid)
    np.testing.assert_array_equal(labels, np.where(mask, _truth(), 0))


def test_without_lungs_the_study_is_refused() -> None:
    with pytest.raises(InputRefused) as refusal:
        segment_lungs(ct_volume(np.full((12, 30, 30), 40.0), SPACING), _Air())  # type: ignore[arg-type]
    assert refusal.value.code is ReasonCode.NO_LUNGS


@pytest.mark.parametrize(("slices", "ml"), [(15, 90.0), (18, 108.0)])
def test_a_pocket_of_air_too_small_for_a_lung_is_none(slices: int, ml: float) -> None:
    hu = np.full((30, 60, 60), 40.0)
    hu[6 : 6 + slices, 20:40, 18:43] = -850.0
    volume = ct_volume(hu, (3.0, 2.0, 2.0))
    assert (hu < 0).sum() * 3.0 * 2.0 * 2.0 / 1000.0 == ml
    if ml > 100.0:
        assert segment_lungs(volume, _Air()).mask[hu < 0].all()  # type: ignore[arg-type]
        return
    with pytest.raises(InputRefused) as refusal:
        segment_lungs(volume, _Air())  # type: ignore[arg-type]
    assert refusal.value.code is ReasonCode.NO_LUNGS


def test_no_component_below_100_ml_is_a_lung() -> None:
    """Not beside a lung of 1 L, of which it is more than 8 %, either."""
    grid = axial_grid((12, 12, 24), (10.0, 10.0, 10.0))  # 1 ml voxels
    mask = np.zeros(grid.shape, bool)
    mask[1:11, 1:11, 1:11] = True
    beside = mask.copy()
    beside[1:11, 1:11, 13:14] = True  # 100 ml
    np.testing.assert_array_equal(lung_components(beside, grid), beside)
    beside[1, 1, 13] = False
    np.testing.assert_array_equal(lung_components(beside, grid), mask)
    with pytest.raises(InputRefused):
        lung_components(beside & ~mask, grid)


def _diseased() -> tuple[CTVolume, Lungs]:
    chest = _chest()
    hu = np.array(chest.hu)
    hu[8:20, 30:60, 80:110] = -500.0
    hu[8:20, 30:60, 20:50] = 20.0
    return CTVolume(hu, chest.grid, chest.headers), Lungs(_truth(), chest.grid)


def test_lesions_have_their_place_and_type() -> None:
    volume, lungs = _diseased()
    lesions = segment_lesions(volume, lungs, _ByDensity())
    for kind, hu in ((LesionType.GROUND_GLASS, -500.0), (LesionType.CONSOLIDATION, 20.0)):
        # interpolated edges of consolidation pass through the densities of ground glass
        assert _dice(lesions.labels == kind, volume.hu == hu) > 0.85
        assert (lesions.labels[volume.hu == hu] == kind).mean() > 0.9
    assert lesions.mask[volume.hu == -850.0].mean() < 0.02
    assert not lesions.mask[lungs.labels == 0].any()


def test_involvement_is_where_the_disease_is() -> None:
    volume, lungs = _diseased()
    involvement = segment_involvement(volume, lungs, _Dense())  # type: ignore[arg-type]
    affected = (volume.hu > -600) & lungs.mask
    assert _dice(involvement.mask, affected) > 0.95
    assert involvement.mask[affected].mean() > 0.9
    assert not involvement.mask[~lungs.mask].any()


def test_what_is_more_probable_than_not_is_marked() -> None:
    """Also where background outweighs each lesion type alone; the CT has the resolution of the networks."""
    hu = np.full((16, 40, 60), 400.0)
    labels = np.zeros(hu.shape, np.uint8)
    labels[2:14, 5:35, 5:55] = Lung.LEFT
    hu[labels > 0] = -1000.0
    unlikely, likely = (probability * 1400.0 - 1000.0 for probability in (0.49, 0.51))
    hu[4:12, 8:32, 8:28] = unlikely
    hu[4:12, 8:32, 32:52] = likely
    volume = ct_volume(hu, (3.0, 2.0, 2.0))
    lungs = Lungs(labels, volume.grid)
    expected = volume.hu == np.float32(likely)
    lesions = segment_lesions(volume, lungs, _LesionShare())
    np.testing.assert_array_equal(lesions.labels, np.uint8(LesionType.CONSOLIDATION) * expected)
    involvement = segment_involvement(volume, lungs, _AffectedShare())  # type: ignore[arg-type]
    np.testing.assert_array_equal(involvement.mask, expected)


@pytest.mark.parametrize("slices", [1, 5, 64])
def test_involvement_is_the_same_for_any_number_of_slices_in_work(slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With slices without lung between, and disease that is elsewhere in each."""
    chest = _chest()
    hu, labels = np.array(chest.hu), _truth()
    labels[13:15] = 0
    for z in range(4, 26):
        hu[z, 25 + z : 55 + z, 15 + z : 30 + z] = -400.0
        hu[z, 60 - z : 70 - z, 85 + z : 105 + z] = 20.0
    monkeypatch.setattr("operators.involvement.SLICES", slices)
    found = segment_involvement(
        CTVolume(hu, chest.grid, chest.headers),
        Lungs(labels, chest.grid),
        _Dense(),  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(found.mask, (hu > -650.0) & (labels > 0))


@pytest.fixture(scope="module")
def axial_masks() -> tuple[np.ndarray, ...]:
    """Lungs, lesions and involvement of the axial volume."""
    volume, lungs = _diseased()
    return (
        segment_lungs(volume, _Air()).labels,  # type: ignore[arg-type]
        segment_lesions(volume, lungs, _ByDensity()).labels,
        segment_involvement(volume, lungs, _Dense()).mask,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        pytest.param((0, 1, 2), (2,), id="mirrored"),
        pytest.param((0, 1, 2), (0, 2), id="feet first"),
        pytest.param((1, 0, 2), (1,), id="coronal"),
    ],
)
def test_masks_are_the_same_in_any_orientation(
    axes: tuple[int, int, int], flips: tuple[int, ...], axial_masks: tuple[np.ndarray, ...]
) -> None:
    volume, lungs = _diseased()
    mirror = tuple(np.s_[::-1] if axis in flips else np.s_[:] for axis in range(3))
    z, y, x = (SHAPE[axis] for axis in axes)
    affine = np.array(volume.grid.affine)
    affine[:3, :3] = affine[:3, list(axes)]
    affine[:3, 3] += sum(affine[:3, axis] * ((z, y, x)[axis] - 1) for axis in flips)
    affine[:3, list(flips)] *= -1
    grid = Grid((z, y, x), affine)
    hu = np.ascontiguousarray(volume.hu.transpose(axes)[mirror])
    labels = np.ascontiguousarray(lungs.labels.transpose(axes)[mirror])
    other, other_lungs = CTVolume(hu, grid, volume.headers[:1], (0,)), Lungs(labels, grid)
    found = (
        segment_lungs(other, _Air()).labels,  # type: ignore[arg-type]
        segment_lesions(other, other_lungs, _ByDensity()).labels,
        segment_involvement(other, other_lungs, _Dense()).mask,  # type: ignore[arg-type]
    )
    for ours, expected in zip(found, axial_masks, strict=True):
        np.testing.assert_array_equal(ours[mirror].transpose(np.argsort(axes).tolist()), expected)
        assert expected.shape != ours.shape or (ours != expected).any(), "otherwise nothing needs to be turned"


def test_slices_without_lung_are_never_involved() -> None:
    volume, lungs = _diseased()
    involvement = segment_involvement(volume, lungs, _Dense())  # type: ignore[arg-type]
    assert not involvement.mask[:4].any()
    assert not involvement.mask[26:].any()


def test_masks_on_another_grid_are_an_error() -> None:
    volume, _ = _diseased()
    elsewhere = Lungs(_truth(), axial_grid(SHAPE, SPACING, origin=(5.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="grid"):
        segment_lesions(volume, elsewhere, _ByDensity())
    with pytest.raises(ValueError, match="grid"):
        segment_involvement(volume, elsewhere, _Dense())  # type: ignore[arg-type]


def test_the_box_around_the_lungs_stays_in_the_image() -> None:
    volume, lungs = _diseased()
    _, box, hu, lung = around_lungs(volume, lungs, 6.0)
    assert box == (slice(2, 28), slice(16, 84), slice(6, 134))
    np.testing.assert_array_equal(hu, volume.hu[box])
    np.testing.assert_array_equal(lung, lungs.mask[box])
    assert around_lungs(volume, lungs, 1000.0).box == tuple(slice(0, n) for n in SHAPE)


def test_specks_go_and_lesions_stay() -> None:
    grid = axial_grid((10, 20, 20), (1.0, 1.0, 1.0))
    mask = np.zeros(grid.shape, bool)
    mask[0, 0, :9] = True
    mask[5:10, 5:10, 5:10] = True
    mask[2, 2:18, 2:18] = True  # a sliver: large enough, but one slice thin
    got = remove_specks(mask, grid)
    assert not got[:5].any()
    assert got.sum() == 125 > MIN_LESION_ML * 1000
    assert not remove_specks(np.zeros_like(mask), grid).any()


@pytest.mark.parametrize(("squared_radius", "voxels"), [(4, 33), (5, 57), (6, 81), (8, 93), (9, 123)], ids=str)
def test_a_deep_lesion_below_a_tenth_of_a_millilitre_is_a_speck(squared_radius: int, voxels: int) -> None:
    grid = axial_grid((13, 13, 13), (1.0, 1.0, 1.0))
    z, y, x = np.ogrid[-6:7, -6:7, -6:7]
    ball = z**2 + y**2 + x**2 <= squared_radius
    assert ball.sum() == voxels
    np.testing.assert_array_equal(remove_specks(ball, grid), ball if voxels > 100 else np.zeros_like(ball))
