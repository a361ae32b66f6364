"""Overlap against loops, and against shapes whose agreement is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.evaluation.overlap import dice, percent, surface_dice, volume_ml
from models.morphology import BoolArray, Spacing

SPACING = (3.0, 1.5, 1.0)


def _blob(seed: int, shape: tuple[int, int, int] = (12, 20, 24)) -> BoolArray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(ndimage.gaussian_filter(noise, 2.0) > 0.02)


def _naive_surface_dice(truth: BoolArray, found: BoolArray, spacing: Spacing, tolerance: float) -> float:
    """Surface voxels have a neighbour in the image, across a face, that is not in the mask; all pairs of them."""
    surfaces = []
    for mask in (truth, found):
        surface = []
        for place in map(tuple, np.argwhere(mask)):
            for axis in range(3):
                for step in (-1, 1):
                    beside = list(place)
                    beside[axis] += step
                    if 0 <= beside[axis] < mask.shape[axis] and not mask[tuple(beside)]:
                        surface.append(place)
        surfaces.append(np.array(sorted(set(surface))) * spacing)
    near = 0
    for own, other in (surfaces, surfaces[::-1]):
        for point in own:
            near += bool(np.sqrt(((other - point) ** 2).sum(axis=1)).min() <= tolerance)
    return near / (len(surfaces[0]) + len(surfaces[1]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.5, 1.6, 3.0])
def test_surface_dice_is_that_of_all_pairs(seed: int, tolerance: float) -> None:
    truth, found = _blob(seed), np.roll(_blob(seed), 1, axis=1) | _blob(seed + 10)
    expected = _naive_surface_dice(truth, found, SPACING, tolerance)
    assert surface_dice(truth, found, SPACING, tolerance) == pytest.approx(expected, abs=1e-6)


def test_dice_is_that_of_sets() -> None:
    truth, found = _blob(0), _blob(1)
    sets = [set(map(tuple, np.argwhere(mask))) for mask in (truth, found)]
    assert dice(truth, found) == pytest.approx(2 * len(sets[0] & sets[1]) / (len(sets[0]) + len(sets[1])))
    assert dice(truth, found) == dice(found, truth)


def test_the_same_mask_agrees_and_disjoint_ones_do_not() -> None:
    mask = np.zeros((10, 20, 20), dtype=bool)
    mask[2:6, 2:8, 2:8] = True
    other = np.roll(mask, 11, axis=2)
    assert (dice(mask, mask), surface_dice(mask, mask, SPACING, 0.1)) == (1.0, 1.0)
    assert (dice(mask, other), surface_dice(mask, other, SPACING, 1.0)) == (0.0, 0.0)
    assert surface_dice(mask, other, SPACING, 100.0) == 1.0


def test_a_shift_within_the_tolerance_is_forgiven() -> None:
    mask = np.zeros((10, 20, 20), dtype=bool)
    mask[2:6, 4:14, 4:14] = True
    shifted = np.roll(mask, 1, axis=1)  # by 1.5 mm
    assert surface_dice(mask, shifted, SPACING, 1.5) == 1.0
    assert surface_dice(mask, shifted, SPACING, 1.4) < 1.0


def test_where_the_image_ends_there_is_no_surface() -> None:
    """Else what is cut by the ends of a scan agrees there, and few slices make any mask good."""
    found = []
    for slices in (2, 6, 40):
        truth, wide = np.zeros((2, slices, 30, 40), dtype=bool)
        truth[:, 5:25, 10:30], wide[:, 5:25, 0:40] = True, True  # both side walls 10 mm off, and cut by the image
        found.append(surface_dice(truth, wide, (1.0, 1.0, 1.0), 3.0))
    assert found[0] == pytest.approx(found[1]) == pytest.approx(found[2])
    assert found[0] < 0.7
    everywhere = np.ones((4, 5, 6), dtype=bool)
    assert surface_dice(everywhere, everywhere, SPACING, 0.1) == 1.0
    assert surface_dice(everywhere, truth[:4, :5, :6] | (np.arange(6) < 3), SPACING, 0.1) == 0.0


def test_emptiness_is_undefined_or_a_miss() -> None:
    empty, mask = np.zeros((4, 5, 6), dtype=bool), np.ones((4, 5, 6), dtype=bool)
    assert np.isnan(dice(empty, empty))
    assert np.isnan(surface_dice(empty, empty, SPACING, 1.0))
    assert (dice(mask, empty), dice(empty, mask)) == (0.0, 0.0)
    assert (surface_dice(mask, empty, SPACING, 1.0), surface_dice(empty, mask, SPACING, 1.0)) == (0.0, 0.0)
    assert np.isnan(percent(mask, empty))


def test_volumes_and_shares() -> None:
    mask = np.zeros((4, 10, 10), dtype=bool)
    mask[:2, :5] = True
    assert volume_ml(mask, SPACING) == pytest.approx(100 * 4.5 / 1000)
    assert percent(mask, np.ones_like(mask)) == pytest.approx(25.0)
    assert percent(np.ones_like(mask), mask) == 100.0
