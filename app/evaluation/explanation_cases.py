"""What explanations are judged on: studies whose lesions are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from app.cohort.images import bare_volume
from app.cohort.preparation import input_and_lung
from app.cohort.slices import PIXEL_MM, AnnotatedSlices, to_hounsfield
from app.phantom import make_phantom
from operators.classification import SLICE_MM
from operators.findings import Lesions, Lungs
from operators.refusal import InputRefused
from operators.volume import BoolArray, CTVolume, FloatArray, LabelArray

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
    name : str
        ``phantom`` or ``slices``, with a number.
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

    name: str
    mask: Mask
    inputs: FloatArray
    lungs: BoolArray
    lesions: BoolArray
    target: BoolArray

    @property
    def data(self) -> str:
        """``phantom`` or ``slices``."""
        return self.name.partition(" ")[0]

    @property
    def judged(self) -> BoolArray:
        """Where a heatmap is judged: the lungs without those lesions that are no target."""
        return self.lungs & ~(self.lesions & ~self.target)


def phantom_cases(count: int, in_plane: int) -> Iterator[Case]:
    """Make phantoms, each with both kinds of mask."""
    for number in range(count):
        phantom = make_phantom(FIRST_SEED + number)
        volume = bare_volume(phantom.hu, phantom.spacing)
        yield from _both_masks(f"phantom {number + 1}", *_seen(volume, phantom.lungs, phantom.lesions, in_plane))


def slice_cases(slices: AnnotatedSlices, count: int, in_plane: int) -> Iterator[Case]:
    """Take the first studies of annotated slices, as if as far apart as the classifier's, with both kinds of mask."""
    for number, name in enumerate(np.unique(slices.study)[:count]):
        places = np.flatnonzero(slices.study == name)
        places = places[:: -(-places.size // MOST_SLICES)]
        ct, lungs, lesions = slices.ct[places], slices.lungs[places], slices.infection[places]
        hu = np.stack([to_hounsfield(*each) for each in zip(ct, lungs, strict=True)])
        volume = bare_volume(hu, (SLICE_MM, PIXEL_MM, PIXEL_MM))
        try:
            seen = _seen(volume, lungs.astype(np.uint8), lesions.astype(np.uint8), in_plane)
        except InputRefused:  # no lung, at this size
            continue
        yield from _both_masks(f"slices {number + 1}", *seen)


def _seen(
    volume: CTVolume, lungs: LabelArray, lesions: LabelArray, in_plane: int
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Return CT, lungs and lesions as the classifier's input has them."""
    inputs, inside, _ = input_and_lung(volume, Lungs(lungs, volume.grid), Lesions(lesions, volume.grid), in_plane)
    return inputs[:, 0], inside, inputs[:, 1] > 0


def _both_masks(name: str, ct: FloatArray, lungs: BoolArray, lesions: BoolArray) -> Iterator[Case]:
    """Both cases of a study; none where it has no lesion, or no lung without lesions to compare with."""
    if not (lungs & ~lesions).any() or not lesions.any():
        return
    missing = every_second(lesions)
    yield Case(name, "complete", np.stack([ct, lesions.astype(np.float32)], axis=1), lungs, lesions, lesions)
    if missing.any():
        given = (lesions & ~missing).astype(np.float32)
        yield Case(name, "half", np.stack([ct, given], axis=1), lungs, lesions, missing)


def every_second(lesions: BoolArray) -> BoolArray:
    """Take every second lesion, by size, the second largest first; of a single lesion every second slice."""
    labels, count = ndimage.label(lesions)
    sizes = ndimage.sum_labels(lesions, labels, range(1, count + 1))
    missing = np.isin(labels, 1 + np.argsort(sizes)[::-1][1::2])
    if count == 1:
        missing = lesions.copy()
        missing[::2] = False
    return np.asarray(missing)
