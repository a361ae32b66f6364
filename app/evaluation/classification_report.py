"""What is written of an evaluation of classification: JSON, CSV, pictures, and one page to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.evaluation.calibration import Reliability
from app.evaluation.classification import Classification, Difference, Row
from app.evaluation.intervals import Estimate
from app.evaluation.page import CLASSIFICATION, render
from app.evaluation.plots import draw_all
from app.evaluation.predictions import Refused
from operators.software import NAME, RESEARCH_NOTICE, VERSION

_RATES = ("accuracy", "sensitivity", "specificity")


def write_classification(
    results: Sequence[Classification],
    differences: Sequence[Difference],
    folder: Path,
    *,
    replicates: int,
    refused: Sequence[Refused] = (),
) -> None:
    """Write ``classification.json``, ``classification.csv``, ``index.html`` and the pictures.

    Parameters
    ----------
    results : sequence of Classification
        One for each model.
    differences : sequence of Difference
        Between models.
    folder : Path
        Must exist.
    replicates : int
        Of the bootstrap, to be stated.
    refused : sequence of Refused
        Test studies without a prediction, to be stated.
    """
    pictures = draw_all(results, folder)
    content = {
        "software": {"name": NAME, "version": VERSION},
        "notice": RESEARCH_NOTICE,
        "replicates": replicates,
        "refused_studies": len(refused),
        "refused": [asdict(each) for each in refused],
        "models": [_as_json(result) for result in results],
        "differences": [asdict(difference) for difference in differences],
    }
    (folder / "classification.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    with (folder / "classification.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("model", "table", "row", "measure", "value", "low", "high"))
        for result in results:
            table.writerows(_lines(result))
        for difference in differences:
            table.writerows(_difference_lines(difference))
    page = render(
        CLASSIFICATION,
        results=results,
        differences=differences,
        pictures=pictures,
        replicates=replicates,
        refused=refused,
        notice=RESEARCH_NOTICE,
        software=f"{NAME} {VERSION}",
    )
    (folder / "index.html").write_text(page, "utf-8")


def _as_json(result: Classification) -> dict[str, Any]:
    calibration = result.calibration
    return {
        "model": result.model,
        "positives": int(result.cohort.labels.sum()),
        "negatives": int((1 - result.cohort.labels).sum()),
        "patients": len(set(result.cohort.patients.tolist())),
        "auc": asdict(result.auc),
        "fpr_at_tpr_95": asdict(result.fpr_at_95),
        "operating_points": [asdict(point) for point in result.points],
        "co_rads": [asdict(row) for row in result.co_rads],
        "subgroups": {name: [asdict(row) for row in rows] for name, rows in result.subgroups.items()},
        "calibration": {
            "before": _reliability(calibration.before),
            "temperature": calibration.temperature,
            "after": None if calibration.after is None else _reliability(calibration.after),
        },
    }


def _reliability(found: Reliability) -> dict[str, Any]:
    bins = {name: getattr(found, name).tolist() for name in ("predicted", "observed", "cases")}
    return {"expected_calibration_error": found.expected_error, **bins}


Line = tuple[str, str, str, str, float | None, float | None, float | None]


def _lines(result: Classification) -> Iterator[Line]:
    """One line for each figure of a model."""
    yield _line(result.model, "all", "", "auc", result.auc)
    yield _line(result.model, "all", "", "fpr_at_tpr_95", result.fpr_at_95)
    for point in result.points:
        yield result.model, "operating point", point.name, "threshold", point.threshold, None, None
        for measure in _RATES:
            yield _line(result.model, "operating point", point.name, measure, getattr(point, measure))
    for table, rows in (("co_rads", result.co_rads), *result.subgroups.items()):
        for row in rows:
            yield from _row_lines(result.model, table, row)
    calibration = result.calibration
    yield result.model, "calibration", "before", "ece", calibration.before.expected_error, None, None
    if calibration.after is not None:
        yield result.model, "calibration", "after", "ece", calibration.after.expected_error, None, None
        yield result.model, "calibration", "after", "temperature", calibration.temperature, None, None


def _row_lines(model: str, table: str, row: Row) -> Iterator[Line]:
    for measure in ("positives", "negatives"):
        yield model, table, row.name, measure, getattr(row, measure), None, None
    for measure in (*_RATES, "auc"):
        yield _line(model, table, row.name, measure, getattr(row, measure))


def _difference_lines(difference: Difference) -> Iterator[Line]:
    names = f"{difference.second} - {difference.first}"
    yield _line(names, "difference", "", "auc", difference.auc)
    yield _line(names, "difference", "", "fpr_at_tpr_95", difference.fpr_at_95)
    yield names, "difference", "", "delong_p_value", difference.delong_p_value, None, None


def _line(model: str, table: str, row: str, measure: str, estimate: Estimate) -> Line:
    return model, table, row, measure, estimate.value, estimate.low, estimate.high
