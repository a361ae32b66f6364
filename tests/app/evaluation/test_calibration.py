"""Calibration against loops, and against data whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest

from app.evaluation.calibration import reliability, scaled, temperature
from app.evaluation.roc import FloatArray, auc


def _sure(seed: int, n: int = 20_000, by: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Probabilities whose logits are ``by`` times those that the labels follow."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 1.5, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, 1 / (1 + np.exp(-logits * by))


def test_bins_and_error_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    labels, values = (rng.random(300) < 0.5).astype(float), rng.random(300) ** 2
    values[:2] = 0.0, 1.0
    found = reliability(labels, values, bins=10)
    expected, error = [], 0.0
    for k in range(10):
        inside = [i for i in range(300) if k / 10 <= values[i] < (k + 1) / 10 or (k == 9 and values[i] == 1.0)]
        if inside:
            predicted, observed = np.mean(values[inside]), np.mean(labels[inside])
            expected.append((predicted, observed, len(inside)))
            error += len(inside) / 300 * abs(predicted - observed)
    np.testing.assert_allclose(np.stack([found.predicted, found.observed, found.cases], 1), expected)
    assert found.expected_error == pytest.approx(error)
    assert found.cases.sum() == 300


def test_calibrated_probabilities_have_no_error_and_sure_ones_have() -> None:
    assert reliability(*_sure(1)).expected_error < 0.02
    assert reliability(*_sure(1, by=3.0)).expected_error > 0.08


@pytest.mark.parametrize("by", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_undoes_it(by: float) -> None:
    labels, values = _sure(2, by=by)
    found = temperature(labels, values)
    assert found == pytest.approx(by, rel=0.08)
    assert reliability(labels, scaled(values, found)).expected_error < 0.02


def test_scaling_keeps_order_and_decision() -> None:
    labels, values = _sure(3, n=500)
    for by in (0.3, 4.0):
        assert auc(labels, scaled(values, by)) == pytest.approx(auc(labels, values), abs=1e-12)
        np.testing.assert_array_equal(scaled(values, by) >= 0.5, values >= 0.5)
    np.testing.assert_allclose(scaled(values, 1.0), values, atol=1e-9)


def test_certainty_stays_finite() -> None:
    assert np.isfinite(temperature([0, 1, 1, 0], [0.0, 1.0, 0.4, 0.2]))
    assert np.isfinite(scaled([0.0, 1.0], 2.0)).all()
