"""ROC analysis: curve, area, false positives at a fixed sensitivity, DeLong's covariance, and the binormal band.

Everywhere ``labels`` are 0 (negative) or 1 (positive), and a higher score speaks for positive. ``weights`` count how
often each case is taken, 1 where they are left out; given as a matrix (replicates, cases) they make a result for each
row, which is how the bootstrap asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Empirical ROC curve from (0, 0) to (1, 1), one point for each distinct score.

    Parameters
    ----------
    thresholds : ndarray, shape (points,)
        Descending; positive is called what scores at or above. The first is infinite.
    fpr, tpr : ndarray, shape (..., points)
        Rates of false and of true positives.
    """

    thresholds: FloatArray
    fpr: FloatArray
    tpr: FloatArray


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Curve:
    """Return the curve; no point is left out.

    Raises
    ------
    ValueError
        If a class is missing, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    counts = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    first = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) != 0]))
    rates = []
    for of_class in (1 - truth, truth):
        taken = np.add.reduceat((counts * of_class)[..., order], first, axis=-1)
        total = np.cumsum(taken, axis=-1)
        start = np.zeros((*total.shape[:-1], 1))
        with np.errstate(invalid="ignore"):  # a replicate without a class has no rate
            rates.append(np.concatenate([start, total / total[..., -1:]], axis=-1))
    return Curve(np.concatenate([[np.inf], values[order][first]]), *rates)


def area(curve: Curve) -> FloatArray:
    """Return the area under each curve: the probability that a positive scores above a negative, ties half."""
    return np.asarray(np.trapezoid(curve.tpr, curve.fpr, axis=-1))


def fpr_at_tpr(curve: Curve, tpr: float = 0.95) -> FloatArray:
    """Return the rate of false positives at the first threshold whose rate of true positives is at least ``tpr``."""
    reached = np.expand_dims(first_reaching(curve, tpr), -1)
    return np.asarray(np.take_along_axis(curve.fpr, reached, axis=-1)[..., 0])


def first_reaching(curve: Curve, tpr: float) -> npt.NDArray[np.intp]:
    """Return the index of the first threshold whose rate of true positives is at least ``tpr``, but for rounding."""
    return np.asarray(np.argmax(curve.tpr >= tpr - 1e-12, axis=-1))


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the curve of a cohort."""
    return float(area(roc_curve(labels, scores)))


class DeLong(NamedTuple):
    """Areas of several scores on the same cases, and their covariance."""

    areas: FloatArray
    covariance: FloatArray


def delong(labels: npt.ArrayLike, scores: npt.ArrayLike) -> DeLong:
    """Estimate the covariance of areas under correlated curves without assuming a distribution.

    Parameters
    ----------
    labels : array_like, shape (cases,)
    scores : array_like, shape (models, cases)

    References
    ----------
    DeLong et al., Biometrics 1988;44:837. With midranks: Sun and Xu, IEEE Signal Process Lett 2014;21:1389.
    """
    models = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    truth, _ = _checked(labels, models[0])
    positive, negative = models[:, truth == 1], models[:, truth == 0]
    m, n = positive.shape[1], negative.shape[1]
    among_all = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    of_positive = (among_all[:, :m] - stats.rankdata(positive, axis=1)) / n
    of_negative = 1.0 - (among_all[:, m:] - stats.rankdata(negative, axis=1)) / m
    covariance = np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n
    return DeLong(of_positive.mean(axis=1), covariance)


def delong_p_value(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Return the two-sided p-value of equal areas of two scores on the same cases; 1 where they never differ.

    None where a class has a single case: of its variance nothing is known.
    """
    if np.bincount(np.asarray(labels, dtype=np.int64)).min() < 2:
        return None
    areas, covariance = delong(labels, np.stack([np.asarray(first), np.asarray(second)]))
    variance = covariance[0, 0] + covariance[1, 1] - 2.0 * covariance[0, 1]
    if variance <= 0.0:
        return 1.0 if areas[0] == areas[1] else 0.0
    return float(2.0 * stats.norm.sf(abs(areas[0] - areas[1]) / np.sqrt(variance)))


@dataclass(frozen=True, slots=True)
class Binormal:
    """Binormal ROC curve with its simultaneous confidence band.

    Parameters
    ----------
    fpr, tpr, lower, upper : ndarray, shape (points,)
        The curve, and the band that holds the whole true curve with the stated confidence.
    area : float
        Area under the binormal curve.
    """

    fpr: FloatArray
    tpr: FloatArray
    lower: FloatArray
    upper: FloatArray
    area: float


def binormal(labels: npt.ArrayLike, scores: npt.ArrayLike, confidence: float = 0.95, points: int = 201) -> Binormal:
    """Fit two normal distributions to the scores and draw the curve that follows, with its band.

    The curve is ``Phi(a + b Phi^-1(fpr))`` with ``a = (mean1 - mean0) / sd1`` and ``b = sd0 / sd1``. The band is the
    envelope of the confidence ellipse of (a, b) by their covariance in large samples. Scores should be near normal in
    each class: give logits, not probabilities.

    Raises
    ------
    ValueError
        If a class has fewer than two cases, or no spread.

    References
    ----------
    Demidenko, J Appl Stat 2012;39:67 ("Confidence intervals and bands for the binormal ROC curve revisited").
    """
    truth, values = _checked(labels, scores)
    groups = values[truth == 0], values[truth == 1]
    n0, n1 = (len(group) for group in groups)
    if min(n0, n1) < 2 or min(np.ptp(group) for group in groups) == 0.0:
        raise ValueError("each class needs two different scores")
    (mean0, mean1), (sd0, sd1) = (group.mean() for group in groups), (group.std(ddof=1) for group in groups)
    a, b = (mean1 - mean0) / sd1, sd0 / sd1
    variance_a = 1.0 / n1 + b**2 / n0 + a**2 / (2.0 * n1)
    variance_b = b**2 * (1.0 / (2.0 * n1) + 1.0 / (2.0 * n0))
    covariance = a * b / (2.0 * n1)
    fpr = np.linspace(0.0, 1.0, points)
    z = stats.norm.ppf(fpr[1:-1])
    error = np.sqrt(variance_a + z**2 * variance_b + 2.0 * z * covariance)
    reach = np.sqrt(stats.chi2.ppf(confidence, df=2)) * error
    middle = a + b * z
    inner = [stats.norm.cdf(each) for each in (middle, middle - reach, middle + reach)]
    tpr, lower, upper = (np.concatenate([[0.0], each, [1.0]]) for each in inner)
    return Binormal(fpr, tpr, lower, upper, float(stats.norm.cdf(a / np.sqrt(1.0 + b**2))))


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], FloatArray]:
    truth, values = np.asarray(labels, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ValueError("there must be one score for each label")
    if not np.isin(truth, (0, 1)).all() or len(np.unique(truth)) != 2:
        raise ValueError("both classes, 0 and 1, are needed")
    if not np.isfinite(values).all():
        raise ValueError("every score must be a finite number")
    return truth, values
