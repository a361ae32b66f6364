"""Splits of a cohort: by patient, stratified by label, the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.cohort.table import SPLITS, TABLE, CohortStudy, Split, contradictions, lone_classes, write_table
from app.outcome import UsageError

SHARES = (0.7, 0.15, 0.15)
"""Of the patients of each class, for training, validation and test."""


def split_cohort(
    studies: Sequence[CohortStudy], shares: tuple[float, float, float] = SHARES, seed: int = 0
) -> tuple[CohortStudy, ...]:
    """Give every study a split, unless the table already did.

    Patients are drawn within their class, a patient with any positive study counting as positive. The order of the
    table has no influence.

    Parameters
    ----------
    studies : sequence of CohortStudy
        All with a split, which is kept, or all without.
    shares : tuple of float
        Of train, validation and test; they sum to 1.
    seed : int
        Another seed, other splits.

    Raises
    ------
    UsageError
        If a patient is in two splits, or a split would be empty or lack a class that others have: there are too few
        patients.
    """
    if all(study.split is not None for study in studies):
        divided = tuple(studies)
    else:
        positive = {study.patient for study in studies if study.label == 1}
        patients = sorted({study.patient for study in studies})
        place: dict[str, Split] = {}
        for stratum in (False, True):
            members = [patient for patient in patients if (patient in positive) == stratum]
            order = np.random.default_rng((seed, int(stratum))).permutation(len(members))
            for split, some in zip(SPLITS, _portions(order.tolist(), shares), strict=True):
                place.update({members[index]: split for index in some})
        divided = tuple(replace(study, split=place[study.patient]) for study in studies)
    both = len({study.label for study in studies}) == 2  # of one class, segmentation can be learned
    wrong = [*contradictions(divided), *(lone_classes(divided) if both else ())]
    wrong += [f"the split {split} is empty" for split in _empty(divided, shares)]
    if wrong:
        raise UsageError(f"the cohort cannot be split: {wrong[0]}")
    return divided


def split_table(
    folder: Path, studies: Sequence[CohortStudy], proportions: Sequence[float], seed: int = 0
) -> tuple[CohortStudy, ...]:
    """Divide a cohort whose table has no splits, and write them into it.

    Parameters
    ----------
    folder : Path
        Of the cohort.
    studies : sequence of CohortStudy
        All of the table.
    proportions : sequence of float
        Of train, validation and test.
    seed : int
        Another seed, other splits.

    Raises
    ------
    UsageError
        If the table has splits, the proportions make no sense, or a split would lack a class.
    """
    if any(study.split is not None for study in studies):
        raise UsageError(f"{folder / TABLE} has splits already; what was trained with them is bound to them")
    if not all(0 <= value < math.inf for value in proportions) or proportions[0] == 0:
        raise UsageError("the proportions of the splits must be numbers that are not negative, that of train not zero")
    train, validation, test = (value / sum(proportions) for value in proportions)
    divided = split_cohort(studies, (train, validation, test), seed)
    write_table(folder, divided)
    return divided


def _portions(order: list[int], shares: tuple[float, float, float]) -> list[list[int]]:
    """Cut a list by shares; the largest remainders get what rounding leaves over."""
    exact = [share * len(order) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: len(order) - sum(counts)]:
        counts[k] += 1
    ends = np.cumsum([0, *counts]).tolist()
    return [order[start:end] for start, end in pairwise(ends)]


def _empty(studies: Sequence[CohortStudy], shares: tuple[float, float, float]) -> list[Split]:
    there = {study.split for study in studies}
    return [split for split, share in zip(SPLITS, shares, strict=True) if share > 0 and split not in there]
