"""Lesions inserted into healthy lungs."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from app.phantom import insertion
from app.phantom.insertion import (
    COMBINED,
    CONSOLIDATION,
    CRAZY_PAVING,
    GROUND_GLASS,
    Box,
    Pattern,
    around,
    insert_lesions,
)


def _healthy(shape: tuple[int, int, int] = (40, 60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Two blocks of lung (-850 HU) with a vessel (40 HU) in soft tissue."""
    lungs = np.zeros(shape, np.uint8)
    lungs[4:-4, 6:-6, 6:36] = 2
    lungs[4:-4, 6:-6, 44:-6] = 1
    hu = np.where(lungs > 0, -850.0, 40.0).astype(np.float32)
    hu[:, 30, :] = 40.0
    return hu, lungs


@pytest.mark.parametrize("kind", [GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED])
def test_inserted_lesions_are_of_their_type_and_stay_in_the_lungs(kind: int) -> None:
    hu, lungs = _healthy()
    weights = tuple(float(k == kind) for k in (GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED))
    pattern = Pattern(count=(3, 3), radius=(8.0, 12.0), weights=weights)  # type: ignore[arg-type]
    made, labels = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(1))
    assert set(np.unique(labels)) == {0, kind}
    np.testing.assert_array_equal(made[lungs == 0], hu[lungs == 0])
    assert (labels[lungs == 0] == 0).all()
    air = (labels > 0) & (hu < -800)
    means = {GROUND_GLASS: (-750, -350), CONSOLIDATION: (-250, 60), CRAZY_PAVING: (-700, -150), COMBINED: (-750, 0)}
    low, high = means[kind]
    assert low < made[air].mean() < high


def test_lesions_only_add_density_and_spare_vessels() -> None:
    hu, lungs = _healthy()
    made, _ = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), Pattern(), np.random.default_rng(2))
    assert (made >= hu).all()
    vessel = (hu > 0) & (lungs > 0)
    assert np.abs(made[vessel] - hu[vessel]).mean() < 15


def test_sides_are_respected_and_seeds_repeat() -> None:
    hu, lungs = _healthy()
    pattern = Pattern(sides=(1,), subpleural=0.0)
    first = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(3))
    again = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(3))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[1].any()
    assert not first[1][lungs == 2].any()


SPACING = (2.0, 1.0, 1.0)


def _one(kind: int, radius: float, seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One lesion in nothing but lung: what is added, its labels, and the image."""
    shape = (40, 80, 80)
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -850.0, np.float32) + rng.normal(0.0, noise, shape).astype(np.float32)
    weights = tuple(float(k == kind) for k in (GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED))
    pattern = Pattern((1, 1), (radius, radius * 1.001), weights, subpleural=0.0)  # type: ignore[arg-type]
    made, labels = insert_lesions(hu, np.ones(shape, np.uint8), SPACING, pattern, rng)
    return made - hu, labels, made


def test_lesions_end_before_their_box_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off by it they would have flat faces."""
    boxes: list[Box] = []

    def record(*arguments: Any) -> Any:
        found = around(*arguments)
        boxes.append(found[0])
        return found

    monkeypatch.setattr(insertion, "around", record)
    faces = 0
    for seed in range(20):
        added, _, _ = _one(CONSOLIDATION, 9.0, seed)
        assert added.any()
        for axis, side in enumerate(boxes[-1]):
            for face, end in ((side.start, 0), (side.stop - 1, added.shape[axis] - 1)):
                if face != end:
                    assert not added.take(face, axis).any()
                    faces += 1
    assert faces > 80


@pytest.mark.parametrize("kind", [GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED])
def test_the_noise_of_the_scanner_is_the_same_inside(kind: int) -> None:
    fine: list[float] = []
    for seed in range(4):
        _, labels, made = _one(kind, 14.0, seed, noise=40.0)
        _, _, even = _one(kind, 14.0, seed)
        fine.append(float((np.diff(made, axis=2) - np.diff(even, axis=2))[labels[..., 1:] > 0].std() / np.sqrt(2.0)))
    assert np.mean(fine) == pytest.approx(40.0, rel=0.2)


def test_bronchi_in_a_consolidation_are_few_and_hold_air() -> None:
    with_air = 0
    for seed in range(12):
        _, labels, made = _one(CONSOLIDATION, 14.0, seed, noise=40.0)
        inside = ndimage.binary_erosion(labels > 0, iterations=2)
        air = inside & (ndimage.gaussian_filter(made, 0.5) < -300.0)
        pieces, count = ndimage.label(air)
        assert count < 12
        with_air += bool(count) and np.bincount(pieces.ravel())[1:].max() > 10
    assert 3 <= with_air <= 11, "in most"


def test_ground_glass_is_never_as_dense_as_consolidation() -> None:
    for seed in range(12):
        _, labels, made = _one(GROUND_GLASS, 14.0, seed)
        assert (made[labels > 0] > -300.0).mean() < 0.01


def test_crazy_paving_is_ground_glass_with_denser_lines() -> None:
    lines, between = [], []
    for seed in range(6):
        _, labels, made = _one(CRAZY_PAVING, 14.0, seed)
        inside = made[ndimage.binary_erosion(labels > 0, iterations=3)]
        lines.append(float(np.percentile(inside, 90)))
        between.append(float(np.percentile(inside, 30)))
    assert -750.0 < np.mean(between) < -450.0
    assert np.mean(lines) > np.mean(between) + 120.0


def test_no_dark_seam_parts_lesions_that_meet() -> None:
    shape = (30, 60, 90)
    hu = np.full(shape, -850.0, np.float32)
    chest = insertion._Chest(hu, hu.copy(), np.zeros(shape, np.uint8), np.zeros_like(hu), np.zeros(shape, bool))
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(insertion, "_air_bronchograms", lambda offsets, _: np.float32(0.0))
        for x in (32, 56):
            lesion = insertion._Lesion(CONSOLIDATION, (15, 30, x), (20.0, 20.0, 20.0))
            insertion._insert(chest, np.ones(shape, bool), SPACING, lesion, rng)
    assert chest.hu[15, 30, 26:62].min() > -250.0


def test_a_patient_with_one_lung_can_be_ill_there() -> None:
    hu, lungs = _healthy()
    lungs[lungs == 1] = 0
    labels = insert_lesions(hu, lungs, SPACING, Pattern(sides=(1,)), np.random.default_rng(0))[1]
    assert labels.any()
    assert not labels[lungs == 0].any()
