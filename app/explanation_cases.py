"""What explanations are judged on: studies whose lesions are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom import Dataset
from scipy import ndimage

from app.outcome import UsageError
from app.phantom import make_phantom
from app.training_data import load_annotated_slices
from models.involvement.training import to_hounsfield
from operators.classification import HU_RANGE, classifier_input
from operators.findings import Lesions, Lungs
from operators.volume import BoolArray, CTVolume, FloatArray, Grid

Mask = Literal["complete", "half"]
FIRST_SEED = 101
"""Of the phantoms: not those of the tests and the demo."""
MOST_SLICES = 100
"""Of a real study; where it has more, evenly spaced ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A study as the classifier sees it, and its lesions.

    Parameters
    ----------
    data : str
        ``phantom`` or ``slices``.
    mask : str
        ``complete``: the input mask holds all lesions. ``half``: every second lesion, by size, is missing there.
    inputs : ndarray of float32, shape (slices, 2, rows, columns)
        CT and lesion mask in [0, 1].
    lungs : ndarray of bool, shape (slices, rows, columns)
    lesions : ndarray of bool, shape (slices, rows, columns)
        All of them.
    target : ndarray of bool, shape (slices, rows, columns)
        Those that a heatmap should point at: all, or those that the input mask lacks.
    """

    data: str
    mask: Mask
    inputs: FloatArray
    lungs: BoolArray
    lesions: BoolArray
    target: BoolArray


def phantom_cases(count: int, in_plane: int) -> Iterator[Case]:
    """Make phantoms, each with both kinds of mask."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        phantom = make_phantom(seed)
        grid = Grid(phantom.hu.shape, np.diag([*phantom.spacing, 1.0])[[2, 1, 0, 3]])
        volume = CTVolume(phantom.hu, grid, (Dataset(),) * len(phantom.hu))
        lungs = Lungs(phantom.lungs, grid)
        inputs, _ = classifier_input(volume, lungs, Lesions(phantom.lesions, grid), in_plane)
        # The lungs as the classifier's input has them: where the mask of all lung would be.
        inside, _ = classifier_input(volume, lungs, Lesions((phantom.lungs > 0).astype(np.uint8), grid), in_plane)
        yield from _both_masks("phantom", inputs[:, 0], inside[:, 1] > 0, inputs[:, 1] > 0)


def slice_cases(path: Path, count: int) -> Iterator[Case]:
    """Read annotated slices, as ``covid-ct train`` takes them, study by study, each with both kinds of mask.

    An array ``volume_guess`` in the file says of which study each slice is; without it all are one study.

    Raises
    ------
    UsageError
        If the file cannot be read.
    """
    try:
        slices = load_annotated_slices(path)
        with np.load(path, allow_pickle=False) as data:
            study = data["volume_guess"] if "volume_guess" in data else np.zeros(len(slices.ct), np.uint8)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} holds no annotated slices; see docs/training.md") from error
    low, high = HU_RANGE
    for name in np.unique(study)[:count]:
        places = np.flatnonzero(study == name)
        places = places[:: -(-places.size // MOST_SLICES)]
        ct, lungs, lesions = slices.ct[places], slices.lungs[places], slices.infection[places]
        hu = np.stack([to_hounsfield(*each) for each in zip(ct, lungs, lesions, strict=True)])
        seen = np.where(lungs, (np.clip(hu, low, high) - low) / (high - low), 0.0).astype(np.float32)
        yield from _both_masks("slices", seen, lungs, lesions)


def _both_masks(data: str, ct: FloatArray, lungs: BoolArray, lesions: BoolArray) -> Iterator[Case]:
    missing = every_second(lesions)
    for mask, given, target in (("complete", lesions, lesions), ("half", lesions & ~missing, missing)):
        inputs = np.stack([ct, given.astype(np.float32)], axis=1)
        if target.any():
            yield Case(data, "complete" if mask == "complete" else "half", inputs, lungs, lesions, target)


def every_second(lesions: BoolArray) -> BoolArray:
    """Take every second lesion, by size, the second largest first; of a single lesion every second slice."""
    labels, count = ndimage.label(lesions)
    sizes = ndimage.sum_labels(lesions, labels, range(1, count + 1))
    missing = np.isin(labels, 1 + np.argsort(sizes)[::-1][1::2])
    if count == 1:
        missing = lesions.copy()
        missing[::2] = False
    return np.asarray(missing)
