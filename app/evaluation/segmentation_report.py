"""What is written of an evaluation of segmentation: JSON, CSV, a picture, and a page to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from app.evaluation.differences import draw_differences, greatest_differences
from app.evaluation.page import SEGMENTATION, render
from app.evaluation.plots import figure
from app.evaluation.segmentation import MEASURES, Masks, StudyScore, lines, summarise_scores
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import CTVolume

_MOST_LISTED = 10


def write_segmentation(
    scores: Sequence[StudyScore], folder: Path, *, in_given_lungs: bool, replicates: int, seed: int
) -> None:
    """Write ``segmentation.json``, ``segmentation.csv``, ``index.html`` and ``dice``.

    Parameters
    ----------
    scores : sequence of StudyScore
        At least one; what :class:`DifferencesIn` drew of them is shown.
    folder : Path
        Must exist.
    in_given_lungs : bool
        Lesions were looked for in the lungs of the cohort.
    replicates, seed : int
        Of the bootstrap.
    """
    summary = summarise_scores(scores, replicates=replicates, seed=seed)
    refused = [
        {"patient": score.patient, "study": score.study, "reason": score.refused} for score in scores if score.refused
    ]
    content = {
        "software": {"name": NAME, "version": VERSION},
        "notice": RESEARCH_NOTICE,
        "in_given_lungs": in_given_lungs,
        "replicates": replicates,
        "studies": len(scores),
        "patients": len({score.patient for score in scores}),
        "refused_studies": len(refused),
        "refused": refused,
        "means": {name: asdict(estimate) for name, estimate in summary.items()},
    }
    (folder / "segmentation.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    with (folder / "segmentation.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("patient", "study", "measure", "value", "refused"))
        table.writerows(lines(scores))
    _draw(scores, folder)
    numbered = sorted(enumerate(scores, start=1), key=lambda numbered: _agreement(numbered[1]))
    worst = [(score, _picture(folder, number)) for number, score in numbered[:_MOST_LISTED]]
    page = render(
        SEGMENTATION,
        content=content,
        rows=[(MEASURES[name], estimate) for name, estimate in summary.items()],
        worst=worst,
        notice=RESEARCH_NOTICE,
        software=f"{NAME} {VERSION}",
    )
    (folder / "index.html").write_text(page, "utf-8")


class DifferencesIn:
    """Draws where the masks of studies differ most, into a folder of evaluation.

    Parameters
    ----------
    folder : Path
        Must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int, volume: CTVolume, truth: Masks, found: Masks) -> None:
        """Draw a study."""
        path = self._folder / _picture_name(number)
        path.parent.mkdir(exist_ok=True)
        draw_differences(greatest_differences(volume, truth, found), path)


def _picture_name(number: int) -> str:
    return f"differences/{number:04d}.png"  # not after the study, whose name two patients may share


def _picture(folder: Path, number: int) -> str | None:
    name = _picture_name(number)
    return name if (folder / name).is_file() else None


def _agreement(score: StudyScore) -> float:
    """Return the Dice to sort by: that of lesions, else of affected lung, else of the lungs."""
    values = (score.measures[name] for name in ("lesions_dice", "affected_dice", "lungs_dice"))
    return next((value for value in values if not np.isnan(value)), 1.0)


def _draw(scores: Sequence[StudyScore], folder: Path) -> None:
    names = [name for name in MEASURES if name.endswith("_dice")]
    values = [np.array([score.measures[name] for score in scores]) for name in names]
    with figure(folder, "dice", wide=7.0) as axes:
        axes.boxplot([each[~np.isnan(each)] for each in values], orientation="horizontal", widths=0.5)
        for row, each in enumerate(values, start=1):
            spread = np.linspace(-0.15, 0.15, len(each))  # so that equal values do not hide each other
            axes.plot(each, row + spread, ".", color="#1f5f8b", markersize=3)
        axes.set_yticks(range(1, len(names) + 1), [MEASURES[name] for name in names])
        axes.invert_yaxis()
        axes.set(xlim=(-0.02, 1.02), xlabel="one dot for each study in which it is defined")
