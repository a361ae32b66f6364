"""Findings that are no lesions of COVID-19."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from app.phantom import mimics
from app.phantom.insertion import around
from app.phantom.mimics import insert_dependent_density, insert_effusion, insert_mimics
from models.morphology import FloatArray

SPACING = (2.0, 1.0, 1.0)
Lungs = npt.NDArray[np.uint8]


def healthy(shape: tuple[int, int, int] = (40, 80, 100)) -> tuple[FloatArray, Lungs]:
    """Two blocks of lung (-850 HU) in soft tissue."""
    lungs = np.zeros(shape, np.uint8)
    lungs[4:-4, 6:-6, 6:46] = 2
    lungs[4:-4, 6:-6, 54:-6] = 1
    return np.where(lungs > 0, -850.0, 40.0).astype(np.float32), lungs


def drawn(kind: str, seed: int) -> FloatArray:
    """What one finding in the middle of the right lung changes."""
    hu, lungs = healthy()
    before = hu.copy()
    getattr(mimics, f"_{kind}")(hu, lungs > 0, (20, 40, 26), SPACING, np.random.default_rng(seed))
    assert np.array_equal(hu[lungs == 0], before[lungs == 0])
    return np.asarray(hu - before)


@pytest.mark.parametrize("kind", ["nodule", "tree_in_bud", "bronchiectasis", "band", "emphysema"])
def test_every_kind_changes_the_lung_around_its_place_only(kind: str) -> None:
    for seed in range(4):
        change = drawn(kind, seed)
        assert np.isfinite(change).all()
        places = np.argwhere(np.abs(change) > 20.0)
        assert len(places) > 5
        away = np.linalg.norm((places - (20, 40, 26)) * SPACING, axis=1)
        assert np.median(away) < 35.0


def test_nodules_are_round_and_solid() -> None:
    for seed in range(6):
        solid = drawn("nodule", seed) > 700.0
        assert solid[20, 40, 26]
        size = np.ptp(np.argwhere(solid), axis=0) * SPACING
        assert size.max() < 2.0 * size.min() + 6.0


def test_wide_bronchi_hold_gas_between_walls_and_emphysema_has_none() -> None:
    changes = [drawn("bronchiectasis", seed) for seed in range(8)]
    assert any((change < -20.0).any() for change in changes)
    assert all((change > 500.0).any() for change in changes)
    for seed in range(4):
        assert drawn("emphysema", seed).max() <= 0.0


def test_bands_are_flat() -> None:
    for seed in range(4):
        places = np.argwhere(drawn("band", seed) > 300.0) * SPACING
        spread = np.sqrt(np.linalg.svd(np.cov(places.T), compute_uv=False))
        assert spread[2] < 0.3 * spread[1]


def test_all_findings_stay_in_the_lungs_and_the_seed_decides() -> None:
    hu, lungs = healthy()
    one, again, other = (insert_mimics(hu, lungs, SPACING, 8, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one[lungs == 0], hu[lungs == 0])
    assert (one[lungs > 0] != hu[lungs > 0]).any()
    np.testing.assert_array_equal(insert_mimics(hu, lungs, SPACING, 0, np.random.default_rng(1)), hu)


def test_dependent_density_falls_from_the_back_to_the_front() -> None:
    hu, lungs = healthy()
    for seed in range(4):
        added = insert_dependent_density(hu, lungs, SPACING, np.random.default_rng(seed)) - hu
        assert (added[lungs == 0] == 0).all()
        back, middle, front = (float(added[4:-4, y, 6:46].mean()) for y in (73, 40, 8))
        assert back > middle > front >= 0.0
        assert 20.0 < back < 300.0


def test_effusion_takes_the_back_of_one_lung_and_is_deepest_at_the_bottom() -> None:
    hu, lungs = healthy()
    sides = set()
    for seed in range(8):
        made, left_over = insert_effusion(hu, lungs, SPACING, np.random.default_rng(seed))
        fluid = (lungs > 0) & (left_over == 0)
        assert fluid.any()
        (side,) = np.unique(lungs[fluid]).tolist()
        sides.add(side)
        assert abs(float(made[fluid].mean()) - 8.0) < 5.0
        np.testing.assert_array_equal(made[~fluid], hu[~fluid])
        np.testing.assert_array_equal(left_over[~fluid], lungs[~fluid])
        depth = fluid.sum(axis=1).max(axis=1)
        assert depth[4] >= depth[20] >= 0
        assert depth[4] >= 5
        columns = fluid.any(axis=(0, 1))
        assert all(fluid[z, 73, x] for z, y, x in np.argwhere(fluid)[:50]), "fluid lies at the back"
        assert columns.sum() <= 40
    assert sides == {1, 2}


def test_boxes_end_at_the_border_and_say_how_far_voxels_lie_off() -> None:
    box, (z, y, x) = around((1, 5, 9), (3.0, 2.0, 4.0), SPACING, (10, 10, 10))
    assert box == (slice(0, 4), slice(3, 8), slice(5, 10))
    assert z.ravel().tolist() == [-2.0, 0.0, 2.0, 4.0]
    assert y.ravel().tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert x.ravel().tolist() == [-4.0, -3.0, -2.0, -1.0, 0.0]
    assert np.broadcast_shapes(z.shape, y.shape, x.shape) == (4, 5, 5)
