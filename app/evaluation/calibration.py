"""Whether a probability means what it says: reliability, expected calibration error, temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from app.evaluation.roc import FloatArray

BINS = 10


@dataclass(frozen=True, slots=True)
class Reliability:
    """Cases by predicted probability, in bins of equal width; empty bins are left out.

    Parameters
    ----------
    predicted, observed : ndarray, shape (bins,)
        Mean probability, and share of positives.
    cases : ndarray of int, shape (bins,)
        How many there are.
    """

    predicted: FloatArray
    observed: FloatArray
    cases: npt.NDArray[np.int64]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean distance of predicted and observed, weighted by cases."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.cases))


def reliability(labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = BINS) -> Reliability:
    """Sort cases into bins of equal width.

    References
    ----------
    Guo et al., ICML 2017 ("On calibration of modern neural networks"), section 2.
    """
    truth, values = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    cases = np.bincount(place, minlength=bins)
    kept = cases > 0
    sums = (np.bincount(place, weights=each, minlength=bins)[kept] for each in (values, truth))
    predicted, observed = (each / cases[kept] for each in sums)
    return Reliability(predicted, observed, cases[kept])


def temperature(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the temperature that, dividing the logits, makes the labels most likely; fit it on validation data.

    Above 1 the probabilities were too sure, below 1 not sure enough.

    References
    ----------
    Guo et al., ICML 2017, section 4.2.
    """
    truth, logits = np.asarray(labels, dtype=np.float64), _logits(probabilities)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - truth * scaled))

    found = optimize.minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded")
    return float(np.exp(found.x))


def scaled(probabilities: npt.ArrayLike, by: float) -> FloatArray:
    """Divide the logits of probabilities by a temperature."""
    return np.asarray(special.expit(_logits(probabilities) / by))


def _logits(probabilities: npt.ArrayLike) -> FloatArray:
    """Return finite logits: certainty is taken for the nearest number below it."""
    values = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    return np.asarray(special.logit(values))
