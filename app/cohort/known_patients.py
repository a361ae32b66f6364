"""Of whom a model has learned: kept with it, so that nobody judges it on the same patients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.cohort.table import CohortStudy
from app.outcome import UsageError

RECORD = "training.json"
"""Record of a training in a model folder."""
Known = Mapping[str, Sequence[str]]
"""Hashes of pseudonyms, by ``training`` and ``validation``."""


def known_patients(
    training: Iterable[CohortStudy], validation: Iterable[CohortStudy], predecessors: Iterable[Path] = ()
) -> dict[str, list[str]]:
    """Return of whom a model learns: of the patients of its cohort, and of those of the models that it starts from.

    Parameters
    ----------
    training, validation : iterable of CohortStudy
    predecessors : iterable of Path
        Model folders.

    Raises
    ------
    UsageError
        If the record of a predecessor is damaged.
    """
    known = {
        "training": {_hash(study.patient) for study in training},
        "validation": {_hash(study.patient) for study in validation},
    }
    for folder in predecessors:
        for part, hashes in _patients(folder).items():
            known.setdefault(part, set()).update(hashes)
    return {part: sorted(hashes) for part, hashes in known.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a training from a model folder; empty where there is none, as for models of others.

    Raises
    ------
    UsageError
        If it is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path} is damaged")
    return record


def fitted_to(folder: Path, studies: Iterable[CohortStudy]) -> int:
    """Count the patients of studies to whom the model in a folder was fitted.

    Raises
    ------
    UsageError
        If the record of its training is damaged.
    """
    known = set(_patients(folder).get("training", ()))
    return len({study.patient for study in studies if _hash(study.patient) in known})


def refuse_known_patients(models: Path, tasks: Sequence[str], studies: Sequence[CohortStudy]) -> None:
    """Make sure that models have not learned from the patients whom they are to be judged on.

    Of test studies no patient may be known at all, of others none that a model was fitted to. Models without a record
    of their training are taken as they are.

    Parameters
    ----------
    models : Path
        Models folder.
    tasks : sequence of str
        Which of its models.
    studies : sequence of CohortStudy
        To be judged on; those of the validation split serve to choose thresholds.

    Raises
    ------
    UsageError
        If one has.
    """
    for task in tasks:
        known = _patients(models / task)
        fitted = set(known.get("training", ()))
        seen = fitted | set(known.get("validation", ()))
        wrong = {s.patient for s in studies if _hash(s.patient) in (fitted if s.split == "validation" else seen)}
        if wrong:
            raise UsageError(
                f"the model {task} learned from {len(wrong)} of the patients that it is to be judged on, "
                f"{min(wrong)} among them: keep the splits that it was trained with"
            )


def _patients(folder: Path) -> Known:
    patients = read_record(folder).get("patients", {})
    if not isinstance(patients, dict):
        raise UsageError(f"{folder / RECORD} is damaged")
    return patients


def _hash(patient: str) -> str:
    """Stand for a patient: enough to notice who comes again."""
    return hashlib.sha256(f"covid-ct-map {patient}".encode()).hexdigest()[:16]
