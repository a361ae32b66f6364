"""Predictions with their truth, as a CSV file that a person can make."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from app.cohort.rows import Row, read_table
from app.evaluation.roc import FloatArray
from app.outcome import UsageError

REQUIRED = ("patient", "label", "probability")
SUBGROUPS = ("site", "sex", "age", "manufacturer", "slice_thickness")
"""Columns whose values make the rows of the subgroup table; numbers are put into ranges."""
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """One study.

    Parameters
    ----------
    patient, study : str
        Pseudonyms. A patient may have several studies.
    label : int
        0 negative, 1 positive.
    probability : float
        Of positive, 0 to 1.
    split : str
        ``validation`` is what thresholds and temperature are chosen on, ``test`` what everything is measured on.
    model : str
        Which of several models made it.
    co_rads : int, optional
        1 to 5.
    involvement : float, optional
        Percent of the lungs.
    groups : mapping
        Values of the columns of :data:`SUBGROUPS` that are there.
    """

    patient: str
    study: str
    label: int
    probability: float
    split: Literal["validation", "test"]
    model: str
    co_rads: int | None
    involvement: float | None
    groups: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    """A study of the test split that the system refuses, so that it has no probability; ``reason`` is the code."""

    patient: str
    study: str
    label: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """Predictions of one model for one split, as arrays of one length."""

    patients: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    probabilities: FloatArray
    predictions: tuple[Prediction, ...]

    @classmethod
    def of(cls, predictions: Iterable[Prediction]) -> Cohort:
        """Gather predictions."""
        kept = tuple(predictions)
        return cls(
            np.array([each.patient for each in kept]),
            np.array([each.label for each in kept], dtype=np.int64),
            np.array([each.probability for each in kept]),
            kept,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, condition: Callable[[Prediction], bool]) -> Cohort:
        """Return the part of the cohort that meets a condition."""
        return Cohort.of(each for each in self.predictions if condition(each))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as :func:`read_predictions` reads them."""
    columns = ("patient", "study", "label", "probability", "split", "model", "co_rads", "involvement", *SUBGROUPS)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for each in predictions:
            known = (each.patient, each.study, each.label, f"{each.probability:.9g}", each.split, each.model)
            groups = (each.groups.get(name) for name in SUBGROUPS)
            cells = (*known, each.co_rads, each.involvement, *groups)
            table.writerow("" if cell is None else cell for cell in cells)


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read predictions.

    Parameters
    ----------
    path : Path
        CSV with the columns ``patient``, ``label`` (0 or 1) and ``probability``; and, where they are known, ``study``,
        ``split`` (``validation`` or ``test``, the default), ``model``, ``co_rads`` (1 to 5), ``involvement``
        (percent) and those of :data:`SUBGROUPS`. Empty cells are taken for unknown.

    Raises
    ------
    UsageError
        If the file cannot be read, lacks a column or has it several times, or holds rows that are wrong: the first of
        them are named.
    """
    try:
        table = read_table(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path} as CSV") from error
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the column {', '.join(missing)}")
    if table.repeated:
        raise UsageError(f"{path}: the column {table.repeated[0]} is there several times")
    predictions, wrong = [], []
    for row in table.rows:
        try:
            predictions.append(_prediction(row))
        except ValueError as error:
            wrong.append(f"row {row.number}: {error}")
    wrong += _inconsistent(predictions)
    if wrong:
        more = f"; and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""
        raise UsageError(f"{path}: {'; '.join(wrong[:_MOST_TOLD])}{more}")
    if not predictions:
        raise UsageError(f"{path} holds no predictions")
    return tuple(predictions)


def _prediction(of: Row) -> Prediction:
    row = of.cells
    if of.surplus:
        raise ValueError("more cells than columns")
    if not row["patient"]:
        raise ValueError("no patient")
    if row["label"] not in ("0", "1"):
        raise ValueError("label is not 0 or 1")
    split = row.get("split") or "test"
    if split not in ("validation", "test"):
        raise ValueError("split is not validation or test")
    co_rads = row.get("co_rads") or None
    if co_rads not in (None, "1", "2", "3", "4", "5"):
        raise ValueError("co_rads is not 1 to 5")
    return Prediction(
        row["patient"],
        row.get("study") or str(of.number),
        int(row["label"]),
        _number(row["probability"], "probability", 1.0),
        "validation" if split == "validation" else "test",
        row.get("model") or "model",
        None if co_rads is None else int(co_rads),
        _number(row["involvement"], "involvement", 100.0) if row.get("involvement") else None,
        {name: row[name] for name in SUBGROUPS if row.get(name)},
    )


def _number(text: str, name: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= most:
        raise ValueError(f"{name} is not a number from 0 to {most:g}")
    return value


def _inconsistent(predictions: Sequence[Prediction]) -> list[str]:
    """Say which studies are there twice, differ in label between models, or have a patient in both splits."""
    wrong: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    labels: dict[tuple[str, str], int] = {}
    splits: dict[str, str] = {}
    for each in predictions:
        key = each.model, each.patient, each.study
        if key in seen:
            wrong.append(f"study {each.study} of patient {each.patient} is there twice")
        seen.add(key)
        if labels.setdefault((each.patient, each.study), each.label) != each.label:
            wrong.append(f"study {each.study} of patient {each.patient} has two labels")
        if splits.setdefault(each.patient, each.split) != each.split:
            wrong.append(f"patient {each.patient} is in both splits")
    return list(dict.fromkeys(wrong))
