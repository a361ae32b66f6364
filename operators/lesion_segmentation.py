"""Multi-class lesion segmentation by 3D U-Net.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4; Tilborghs et al. 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from scipy import ndimage

from models.lesions.network import LesionNetwork, predict
from models.lung_region import MARGIN_MM, lung_region
from models.morphology import bounding_box, distance_to
from operators.findings import Lesions, LesionType, Lungs
from operators.journal import Journal
from operators.orientation import lesions_on, standard_lungs, standard_volume
from operators.resampling import resample, shape_at
from operators.volume import BoolArray, CTVolume, FloatArray, Grid

MIN_LESION_ML = 0.1
"""Smaller specks are noise, vessel ends or mucus."""
MIN_DEPTH_MM = 2.0
"""Thinner layers are the pleura, or the edge of a lung mask that is a little too wide."""


def around_lungs(lungs: Lungs, margin_mm: float) -> tuple[slice, slice, slice]:
    """Return the bounding box of the lungs with a margin, inside the grid."""
    box = bounding_box(lungs.mask)
    z, y, x = (
        slice(max(s.start - round(margin_mm / step), 0), min(s.stop + round(margin_mm / step), size))
        for s, step, size in zip(box, lungs.grid.spacing, lungs.grid.shape, strict=True)
    )
    return z, y, x


def segment_lesions(volume: CTVolume, lungs: Lungs, network: LesionNetwork) -> Lesions:
    """Segment ground glass, consolidation, crazy paving and the combined pattern inside the lungs.

    The network works at its own resolution in the bounding box of the lungs, blanked away from them. Probabilities
    are interpolated to the grid of the CT; a voxel is a lesion where the lesion classes together outweigh background,
    and has the type with the largest probability.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs : Lungs
        On the grid of the CT, not empty.
    network : LesionNetwork
        In evaluation mode.

    Raises
    ------
    ValueError
        If the lungs are on another grid or empty.
    """
    if not lungs.grid.matches(volume.grid):
        raise ValueError("the lungs must be on the grid of the CT")
    upright, upright_lungs = standard_volume(volume), standard_lungs(lungs)
    box = around_lungs(upright_lungs, MARGIN_MM)
    hu, lung = upright.hu[box], upright_lungs.mask[box]
    shape = shape_at(Grid(hu.shape, upright.grid.affine), network.spacing)
    coarse_lung = resample(lung.astype(np.float32), shape) >= 0.5
    image = lung_region(torch.from_numpy(resample(hu, shape)), coarse_lung, network.spacing[1:])
    probability = predict(network, image).numpy()
    affected = (resample(1.0 - probability[0], hu.shape) >= 0.5) & lung
    mask = remove_specks(affected, upright.grid)
    labels = np.zeros(upright.grid.shape, np.uint8)
    labels[box][mask] = _strongest(probability[1:], hu.shape)[mask]
    return lesions_on(volume.grid, Lesions(labels, upright.grid))


def _strongest(probability: FloatArray, shape: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return, at another shape, which lesion type is most probable; one type at a time to bound the memory."""
    best = np.full(shape, -1.0, np.float32)
    winner = np.zeros(shape, np.uint8)
    for kind, values in zip(LesionType, probability, strict=True):
        fine = resample(values, shape)
        winner[fine > best] = kind
        np.maximum(best, fine, out=best)
    return winner


def remove_specks(mask: BoolArray, grid: Grid) -> BoolArray:
    """Drop components below :data:`MIN_LESION_ML`, and slivers nowhere deeper than :data:`MIN_DEPTH_MM`."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    deep = labels[distance_to(~mask, grid.spacing) > MIN_DEPTH_MM]
    large = np.bincount(labels.ravel(), minlength=count + 1) * grid.voxel_ml >= MIN_LESION_ML
    kept = large & (np.bincount(deep, minlength=count + 1) > 0)
    return np.asarray(kept[labels] & mask)


class LesionSegmentationOperator(Operator):
    """Node: inputs ``volume`` and ``lungs``, output ``lesions``."""

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        network: LesionNetwork,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._network = network
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("volume")
        spec.input("lungs")
        spec.output("lesions")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive CT and lungs, segment, emit the lesions."""
        volume: CTVolume = op_input.receive("volume")
        lungs: Lungs = op_input.receive("lungs")
        with self._journal.node("Lesion segmentation") as found:
            lesions = segment_lesions(volume, lungs, self._network)
            ml = np.bincount(lesions.labels.ravel(), minlength=len(LesionType) + 1) * lesions.grid.voxel_ml
            parts = [f"{kind.name.lower().replace('_', ' ')} {ml[kind]:.0f} ml" for kind in LesionType if ml[kind] > 0]
            found(", ".join(parts) or "no lesion")
        op_output.emit(lesions, "lesions")
