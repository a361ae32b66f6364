"""The pictures of an evaluation, as SVG for pages and PNG for slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import special

from app.evaluation.classification import Classification
from app.evaluation.roc import binormal, roc_curve

_COLOURS = ("#1f5f8b", "#c0562b", "#4b8b3b", "#7a4f9a", "#8a6d3b", "#3f7f7f")
"""One for each model; they differ in lightness, too."""
_DASHES = ("-", "-", "-", "--", "--", "--")
_FEW = 2
"""Curves of so many models leave room for a legend among them."""
_NEGATIVE, _POSITIVE = "#5b7fa6", "#c0562b"


@contextmanager
def figure(folder: Path, name: str, wide: float = 4.6, tall: float = 4.2) -> Iterator[Axes]:
    """Draw into axes and save them as SVG and PNG; the same drawing gives the same SVG."""
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9, "svg.fonttype": "none"}):
        drawing = Figure(figsize=(wide, tall), layout="constrained")
        axes = drawing.add_subplot()
        yield axes
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        drawing.savefig(folder / f"{name}.svg", metadata={"Date": None})
        drawing.savefig(folder / f"{name}.png", dpi=200)


def draw_all(results: Sequence[Classification], folder: Path) -> list[str]:
    """Draw what the results allow; return the names of the pictures, without ending.

    Parameters
    ----------
    results : sequence of Classification
        Of one or several models.
    folder : Path
        Must exist.
    """
    names = ["roc", "reliability", "probabilities"]
    _draw_roc(results, folder)
    _draw_reliability(results, folder)
    _draw_probabilities(results[0], folder)
    if any(each.involvement is not None for each in results[0].cohort.predictions):
        _draw_involvement(results[0], folder)
        names.append("involvement")
    return names


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)


def _tall(results: Sequence[Classification]) -> float:
    """Height of a picture with a legend above it, in inches."""
    return 4.2 + 0.18 * max(0, len(results) - _FEW)


def _draw_roc(results: Sequence[Classification], folder: Path) -> None:
    with figure(folder, "roc", tall=_tall(results)) as axes:
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8)
        for result, colour, dash in zip(results, cycle(_COLOURS), cycle(_DASHES), strict=False):
            curve = roc_curve(result.cohort.labels, result.cohort.probabilities)
            label = f"{result.model}: AUC {result.auc.text}"
            axes.plot(curve.fpr, curve.tpr, color=colour, linestyle=dash, label=label)
        if len(results) == 1:
            _draw_band(results[0], axes)
        axes.axhline(0.95, color="0.6", linewidth=0.6, linestyle=":")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        if len(results) > _FEW:
            _legend_above(axes)
        else:
            axes.legend(loc="lower right", frameon=False)


def _draw_band(result: Classification, axes: Axes) -> None:
    """Add the binormal curve of the logits, where there is one."""
    logits = special.logit(np.clip(result.cohort.probabilities, 1e-6, 1 - 1e-6))
    try:
        fit = binormal(result.cohort.labels, logits)
    except ValueError:  # no spread in a class
        return
    axes.plot(fit.fpr, fit.tpr, color="0.35", linestyle="--", linewidth=0.9, label=f"binormal: AUC {fit.area:.2f}")
    axes.fill_between(fit.fpr, fit.lower, fit.upper, color="0.6", alpha=0.25, linewidth=0, label="its 95 % band")


def _draw_reliability(results: Sequence[Classification], folder: Path) -> None:
    with figure(folder, "reliability", tall=_tall(results)) as axes:
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8)
        for result, colour, dash in zip(results, cycle(_COLOURS), cycle(_DASHES), strict=False):
            found = result.calibration.before
            label = f"{result.model}: ECE {found.expected_error:.3f}"
            axes.plot(found.predicted, found.observed, color=colour, linestyle=dash, linewidth=0.8, label=label)
            axes.scatter(found.predicted, found.observed, s=8 + 120 * found.cases / found.cases.sum(), color=colour)
        axes.set(xlabel="predicted probability", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        _legend_above(axes)


def _draw_probabilities(result: Classification, folder: Path) -> None:
    with figure(folder, "probabilities") as axes:
        parts = [result.cohort.probabilities[result.cohort.labels == label] for label in (0, 1)]
        bins = np.linspace(0, 1, 21).tolist()
        axes.hist(parts, bins=bins, label=["negative", "positive"], color=[_NEGATIVE, _POSITIVE])
        for point in result.points:
            axes.axvline(point.threshold, color="0.4", linewidth=0.7, linestyle=":")
            axes.annotate(point.name, (point.threshold, 1.0), xycoords=("data", "axes fraction"), rotation=90, va="top")
        axes.set(xlabel=f"probability of COVID-19 ({result.model})", ylabel="studies")
        _legend_above(axes)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_involvement(result: Classification, folder: Path) -> None:
    with figure(folder, "involvement") as axes:
        known = [each for each in result.cohort.predictions if each.involvement is not None]
        parts = [[each.involvement for each in known if each.label == label] for label in (0, 1)]
        axes.hist(parts, bins=20, label=["negative", "positive"], color=[_NEGATIVE, _POSITIVE])  # type: ignore[arg-type]
        axes.set(xlabel="involvement of the lungs in %", ylabel="studies")
        _legend_above(axes)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
