"""The whole protocol for predictions: measure, compare, write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from app.evaluation.classification import Classification, compare, evaluate_all
from app.evaluation.classification_report import write_classification
from app.evaluation.predictions import Prediction, Refused


def judge(
    predictions: Sequence[Prediction],
    folder: Path,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    refused: Sequence[Refused] = (),
    replicates: int = 2000,
    seed: int = 0,
) -> list[Classification]:
    """Measure every model that made predictions, compare them, and write tables, pictures and the page.

    Parameters
    ----------
    predictions : sequence of Prediction
    folder : Path
        Must exist.
    pairs : sequence of (str, str), optional
        Names of the models to compare, the second with the first; by default each with the one before it.
    refused : sequence of Refused
        Test studies without a prediction, to be stated.
    replicates, seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the test split of a model lacks a class, or models that are compared did not see the same studies.
    """
    results = evaluate_all(predictions, replicates=replicates, seed=seed)
    by_name = {result.model: result for result in results}
    compared = pairwise(by_name) if pairs is None else pairs
    differences = [
        compare(by_name[first], by_name[second], replicates=replicates, seed=seed) for first, second in compared
    ]
    write_classification(results, differences, folder, refused=refused, replicates=replicates)
    return results
