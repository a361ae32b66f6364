"""ROC analysis against loops, scikit-learn and what the mathematics promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from app.evaluation.roc import FloatArray, area, auc, binormal, delong, delong_p_value, fpr_at_tpr, roc_curve


def _cases(seed: int, n: int = 60, *, ties: bool = False) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(float)
    labels[:2] = 0, 1
    scores = rng.normal(labels * 0.8)
    return labels, np.round(scores * 2) if ties else scores


def _naive_area(labels: FloatArray, scores: FloatArray) -> float:
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_curve_and_area_are_those_of_scikit_learn_and_of_pairs(seed: int, ties: bool) -> None:
    labels, scores = _cases(seed, ties=ties)
    curve = roc_curve(labels, scores)
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert auc(labels, scores) == pytest.approx(_naive_area(labels, scores), abs=1e-12)


def test_weights_are_the_same_as_taking_cases_again() -> None:
    labels, scores = _cases(3, ties=True)
    weights = np.random.default_rng(0).integers(0, 4, (7, len(labels)))
    curve = roc_curve(labels, scores, weights)
    for row, area_of_row, at_95 in zip(weights, area(curve), fpr_at_tpr(curve), strict=True):
        again = np.repeat(np.arange(len(labels)), row)
        assert area_of_row == pytest.approx(_naive_area(labels[again], scores[again]), abs=1e-12)
        assert at_95 == pytest.approx(float(fpr_at_tpr(roc_curve(labels[again], scores[again]))), abs=1e-12)


def test_a_replicate_without_a_class_is_undefined() -> None:
    labels = np.array([0.0, 0.0, 1.0])
    curve = roc_curve(labels, np.array([0.1, 0.2, 0.3]), np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert np.isnan(area(curve)[0])
    assert area(curve)[1] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_false_positives_at_a_sensitivity_are_at_the_first_threshold_that_reaches_it(seed: int) -> None:
    labels, scores = _cases(seed, ties=seed % 2 == 0)
    for threshold in sorted(set(scores), reverse=True):
        if np.mean(scores[labels == 1] >= threshold) >= 0.95:
            break
    assert float(fpr_at_tpr(roc_curve(labels, scores))) == pytest.approx(np.mean(scores[labels == 0] >= threshold))


def test_exactly_the_asked_sensitivity_suffices() -> None:
    labels = np.array([1] * 20 + [0] * 2)
    scores = np.array([*range(100, 119), 0, 50, 1], dtype=float)
    assert float(fpr_at_tpr(roc_curve(labels, scores))) == 0.0


def test_an_increasing_transform_changes_nothing_and_reversal_mirrors() -> None:
    labels, scores = _cases(1)
    assert auc(labels, np.exp(scores)) == pytest.approx(auc(labels, scores), abs=1e-12)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), abs=1e-12)
    assert auc(1 - labels, -scores) == pytest.approx(auc(labels, scores), abs=1e-12)


def _naive_delong(labels: FloatArray, scores: FloatArray) -> FloatArray:
    """The structural components as DeLong et al. define them, by loops."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    kernel = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (positive[:, :, None] == negative[:, None, :])
    areas = kernel.mean(axis=(1, 2))
    models, m, n = kernel.shape
    covariance = np.zeros((models, models))
    for r in range(models):
        for s in range(models):
            v10 = sum((kernel[r, i].mean() - areas[r]) * (kernel[s, i].mean() - areas[s]) for i in range(m)) / (m - 1)
            v01 = sum((kernel[r, :, j].mean() - areas[r]) * (kernel[s, :, j].mean() - areas[s]) for j in range(n)) / (
                n - 1
            )
            covariance[r, s] = v10 / m + v01 / n
    return covariance


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_that_of_the_definition(ties: bool) -> None:
    labels, first = _cases(2, ties=ties)
    scores = np.stack([first, first + np.random.default_rng(9).normal(size=len(first))])
    found = delong(labels, scores)
    np.testing.assert_allclose(found.covariance, _naive_delong(labels, scores), atol=1e-14)
    np.testing.assert_allclose(found.areas, [_naive_area(labels, each) for each in scores], atol=1e-14)


def test_delong_finds_no_difference_where_there_is_none() -> None:
    labels, scores = _cases(4)
    assert delong_p_value(labels, scores, 3 * scores + 1) == 1.0
    assert delong_p_value(labels, scores, labels + scores / 100) < 0.01


@pytest.mark.parametrize("alone", [0, 1])
def test_delong_says_nothing_of_a_single_case_of_a_class(alone: int) -> None:
    """Its variance cannot be estimated."""
    labels = np.full(6, 1 - alone)
    labels[2] = alone
    assert delong_p_value(labels, np.arange(6.0), np.arange(6.0)[::-1]) is None


def test_the_size_of_delongs_test_is_as_stated() -> None:
    """Under equal areas, one in twenty is below 0.05."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 60)
    hits = 0
    for _ in range(400):
        common = rng.normal(labels * 0.9)
        first, second = (common + rng.normal(size=120) for _ in range(2))
        hits += delong_p_value(labels, first, second) < 0.05
    assert stats.binomtest(hits, 400, 0.05).pvalue > 0.01


def test_the_binormal_curve_is_that_of_its_distributions() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200_000)
    scores = np.where(labels == 1, rng.normal(1.2, 1.5, 400_000), rng.normal(0.0, 1.0, 400_000))
    fit = binormal(labels, scores)
    expected = stats.norm.cdf((1.2 + stats.norm.ppf(fit.fpr)) / 1.5)
    np.testing.assert_allclose(fit.tpr, expected, atol=0.01)
    assert fit.area == pytest.approx(float(stats.norm.cdf(1.2 / np.sqrt(1 + 1.5**2))), abs=0.005)
    assert fit.area == pytest.approx(auc(labels, scores), abs=0.005)


def test_the_binormal_band_holds_the_curve_and_narrows() -> None:
    widths = []
    for n in (30, 300):
        labels, scores = _cases(7, n)
        fit = binormal(labels, scores)
        assert ((fit.lower <= fit.tpr) & (fit.tpr <= fit.upper)).all()
        assert (fit.lower[0], fit.upper[0], fit.lower[-1], fit.upper[-1]) == (0.0, 0.0, 1.0, 1.0)
        widths.append(float((fit.upper - fit.lower).mean()))
    assert widths[1] < 0.5 * widths[0]


def test_the_binormal_band_covers_the_whole_true_curve_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 80)
    covered = 0
    for _ in range(300):
        fit = binormal(labels, np.where(labels == 1, rng.normal(1.0, 1.3, 160), rng.normal(0.0, 1.0, 160)))
        truth = stats.norm.cdf((1.0 + stats.norm.ppf(fit.fpr[1:-1])) / 1.3)
        covered += bool(((fit.lower[1:-1] <= truth) & (truth <= fit.upper[1:-1])).all())
    assert 0.92 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([0, 0], [0.1, 0.2], "both classes"),
        ([0, 2], [0.1, 0.2], "both classes"),
        ([0, 1], [0.1, np.nan], "finite"),
        ([0, 1, 1], [0.1, 0.2], "one score for each"),
    ],
)
def test_what_is_no_cohort_is_refused(labels: list[int], scores: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        roc_curve(labels, scores)


def test_a_binormal_curve_needs_spread() -> None:
    with pytest.raises(ValueError, match="two different scores"):
        binormal([0, 0, 1, 1], [0.5, 0.5, 0.6, 0.7])
