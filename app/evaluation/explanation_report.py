"""Tables and pictures of the quality of explanations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.evaluation.explanation_quality import LRP, METHODS, Cascade, Evaluation, Example, Score
from models.morphology import bounding_box
from models.relevance.quality import FRACTIONS
from operators.page import RELEVANCE_COLORS
from operators.software import RESEARCH_NOTICE

COLORS = ("#d55e00", "#0072b2", "#000000", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#999999")
"""Of the methods; Okabe and Ito, distinct to colour-blind people."""
_MASKS = {"complete": "all lesions in the input mask", "half": "half of the lesions missing from it, these are scored"}


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write ``explanation.json``, ``explanation.md`` and the pictures."""
    content = {name: [asdict(each) for each in getattr(evaluation, name)] for name in ("scores", "cascades")}
    (folder / "explanation.json").write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
    tables = [RESEARCH_NOTICE, "", *_score_tables(evaluation.scores), *_cascade_table(evaluation.cascades)]
    (folder / "explanation.md").write_text("\n".join(tables) + "\n", "utf-8")
    _draw_deletion(evaluation.scores, folder / "deletion.png")
    _draw_cascades(evaluation.cascades, folder / "randomisation.png")
    for example in evaluation.examples:
        _draw_example(example, folder / f"example_{example.case.data}_{example.case.mask}.png")


def _groups(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.data, score.mask), []).append(score)
    return groups


def _score_tables(scores: Sequence[Score]) -> list[str]:
    lines = []
    for (data, mask), group in _groups(scores).items():
        studies = len(group) // len(METHODS)
        area, inside = (np.mean([getattr(score, name) for score in group]) for name in ("area", "area_in_lungs"))
        lines += [
            f"**{data}, {_MASKS[mask]}** ({studies} studies; the lesions are {100 * area:.2f} % of the image, "
            f"{100 * inside:.1f} % of the lungs):",
            "",
            "| method | mass | x area | mass in lungs | x area in lungs | rank | pointing | deletion |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(method, [score for score in group if score.method == method]) for method in METHODS]
        lines.append("")
    return lines


def _row(method: str, scores: Sequence[Score]) -> str:
    def mean(name: str) -> float:
        return float(np.mean([getattr(score, name) for score in scores]))

    times = np.mean([score.mass / score.area for score in scores])
    times_in_lungs = np.mean([score.mass_in_lungs / score.area_in_lungs for score in scores])
    areas = [score.deletion for score in scores if score.deletion is not None]
    cells = (
        f"{mean('mass'):.3f} | {times:.1f} | {mean('mass_in_lungs'):.3f} | {times_in_lungs:.1f}",
        f"{mean('rank'):.3f} | {mean('pointing'):.3f} | {f'{np.mean(areas):.3f}' if areas else '-'}",
    )
    return f"| {method} | {' | '.join(cells)} |"


def _cascade_table(cascades: Sequence[Cascade]) -> list[str]:
    layers = cascades[0].layers
    lines = [
        "Rank correlation with the true heatmap, layers randomised from the output on (mean, and lowest to highest):",
        "",
        f"| data | heatmap | {' | '.join(layers)} |",
        "|---|---" + "|---" * len(layers) + "|",
    ]
    for data in dict.fromkeys(each.data for each in cascades):
        for name in LRP:
            for kind in ("signed", "absolute"):
                values = np.array([getattr(each, kind)[name] for each in cascades if each.data == data])
                cells = [f"{v.mean():.2f} ({v.min():.2f} to {v.max():.2f})" for v in values.T]
                lines.append(f"| {data} | {name}, {kind} | {' | '.join(cells)} |")
    return lines


def _draw_deletion(scores: Sequence[Score], target: Path) -> None:
    groups = {data: group for (data, mask), group in _groups(scores).items() if mask == "complete"}
    figure = Figure(figsize=(6.5 * len(groups), 5), layout="constrained")
    for k, (data, group) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), k + 1)
        for method, color in zip(METHODS, COLORS, strict=True):
            curves = [score.curve for score in group if score.method == method and score.curve is not None]
            curve = np.mean(curves, axis=0)
            axes.plot(100 * np.array(FRACTIONS), curve, color=color, label=method, marker=".")
        axes.set(title=data, xlabel="deleted lung, %", ylabel="probability of COVID-19")
        axes.set_xscale("symlog", linthresh=1)
    axes.legend(fontsize=8)
    _save(figure, target)


def _draw_cascades(cascades: Sequence[Cascade], target: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    layers = ["none", *cascades[0].layers]
    for name, color in zip(LRP, COLORS, strict=False):
        for kind, style in (("signed", "-"), ("absolute", ":")):
            values = np.array([[1.0, *getattr(each, kind)[name]] for each in cascades])
            axes.plot(layers, values.mean(0), style, color=color, marker=".", label=f"{name}, {kind}")
            axes.fill_between(layers, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    axes.axhline(0.0, color="#999999", linewidth=0.5)
    axes.set(xlabel="randomised down to", ylabel="rank correlation with the true heatmap", ylim=(-1.05, 1.05))
    axes.legend(fontsize=8)
    _save(figure, target)


def _draw_example(example: Example, target: Path) -> None:
    """Draw the slice with most lesion: CT, and every heatmap in the lungs with the outline of the lesions."""
    case = example.case
    place = int(case.target.sum(axis=(1, 2)).argmax())
    crop = bounding_box(case.lungs)[1:]
    figure = Figure(figsize=(16, 9), layout="constrained")
    for k, (name, values) in enumerate([("CT", case.inputs[:, 0]), *example.heatmaps.items()]):
        axes = figure.add_subplot(3, 3, k + 1)
        axes.imshow(case.inputs[place, 0][crop], cmap="gray", vmin=0.0, vmax=0.9)
        shown = np.where(case.lungs[place], values[place], 0.0)[crop]
        limit = float(np.percentile(np.abs(shown), 99.5))
        if k and limit > 0:
            visible = np.clip(3 * np.abs(shown) / limit, 0.0, 1.0)
            axes.imshow(shown, cmap=RELEVANCE_COLORS, vmin=-limit, vmax=limit, alpha=visible)
        axes.contour(case.target[place][crop], [0.5], colors="white", linewidths=0.7)
        axes.set_title(name)
        axes.axis("off")
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(target, dpi=80)
