"""Morphology in millimetres against brute force."""

import numpy as np
import pytest

from models.morphology import bounding_box, close, deeper_than, dilate, distance_to, split_sides

SPACING = (3.0, 1.0, 2.0)


def _blobs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((5, 9, 7)) > 0.9


def _naive_distance(mask: np.ndarray) -> np.ndarray:
    points = np.argwhere(mask) * SPACING
    everywhere = np.argwhere(np.ones_like(mask)) * SPACING
    return np.sqrt(((everywhere[:, None] - points[None]) ** 2).sum(-1)).min(1).reshape(mask.shape)


def test_distance_is_that_to_the_nearest_voxel() -> None:
    mask = _blobs()
    np.testing.assert_allclose(distance_to(mask, SPACING), _naive_distance(mask), atol=1e-4)


@pytest.mark.parametrize("slab", [1, 3, 64])
@pytest.mark.parametrize("depth", [0.5, 2.0, 3.5])
def test_depth_is_the_distance_to_what_is_outside(depth: float, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.morphology.SLAB", slab)
    mask = np.zeros((14, 17, 15), bool)
    mask[:3, 4:, 2:12] = True
    mask[5:12, 2:14, 3:13] = True
    mask[8, 7, 5] = mask[2, 9, 9] = False
    expected = _naive_distance(~mask) > depth
    assert expected.any()
    np.testing.assert_array_equal(deeper_than(mask, depth, SPACING), expected)


def test_where_all_is_inside_all_is_deep() -> None:
    assert deeper_than(np.ones((3, 3, 3), bool), 2.0, SPACING).all()
    assert not deeper_than(np.zeros((3, 3, 3), bool), 2.0, SPACING).any()


@pytest.mark.parametrize("radius", [0.5, 2.0, 4.5])
def test_dilation_is_a_ball_in_millimetres(radius: float) -> None:
    mask = _blobs(1)
    np.testing.assert_array_equal(dilate(mask, radius, SPACING), _naive_distance(mask) <= radius)


def test_dilating_nothing_gives_nothing() -> None:
    assert not dilate(np.zeros((3, 3, 3), bool), 5.0, SPACING).any()


def test_closing_fills_a_gap_and_keeps_the_mask() -> None:
    mask = np.zeros((13, 30, 30), bool)
    mask[4:9, 5:25, 5:25] = True
    mask[4:9, 14:16, 5:25] = False  # a crack 2 mm wide
    closed = close(mask, 4.0, (1.0, 1.0, 1.0))
    assert closed[6, 14:16, 8:22].all()
    assert (closed >= mask).all()


def test_closing_does_not_stick_to_the_border_of_the_image() -> None:
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 5:15, 2:12] = True
    np.testing.assert_array_equal(close(mask, 4.0, (1.0, 1.0, 1.0))[1, :, :2], False)


@pytest.mark.parametrize("end", [0, -1])
def test_closing_fills_vessels_that_the_scan_cuts(end: int) -> None:
    mask = np.zeros((6, 30, 30), bool)
    mask[:4, 5:25, 5:25] = True
    mask[:4, 13:17, 14:16] = False  # a vessel along z
    turned = mask if end == 0 else mask[::-1]
    closed = close(turned, 4.0, (1.0, 1.0, 1.0))
    assert closed[end, 5:25, 5:25].all()
    assert not closed[4 if end == 0 else 1].any()


def test_bounding_box_is_tight() -> None:
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2, 3] = mask[2, 4, 5] = True
    assert bounding_box(mask) == (slice(1, 3), slice(2, 5), slice(3, 6))


def test_the_margin_of_a_bounding_box_ends_with_the_image() -> None:
    mask = np.zeros((4, 5, 60), bool)
    mask[1, 2, 30] = mask[2, 4, 31] = True
    assert bounding_box(mask, (0, 1, 20)) == (slice(1, 3), slice(1, 5), slice(10, 52))
    assert bounding_box(mask, (2, 9, 40)) == (slice(0, 4), slice(0, 5), slice(0, 60))


def test_bounding_box_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((2, 2, 2), bool))


@pytest.mark.parametrize("bridge", [False, True])
def test_lungs_are_split_also_where_they_touch(bridge: bool) -> None:
    lungs = np.zeros((10, 40, 80), bool)
    lungs[:, 5:35, 5:35] = lungs[:, 5:35, 45:75] = True
    lungs[4:6, 10:12, 35:45] = bridge
    low, high = split_sides(lungs, (1.0, 1.0, 1.0))
    assert low[:, 5:35, 5:35].all()
    assert high[:, 5:35, 45:75].all()
    np.testing.assert_array_equal(low | high, lungs)
    assert not (low & high).any()


@pytest.mark.parametrize("shrunken", [False, True])
def test_two_lungs_are_what_they_are_also_where_one_is_much_smaller(shrunken: bool) -> None:
    """Of 8.6 % of the other one: the other keeps all of its own."""
    lungs = np.zeros((10, 40, 80), bool)
    lungs[:, 5:35, 5:40] = True
    lungs[:, 5 : 8 if shrunken else 35, 45:75] = True
    low, high = split_sides(lungs, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(low, lungs & (np.arange(80) < 42))
    np.testing.assert_array_equal(high, lungs & ~low)


@pytest.mark.parametrize("mirrored", [False, True])
def test_one_lung_that_reaches_over_the_middle_is_not_made_two(mirrored: bool) -> None:
    lung = np.zeros((10, 40, 80), bool)
    lung[:, 5:35, 8:42] = True
    lung = lung[..., ::-1] if mirrored else lung
    low, high = split_sides(lung, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(high if mirrored else low, lung)
    assert not (low if mirrored else high).any()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("touching", [False, True])
def test_a_piece_of_a_lung_is_not_the_other_lung(mirrored: bool, touching: bool) -> None:
    """A base behind dense disease: the part of its own lung that is left may hang on the other one."""
    lungs = np.zeros((30, 40, 80), bool)
    lungs[:, 5:35, 5:35] = lungs[12:, 5:35, 45:75] = True
    lungs[20:22, 10:12, 35:45] = touching
    lungs[:8, 5:35, 50:75] = True
    lungs = lungs[..., ::-1] if mirrored else lungs
    right = np.broadcast_to(np.arange(80) < 40, lungs.shape)
    low, high = split_sides(lungs, (1.0, 1.0, 1.0))
    between = np.abs(np.arange(80) - 39.5) < 5
    np.testing.assert_array_equal(low & ~between, lungs & right & ~between)
    np.testing.assert_array_equal(high & ~between, lungs & ~right & ~between)


def test_a_lung_in_two_pieces_is_larger_than_the_other_one_and_stays_one() -> None:
    lungs = np.zeros((30, 40, 80), bool)
    lungs[:14, 5:35, 5:35] = lungs[16:, 5:35, 5:35] = True
    lungs[10:20, 10:30, 45:75] = True
    low, high = split_sides(lungs, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(low, lungs & (np.arange(80) < 40))
    np.testing.assert_array_equal(high, lungs & (np.arange(80) >= 40))


def test_one_lung_in_two_pieces_is_one_lung() -> None:
    lung = np.zeros((30, 40, 80), bool)
    lung[:14, 5:35, 5:38] = lung[18:, 5:35, 5:38] = True
    low, high = split_sides(lung, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(low, lung)
    assert not high.any()


def test_the_lungs_of_a_patient_who_is_turned_are_two() -> None:
    _, y, x = np.ogrid[-15:15, -60:60, -60:60]
    turn = np.deg2rad(35)
    across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    right, left = (((across - centre) / 13) ** 2 + (along / 30) ** 2 <= 1 for centre in (-18, 18))
    lungs = np.broadcast_to(right | left, (30, 120, 120)).copy()
    low, high = split_sides(lungs, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(low, np.broadcast_to(right, lungs.shape))
    np.testing.assert_array_equal(high, np.broadcast_to(left, lungs.shape))


def test_a_tongue_of_one_lung_before_the_other_stays_its_own() -> None:
    """Lungs that do not touch, but share columns."""
    lungs = np.zeros((30, 80, 120), bool)
    lungs[:, 10:70, 5:60] = True
    lungs[5:25, 10:24, 60:95] = True  # over the middle, in front of
    lungs[8:22, 40:65, 75:110] = True  # the other lung
    low, high = split_sides(lungs, (3.0, 2.0, 2.0))
    other = np.zeros_like(lungs)
    other[8:22, 40:65, 75:110] = True
    np.testing.assert_array_equal(high, other)
    np.testing.assert_array_equal(low, lungs & ~other)
