"""Where the masks of a study differ most, as a picture to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from app.evaluation.segmentation import Masks
from models.morphology import BoolArray
from operators.orientation import standard_arrangement
from operators.page import window
from operators.volume import CTVolume, FloatArray

MISSED, WRONG, BOTH = "#4aa3ff", "#ff9a3c", "#e8e8e8"
"""Colours of what was missed, of what was found where nothing is, and of the outline of what is right."""
_VEIL = 0.6
_INCHES = 5.0


@dataclass(frozen=True, slots=True)
class Difference:
    """The axial slice in which two masks differ in most voxels.

    Parameters
    ----------
    part : str
        What the masks are of.
    number, slices : int
        Which slice from the feet, counted from 1, and of how many.
    hu : ndarray of float32, shape (rows, columns)
        Rows run to the back, columns to the patient's left.
    truth, found : ndarray of bool, same shape
    aspect : float
        Height of a pixel by its width.
    """

    part: str
    number: int
    slices: int
    hu: FloatArray
    truth: BoolArray
    found: BoolArray
    aspect: float


def greatest_differences(volume: CTVolume, truth: Masks, found: Masks) -> list[Difference]:
    """Return the slice in which lungs, lesions of any type, and affected lung by 2DS differ most.

    Those are left out that nobody has looked for, and those that differ nowhere.

    Parameters
    ----------
    volume : CTVolume
        Of any arrangement.
    truth, found : Masks
        On its grid.
    """
    arrangement = standard_arrangement(volume.grid)
    hu = arrangement.apply(volume.hu)
    _, row, column = arrangement.apply_to_grid(volume.grid).spacing
    pairs = {
        "lungs": (truth.lungs, found.lungs),
        "lesions": (truth.lesions, found.lesions),
        "affected lung by 2DS": (truth.lesions, found.affected),
    }
    differences = []
    for part, (one, other) in pairs.items():
        if one is None or other is None:
            continue
        masks = arrangement.apply(one > 0), arrangement.apply(other > 0)
        counts = np.count_nonzero(masks[0] != masks[1], axis=(1, 2))
        worst = int(counts.argmax())
        if counts[worst]:
            there, seen = (mask[worst] for mask in masks)
            differences.append(Difference(part, worst + 1, len(counts), hu[worst], there, seen, row / column))
    return differences


def draw_differences(differences: Sequence[Difference], path: Path) -> None:
    """Draw slices beside each other, with what was missed and what was wrongly found in colour.

    Parameters
    ----------
    differences : sequence of Difference
        Without any, nothing is written.
    path : Path
        Of a PNG.
    """
    if not differences:
        return
    drawing = Figure(figsize=(_INCHES * len(differences), _INCHES + 0.8), layout="constrained", facecolor="black")
    for axes, one in zip(drawing.subplots(1, len(differences), squeeze=False)[0], differences, strict=True):
        axes.imshow(window(one.hu), cmap="gray", vmin=0.0, vmax=1.0, aspect=one.aspect)
        for mask, colour in ((one.truth & ~one.found, MISSED), (one.found & ~one.truth, WRONG)):
            axes.contourf(mask, [0.5, 1.5], colors=[colour], alpha=_VEIL)
        if (one.truth & one.found).any():
            axes.contour(one.truth & one.found, [0.5], colors=[BOTH], linewidths=0.6)
        axes.set_title(f"{one.part}, slice {one.number} of {one.slices} from the feet", color="white", fontsize=10)
        axes.axis("off")
    for x, text, colour in ((0.02, "missed", MISSED), (0.16, "found where nothing is", WRONG), (0.5, "right", BOTH)):
        drawing.text(x, 0.005, text, color=colour, fontsize=10)
    drawing.savefig(path, dpi=100, metadata={"Software": None})
