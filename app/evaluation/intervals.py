"""Confidence intervals: Wilson for proportions, and the bootstrap over patients for anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from app.evaluation.roc import FloatArray

REPLICATES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its confidence interval; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """As tables show it: ``0.97 [0.95-0.99]``."""
        if self.value is None:
            return "undefined"
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}-{self.high:.2f}]"


def wilson(successes: int, cases: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return a proportion with Wilson's score interval; undefined where there are no cases.

    References
    ----------
    Wilson, J Am Stat Assoc 1927;22:209.
    """
    if cases == 0:
        return Estimate(None)
    share, z = successes / cases, float(stats.norm.ppf(0.5 + confidence / 2.0))
    middle = (share + z**2 / (2 * cases)) / (1 + z**2 / cases)
    reach = z / (1 + z**2 / cases) * np.sqrt(share * (1 - share) / cases + z**2 / (4 * cases**2))
    # at the ends the interval reaches the end itself, which rounding must not prevent
    low = 0.0 if successes == 0 else float(middle - reach)
    high = 1.0 if successes == cases else float(middle + reach)
    return Estimate(share, low, high)


def patient_weights(
    patients: npt.ArrayLike, labels: npt.ArrayLike, replicates: int = REPLICATES, seed: int = 0
) -> FloatArray:
    """Draw bootstrap replicates of a cohort: patients with replacement, as many of each class as there are.

    A patient with any positive study counts as positive. All studies of a patient are drawn together.

    Parameters
    ----------
    patients : array_like, shape (studies,)
        Which patient each study is of.
    labels : array_like, shape (studies,)
        0 or 1.

    Returns
    -------
    ndarray, shape (replicates, studies)
        How often each study is taken.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    of_patient = np.zeros(len(names), np.int64)
    np.maximum.at(of_patient, patient, np.asarray(labels, dtype=np.int64))
    rng = np.random.default_rng(seed)
    drawn = np.zeros((replicates, len(names)))
    for stratum in (0, 1):
        members = np.flatnonzero(of_patient == stratum)
        if len(members):
            shares = np.full(len(members), 1.0 / len(members))
            drawn[:, members] = rng.multinomial(len(members), shares, size=replicates)
    return drawn[:, patient]


def percentile_interval(value: float, replicates: FloatArray, confidence: float = CONFIDENCE) -> Estimate:
    """Return a value with the percentile interval of its bootstrap replicates; NaN stands for undefined.

    Where all replicates are the same, as of a single patient, they say nothing of how certain the value is.
    """
    if np.isnan(value):
        return Estimate(None)
    defined = replicates[~np.isnan(replicates)]
    if not len(defined) or np.ptp(defined) < 1e-12:
        return Estimate(value)
    low, high = np.quantile(defined, [0.5 - confidence / 2.0, 0.5 + confidence / 2.0])
    return Estimate(value, float(low), float(high))


def bootstrap(
    measure: Callable[[FloatArray], FloatArray], weights: FloatArray, confidence: float = CONFIDENCE
) -> Estimate:
    """Return a measure with its percentile interval over bootstrap replicates.

    Parameters
    ----------
    measure : callable
        Maps weights (replicates, studies) to one value for each replicate, NaN where it is undefined.
    weights : ndarray, shape (replicates, studies)
        As :func:`patient_weights` draws them.
    """
    value = float(measure(np.ones((1, weights.shape[1])))[0])
    return percentile_interval(value, measure(weights), confidence)
