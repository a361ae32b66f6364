"""What is written of an evaluation of robustness: JSON, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from app.evaluation.plots import figure
from app.evaluation.quality import QUALITIES
from app.evaluation.robustness import MEASURES, Trial
from operators.software import NAME, RESEARCH_NOTICE, VERSION


def write_robustness(trials: Sequence[Trial], folder: Path) -> None:
    """Write ``robustness.json``, ``robustness.md`` and a picture of each measure.

    Parameters
    ----------
    trials : sequence of Trial
        Of every study at every quality.
    folder : Path
        Must exist.
    """
    found = {name for trial in trials for name in trial.measures}
    measured = [name for name in MEASURES if name in found] or list(MEASURES)[:1]  # that one says what was refused
    content = {
        "software": {"name": NAME, "version": VERSION},
        "notice": RESEARCH_NOTICE,
        "trials": [asdict(trial) for trial in trials],
    }
    (folder / "robustness.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    lines = ["# What other scanners and protocols change", "", f"{NAME} {VERSION}. {RESEARCH_NOTICE}", ""]
    for name in measured:
        lines += [f"## {MEASURES[name][0].upper()}{MEASURES[name][1:]}", "", *_table(trials, name), ""]
        _draw(trials, name, folder)
    (folder / "robustness.md").write_text("\n".join(lines), "utf-8")


def _table(trials: Sequence[Trial], measure: str) -> list[str]:
    studies = list(dict.fromkeys(_name(trial, trials) for trial in trials))
    values = {(trial.quality, _name(trial, trials)): _cell(trial, measure) for trial in trials}
    rows = (f"| {quality} | {' | '.join(values[quality, study] for study in studies)} |" for quality in QUALITIES)
    return [f"| | {' | '.join(studies)} |", f"|---{'|---' * len(studies)}|", *rows]


def _name(trial: Trial, trials: Sequence[Trial]) -> str:
    """Name the study of a trial, with its patient where those of others have the same name."""
    alike = {other.patient for other in trials if other.study == trial.study}
    return trial.study if len(alike) == 1 else f"{trial.patient}/{trial.study}"


def _cell(trial: Trial, measure: str) -> str:
    return f"{trial.measures[measure]:.3f}" if measure in trial.measures else trial.refused


def _draw(trials: Sequence[Trial], measure: str, folder: Path) -> None:
    curves: dict[str, dict[str, float]] = {}
    for trial in trials:
        curves.setdefault(_name(trial, trials), {})[trial.quality] = trial.measures.get(measure, np.nan)
    with figure(folder, measure, wide=6.0) as axes:
        for study, own in curves.items():
            axes.plot([own[quality] for quality in QUALITIES], range(len(QUALITIES)), "o-", markersize=4, label=study)
        axes.set_yticks(range(len(QUALITIES)), list(QUALITIES))
        axes.invert_yaxis()
        axes.set(xlabel=MEASURES[measure])
        axes.legend(frameon=False, fontsize=7)
