"""Splits never divide a patient, keep the classes, and are those of the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.cohort.splits import split_cohort
from app.cohort.table import SPLITS, CohortStudy
from app.outcome import UsageError


def _studies(patients: int, seed: int = 0, *, each: int = 3) -> list[CohortStudy]:
    """Patients with one to ``each`` studies, four in ten positive, in some later studies no longer."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(patients):
        positive = number % 5 < 2
        for k in range(int(rng.integers(1, each + 1))):
            label = int(positive and (k == 0 or rng.random() < 0.7))
            found.append(CohortStudy(f"p{number}", Path(f"{number}.{k}"), label))
    return found


def _patients(studies: tuple[CohortStudy, ...], split: str) -> set[str]:
    return {study.patient for study in studies if study.split == split}


@pytest.mark.parametrize("seed", range(4))
def test_no_patient_is_divided_and_none_is_lost(seed: int) -> None:
    studies = _studies(60, seed)
    divided = split_cohort(studies, seed=seed)
    assert [study.path for study in divided] == [study.path for study in studies]
    parts = [_patients(divided, split) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_shares_hold_in_each_class() -> None:
    divided = split_cohort(_studies(100), (0.7, 0.15, 0.15))
    positive = {study.patient for study in divided if study.label == 1}
    assert [len(_patients(divided, split) & positive) for split in SPLITS] == [28, 6, 6]
    assert [len(_patients(divided, split) - positive) for split in SPLITS] == [42, 9, 9]


def test_splits_are_those_of_the_seed_whatever_the_order() -> None:
    studies = _studies(40)
    first = {study.path: study.split for study in split_cohort(studies, seed=1)}
    again = {study.path: study.split for study in split_cohort(studies[::-1], seed=1)}
    other = {study.path: study.split for study in split_cohort(studies, seed=2)}
    assert first == again
    assert first != other


def test_splits_of_the_table_are_kept() -> None:
    divided = split_cohort(_studies(40), seed=1)
    assert split_cohort(divided, seed=2) == divided


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be split"):
        split_cohort([CohortStudy("a", Path("a"), 0), CohortStudy("b", Path("b"), 1)])
    with pytest.raises(UsageError, match="has only negative studies"):
        split_cohort([CohortStudy(str(k), Path(str(k)), 0) for k in range(20)])


def test_a_share_of_nothing_may_be_empty() -> None:
    divided = split_cohort(_studies(20), (0.5, 0.0, 0.5))
    assert not _patients(divided, "validation")
