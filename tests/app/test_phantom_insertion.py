"""Lesions inserted into healthy lungs."""

import numpy as np
import pytest

from app.phantom.insertion import (
    COMBINED,
    CONSOLIDATION,
    CRAZY_PAVING,
    GROUND_GLASS,
    Pattern,
    insert_lesions,
    smooth_noise,
)
from app.phantom.patterns import covid_like, lobar_pneumonia, other_pneumonia, severe_covid


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


def test_smooth_noise_is_smooth_and_of_unit_variance() -> None:
    noise = smooth_noise((30, 30, 30), 8.0, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    assert np.abs(np.diff(noise, axis=2)).mean() < 0.3


def test_patterns_of_the_classes_differ_as_medicine_says() -> None:
    rng = np.random.default_rng(0)
    covid, other = [covid_like(rng) for _ in range(50)], [other_pneumonia(rng) for _ in range(50)]
    assert all(p.sides == (1, 2) for p in covid)
    assert all(len(p.sides) == 1 for p in other)
    assert np.mean([p.weights[0] for p in covid]) > np.mean([p.weights[0] for p in other])
    assert all(sum(p.weights) == pytest.approx(1.0) for p in covid + other)


def test_severe_and_lobar_disease_are_large() -> None:
    """In lungs of usual size: at 4 x 3 x 3 mm, two blocks of 2 litres each."""
    lungs = np.zeros((60, 60, 90), np.uint8)
    lungs[4:-4, 6:-6, 5:38] = 2
    lungs[4:-4, 6:-6, 52:85] = 1
    hu = np.where(lungs > 0, -850.0, 40.0).astype(np.float32)
    shares: dict[str, list[float]] = {}
    for pattern in (covid_like, severe_covid, lobar_pneumonia):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            _, labels = insert_lesions(hu, lungs, (4.0, 3.0, 3.0), pattern(rng), rng)
            shares.setdefault(pattern.__name__, []).append(float((labels > 0).sum() / (lungs > 0).sum()))
            if pattern is lobar_pneumonia:
                assert sum(bool((labels[lungs == side] > 0).any()) for side in (1, 2)) == 1
    assert np.mean(shares["severe_covid"]) > 3 * np.mean(shares["covid_like"])
    assert 0.08 < np.mean(shares["severe_covid"]) < 0.7
    assert 0.03 < np.mean(shares["lobar_pneumonia"]) < 0.5
