"""How well a classifier tells positive from negative: the paper's measures, with intervals over patients.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 5; what is added to it is calibration and subgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.evaluation.calibration import Reliability, reliability, scaled, temperature
from app.evaluation.intervals import Estimate, bootstrap, patient_weights, percentile_interval, wilson
from app.evaluation.predictions import SUBGROUPS, Cohort, Prediction
from app.evaluation.roc import FloatArray, area, delong_p_value, first_reaching, fpr_at_tpr, roc_curve

SENSITIVITY = 0.95
_RANGES: Mapping[str, tuple[float, ...]] = {
    "age": (40.0, 50.0, 60.0, 70.0, 80.0),
    "slice_thickness": (1.0, 2.0, 3.0, 5.0),
}
"""Bounds between the rows of the subgroup table, in years and mm."""
_Draw = Callable[..., FloatArray]
"""Draws the replicates of some patients and their labels, as many and from the seed as of the whole evaluation."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What comes of calling positive what is at or above a threshold.

    Parameters
    ----------
    name : str
        How the threshold was chosen.
    threshold : float
        Probability.
    chosen_on : str
        ``beforehand``, ``validation``, or ``the same cases``, where the figures are too good.
    accuracy, sensitivity, specificity : Estimate
        With intervals by the bootstrap over patients.
    """

    name: str
    threshold: float
    chosen_on: str
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table of counts: a CO-RADS class or a subgroup; Wilson intervals, but for the AUC."""

    name: str
    positives: int
    negatives: int
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability of the probabilities as they are, and after temperature scaling on validation cases."""

    before: Reliability
    temperature: float | None
    after: Reliability | None


@dataclass(frozen=True, slots=True)
class Classification:
    """All that is said of one model on the test split."""

    model: str
    cohort: Cohort
    auc: Estimate
    fpr_at_95: Estimate
    points: tuple[OperatingPoint, ...]
    co_rads: tuple[Row, ...]
    subgroups: Mapping[str, tuple[Row, ...]]
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second model is, on the same studies; no p-value where DeLong's test says nothing."""

    first: str
    second: str
    auc: Estimate
    fpr_at_95: Estimate
    delong_p_value: float | None


def evaluate_model(
    model: str, test: Cohort, validation: Cohort, *, replicates: int = 2000, seed: int = 0
) -> Classification:
    """Measure one model.

    Parameters
    ----------
    model : str
        Its name.
    test : Cohort
        What everything is measured on; both classes are needed.
    validation : Cohort
        What thresholds and temperature are chosen on; may be empty or lack a class, then they are not.
    replicates, seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the test split lacks a class.
    """
    draw = partial(patient_weights, replicates=replicates, seed=seed)
    weights = draw(test.patients, test.labels)
    curve = roc_curve(test.labels, test.probabilities, weights)
    whole = roc_curve(test.labels, test.probabilities)
    points = [
        _point(test, weights, name, threshold, chosen_on)
        for name, threshold, chosen_on in _thresholds(test, validation)
    ]
    half = points[0].threshold
    classes = [(str(k), test.where(lambda each, k=k: each.co_rads == k)) for k in range(1, 6)]  # type: ignore[misc]
    named = any(each.co_rads is not None for each in test.predictions)
    return Classification(
        model,
        test,
        percentile_interval(float(area(whole)), area(curve)),
        percentile_interval(float(fpr_at_tpr(whole, SENSITIVITY)), fpr_at_tpr(curve, SENSITIVITY)),
        tuple(points),
        tuple(_row(name, part, half, draw) for name, part in classes) if named else (),
        {name: rows for name in SUBGROUPS if (rows := _subgroup(name, test, half, draw))},
        _calibration(test, validation),
    )


def compare(first: Classification, second: Classification, *, replicates: int = 2000, seed: int = 0) -> Difference:
    """Say how much better the second model is on the studies of both; replicates are the same for both.

    Raises
    ------
    ValueError
        If they were not measured on the same studies.
    """
    one, other = (_by_study(each.cohort) for each in (first, second))
    if one.keys() != other.keys():
        raise ValueError(f"{first.model} and {second.model} were not measured on the same studies")
    cohorts = [Cohort.of(part[key] for key in sorted(part)) for part in (one, other)]
    labels, patients = cohorts[0].labels, cohorts[0].patients
    weights = patient_weights(patients, labels, replicates, seed)
    curves = [roc_curve(labels, each.probabilities, weights) for each in cohorts]
    wholes = [roc_curve(labels, each.probabilities) for each in cohorts]

    def gain(measure: Callable[..., FloatArray]) -> Estimate:
        value = float(measure(wholes[1]) - measure(wholes[0]))
        return percentile_interval(value, measure(curves[1]) - measure(curves[0]))

    alone = len(set(patients.tolist())) == len(patients)
    p_value = delong_p_value(labels, cohorts[0].probabilities, cohorts[1].probabilities) if alone else None
    return Difference(first.model, second.model, gain(area), gain(fpr_at_tpr), p_value)


def _by_study(cohort: Cohort) -> dict[tuple[str, str], Prediction]:
    found = {(each.patient, each.study): each for each in cohort.predictions}
    if len(found) < len(cohort.predictions):
        raise ValueError("two studies of a patient have the same name")
    return found


def _thresholds(test: Cohort, validation: Cohort) -> list[tuple[str, float, str]]:
    """Return name, threshold and origin of each operating point."""
    usable = len(set(validation.labels.tolist())) == 2
    chosen, origin = (validation, "validation") if usable else (test, "the same cases")
    curve = roc_curve(chosen.labels, chosen.probabilities)
    youden = int(np.argmax(curve.tpr - curve.fpr))
    sensitive = int(first_reaching(curve, SENSITIVITY))
    finite = np.minimum(curve.thresholds, 1.0)
    return [
        ("0.5", 0.5, "beforehand"),
        ("Youden", float(finite[youden]), origin),
        ("sensitivity 95 %", float(finite[sensitive]), origin),
    ]


def _point(test: Cohort, weights: FloatArray, name: str, threshold: float, chosen_on: str) -> OperatingPoint:
    right = (test.probabilities >= threshold) == (test.labels == 1)

    def share(members: object) -> Estimate:
        inside = np.asarray(members, dtype=np.float64)

        def measure(counts: FloatArray) -> FloatArray:
            with np.errstate(invalid="ignore"):
                return np.asarray((counts * inside) @ right / (counts @ inside))

        return bootstrap(measure, weights)

    labels = test.labels
    return OperatingPoint(name, threshold, chosen_on, share(np.ones(len(test))), share(labels == 1), share(labels == 0))


def _row(name: str, part: Cohort, threshold: float, draw: _Draw) -> Row:
    called = part.probabilities >= threshold
    right = called == (part.labels == 1)
    positive = part.labels == 1
    both = len(set(part.labels.tolist())) == 2
    return Row(
        name,
        int(positive.sum()),
        int((~positive).sum()),
        wilson(int(right.sum()), len(part)),
        wilson(int(right[positive].sum()), int(positive.sum())),
        wilson(int(right[~positive].sum()), int((~positive).sum())),
        _auc(part, draw) if both else Estimate(None),
    )


def _auc(part: Cohort, draw: _Draw) -> Estimate:
    weights = draw(part.patients, part.labels)
    whole = float(area(roc_curve(part.labels, part.probabilities)))
    return percentile_interval(whole, area(roc_curve(part.labels, part.probabilities, weights)))


def _subgroup(name: str, test: Cohort, threshold: float, draw: _Draw) -> tuple[Row, ...]:
    """Make the rows of one column of the predictions; studies without a value are a row of their own."""
    if not any(name in each.groups for each in test.predictions):
        return ()
    groups: dict[str, list[Prediction]] = {}
    for each in test.predictions:
        groups.setdefault(_group(name, each.groups.get(name)), []).append(each)
    return tuple(_row(group, Cohort.of(groups[group]), threshold, draw) for group in sorted(groups, key=_in_order))


def _group(name: str, value: str | None) -> str:
    bounds = _RANGES.get(name)
    if value is None or bounds is None:
        return value or "unknown"
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not 0.0 <= number < np.inf:
        return "unknown"
    place = int(np.searchsorted(bounds, number, side="right"))
    if place == 0:
        return f"below {bounds[0]:g}"
    if place == len(bounds):
        return f"{bounds[-1]:g} and above"
    return f"{bounds[place - 1]:g} to {bounds[place]:g}"


def _in_order(group: str) -> tuple[int, float, str]:
    """Ranges from low to high, then names, then what is unknown."""
    if group == "unknown":
        return 2, 0.0, group
    first = group.removeprefix("below ").split()[0] if group.split() else group
    try:
        return 0, float(first) - (0.5 if group.startswith("below") else 0.0), group
    except ValueError:
        return 1, 0.0, group


def _calibration(test: Cohort, validation: Cohort) -> Calibration:
    before = reliability(test.labels, test.probabilities)
    if len(set(validation.labels.tolist())) < 2:
        return Calibration(before, None, None)
    by = temperature(validation.labels, validation.probabilities)
    return Calibration(before, by, reliability(test.labels, scaled(test.probabilities, by)))


def evaluate_all(predictions: Sequence[Prediction], *, replicates: int = 2000, seed: int = 0) -> list[Classification]:
    """Measure every model that made predictions, in the order in which they come.

    Raises
    ------
    ValueError
        If the test split of a model lacks a class.
    """
    results = []
    for model in dict.fromkeys(each.model for each in predictions):
        splits = [
            Cohort.of(each for each in predictions if each.model == model and each.split == split)
            for split in ("test", "validation")
        ]
        results.append(evaluate_model(model, *splits, replicates=replicates, seed=seed))
    return results
