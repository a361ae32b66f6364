"""Predictions of classifiers for the studies of a cohort."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from app.cohort.cache import Preparation, StudiesUnusable, prepare, said_of
from app.cohort.known_patients import read_record, refuse_known_patients
from app.cohort.preparation import SEGMENTING, segmentation_hashes, slice_preparation
from app.cohort.table import CohortStudy, names_of
from app.evaluation.predictions import Prediction, Refused
from app.outcome import UsageError
from models.classifier.network import Classifier
from models.classifier.studies import PreparedStudy
from models.record import ModelUnavailable
from models.store import load_network
from models.threads import use_granted_cores
from operators.classification import CHUNK


def predict_cohort(
    studies: Sequence[CohortStudy],
    models: Path,
    cache: Path,
    *,
    workers: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[Prediction], list[Refused]]:
    """Predict the validation and test studies of a cohort with the models of a folder, as the application does.

    Test studies that the system refuses are told apart: to take them out of the table would hide its failures.

    Parameters
    ----------
    studies : sequence of CohortStudy
        With splits.
    models : Path
        Models folder.
    cache : Path
        For the prepared studies.
    workers : int, optional
        Processes that prepare them.
    tell : callable
        Receives lines of progress.

    Raises
    ------
    UsageError
        If models or other studies cannot be used, there is no test study, or a model has learned from a test patient.
    RunFailed
        If the cache cannot be written, or a process died.
    """
    judged = held_out(studies)
    refuse_known_patients(models, (*SEGMENTING, "classifier"), judged)
    learned_with = read_record(models / "classifier").get("segmentation")
    try:
        network, record = load_network(models / "classifier", Classifier)
        preparation = slice_preparation(models, network.in_plane)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    if learned_with not in (None, segmentation_hashes(models)):
        raise UsageError(f"the classifier in {models} learned with other segmentation models than those beside it")
    usable, paths, refused = prepare_usable(judged, preparation, cache, workers=workers, tell=tell)
    use_granted_cores()

    @torch.inference_mode()
    def probability(path: Path) -> float:
        slices = PreparedStudy(path, 0).slices()[:, :2]
        logits = network.aggregate(network.describe(slices, chunk=CHUNK))
        return float(logits.double().softmax(0)[1])

    return predictions_of(f"{record.name} {record.version}", usable, paths, probability), refused


def prepare_usable(
    studies: Sequence[CohortStudy],
    preparation: Preparation,
    cache: Path,
    *,
    workers: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[CohortStudy], list[Path], list[Refused]]:
    """Prepare studies, but for those of the test split that the system refuses.

    Parameters
    ----------
    studies, preparation, cache, workers, tell
        As for :func:`app.cohort.cache.prepare`.

    Returns
    -------
    studies : list of CohortStudy
        That are prepared.
    paths : list of Path
        Their files.
    refused : list of Refused
        The others.

    Raises
    ------
    UsageError
        If any other study cannot be used.
    RunFailed
        If the cache cannot be written, or a process died.
    """
    try:
        return list(studies), prepare(studies, preparation, cache, workers=workers, tell=tell), []
    except StudiesUnusable as error:
        others = [problem for problem in error.problems if not problem.reason or problem.study.split != "test"]
        if others:
            raise StudiesUnusable(others, error.studies) from error
        reasons = {problem.study: problem.reason for problem in error.problems}
    usable = [study for study in studies if study not in reasons]
    paths = prepare(usable, preparation, cache)  # which are in the cache by now
    refused = [
        Refused(study.patient, name, study.label, reasons[study])
        for study, name in zip(studies, names_of(studies), strict=True)
        if study in reasons
    ]
    return usable, paths, refused


def held_out(studies: Sequence[CohortStudy]) -> list[CohortStudy]:
    """Return the validation and test studies.

    Raises
    ------
    UsageError
        If there is no test study.
    """
    judged = [study for study in studies if study.split in ("validation", "test")]
    if not any(study.split == "test" for study in judged):
        raise UsageError("the table has no test studies: covid-ct cohort FOLDER --split 70 15 15 makes splits")
    return judged


def predictions_of(
    model: str, studies: Sequence[CohortStudy], paths: Sequence[Path], probability: Callable[[Path], float]
) -> list[Prediction]:
    """Predict prepared studies, and state what is known of them.

    Parameters
    ----------
    model : str
        Name for the tables.
    studies : sequence of CohortStudy
        Of the validation and test splits.
    paths : sequence of Path
        The same as prepared for the classifier.
    probability : callable
        Gives the probability of positive of a prepared study.
    """
    predictions = []
    for study, name, path in zip(studies, names_of(studies), paths, strict=True):
        said = said_of(path)
        groups = json.loads(said["attributes"]) | ({"site": study.site} if study.site else {})
        predictions.append(
            Prediction(
                study.patient,
                name,
                study.label,
                probability(path),
                "test" if study.split == "test" else "validation",
                model,
                study.co_rads,
                float(said["involvement"]),
                groups,
            )
        )
    return predictions
