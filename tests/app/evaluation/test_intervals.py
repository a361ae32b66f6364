"""Intervals agree with statsmodels and SciPy, and cover what they say they cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from app.evaluation.intervals import Estimate, bootstrap, patient_weights, wilson
from app.evaluation.roc import FloatArray, area, roc_curve


@pytest.mark.parametrize(("successes", "cases"), [(0, 5), (5, 5), (1, 7), (31, 34), (250, 475)])
def test_wilson_is_that_of_statsmodels(successes: int, cases: int) -> None:
    low, high = proportion_confint(successes, cases, method="wilson")
    found = wilson(successes, cases)
    assert (found.value, found.low, found.high) == pytest.approx((successes / cases, low, high), abs=1e-12)


def test_wilson_of_a_published_example() -> None:
    """Newcombe, Stat Med 1998;17:857, table I: 81 of 263, 0.2553 to 0.3662."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_nothing_observed_is_undefined() -> None:
    assert wilson(0, 0) == Estimate(None)
    assert wilson(0, 0).text == "undefined"
    assert Estimate(0.5).text == "0.50"
    assert Estimate(0.966, 0.954, 0.991).text == "0.97 [0.95-0.99]"


def test_patients_are_drawn_whole_and_by_class() -> None:
    patients = ["a", "a", "b", "c", "c", "c", "d", "e"]
    labels = [0, 1, 0, 1, 1, 1, 0, 0]
    weights = patient_weights(patients, labels, replicates=500, seed=1)
    assert weights.shape == (500, 8)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    of_patient = weights[:, [0, 2, 3, 6, 7]]
    assert (of_patient[:, [0, 2]].sum(axis=1) == 2).all(), "as many positive patients as there are"
    assert (of_patient[:, [1, 3, 4]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(of_patient.mean(axis=0), 1.0, atol=0.15)


def test_draws_are_those_of_the_seed() -> None:
    labels = [0, 1, 0, 1]
    first, again, other = (patient_weights(range(4), labels, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_bootstrap_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=40)
    weights = patient_weights(range(40), np.zeros(40), replicates=20_000)
    found = bootstrap(lambda counts: counts @ values / counts.sum(axis=-1), weights)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_undefined_replicates_are_left_out() -> None:
    weights = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])

    def measure(counts: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray(counts[:, 0] * 3.0 / counts[:, 0])

    assert bootstrap(measure, weights) == Estimate(3.0), "and those that are the same give no interval"
    assert bootstrap(lambda counts: np.full(len(counts), np.nan), weights) == Estimate(None)


def test_of_one_patient_there_is_no_interval() -> None:
    values = np.array([0.5, 0.8, 0.9])

    def found(patients: list[str]) -> Estimate:
        return bootstrap(lambda counts: counts @ values / counts.sum(axis=-1), patient_weights(patients, [1, 1, 1]))

    assert found(["a", "a", "a"]) == Estimate(pytest.approx(2.2 / 3))
    assert found(["a", "a", "a"]).text == "0.73"
    two = found(["a", "b", "b"])
    assert (two.low, two.high) == (pytest.approx(0.5), pytest.approx(0.85))


def _coverage(simulations: int, per_class: int, separation: float) -> float:
    """Share of simulated cohorts whose interval for the area holds the true one."""
    truth = float(stats.norm.cdf(separation / np.sqrt(2.0)))
    labels = np.repeat([0, 1], per_class)
    covered = 0
    for seed in range(simulations):
        scores = np.random.default_rng((seed, 7)).normal(labels * separation)
        weights = patient_weights(range(2 * per_class), labels, replicates=1000, seed=seed)

        def measure(counts: FloatArray, scores: FloatArray = scores) -> FloatArray:
            return area(roc_curve(labels, scores, counts))

        found = bootstrap(measure, weights)
        covered += found.low <= truth <= found.high  # type: ignore[operator]
    return covered / simulations


@pytest.mark.slow
@pytest.mark.parametrize("separation", [0.7, 1.5])
def test_intervals_cover_the_true_area_as_often_as_stated(separation: float) -> None:
    assert 0.93 <= _coverage(500, 100, separation) <= 0.97
