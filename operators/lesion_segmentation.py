"""Multi-class lesion segmentation by 3D U-Net.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4; Tilborghs et al. 2020.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from scipy import ndimage

from models.lesions.network import LesionNetwork, predict
from models.lung_region import MARGIN_MM, lung_region
from models.morphology import bounding_box, deeper_than
from operators.findings import Lesions, LesionType, Lungs
from operators.journal import Journal
from operators.orientation import lesions_on, standard_lungs, standard_volume
from operators.resampling import at_least, resample, resampled_parts, shape_at
from operators.volume import BoolArray, CTVolume, FloatArray, Grid, HuArray

MIN_LESION_ML = 0.1
"""Smaller specks are noise, vessel ends or mucus."""
MIN_DEPTH_MM = 2.0
"""Thinner layers are the pleura, or the edge of a lung mask that is a little too wide."""


class Surroundings(NamedTuple):
    """What lesions are looked for in.

    Parameters
    ----------
    grid : Grid
        Of the whole CT, axial from feet to head.
    box : tuple of slice
        Where lungs and margin lie on it; z, y, x.
    hu, lung : ndarray, shape as ``box``
        CT and lungs in the box.
    """

    grid: Grid
    box: tuple[slice, slice, slice]
    hu: HuArray
    lung: BoolArray


def around_lungs(volume: CTVolume, lungs: Lungs, margin_mm: float = MARGIN_MM) -> Surroundings:
    """Cut out the bounding box of the lungs with a margin, as far as it is in the image.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs : Lungs
        On the grid of the CT, not empty.
    margin_mm : float

    Raises
    ------
    ValueError
        If the lungs are on another grid or empty.
    """
    if not lungs.grid.matches(volume.grid):
        raise ValueError("the lungs must be on the grid of the CT")
    volume, lungs = standard_volume(volume), standard_lungs(lungs)
    grid, mask = volume.grid, lungs.mask
    z, y, x = bounding_box(mask, [round(margin_mm / step) for step in grid.spacing])
    return Surroundings(grid, (z, y, x), volume.hu[z, y, x], mask[z, y, x])


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
    grid, box, hu, lung = around_lungs(volume, lungs)
    shape = shape_at(Grid(hu.shape, grid.affine), network.spacing)
    coarse_lung = at_least(lung, shape, 0.5)
    image = lung_region(torch.from_numpy(resample(hu, shape)), coarse_lung, network.spacing[1:])
    probability = predict(network, image).numpy()
    affected = at_least(1.0 - probability[0], hu.shape, 0.5)
    affected &= lung
    mask = remove_specks(affected, grid)
    labels = np.zeros(grid.shape, np.uint8)
    labels[box] = _strongest(probability[1:], hu.shape) * mask
    return lesions_on(volume.grid, Lesions(labels, grid))


def _strongest(probability: FloatArray, shape: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return, at another shape, which lesion type is most probable; of equal ones the first."""
    kinds = np.array(LesionType, np.uint8)
    winner = np.empty(shape, np.uint8)
    for parts in zip(*(resampled_parts(values, shape) for values in probability), strict=True):
        winner[parts[0][0]] = kinds[np.argmax([computed for _, computed in parts], axis=0)]
    return winner


def remove_specks(mask: BoolArray, grid: Grid) -> BoolArray:
    """Drop components below :data:`MIN_LESION_ML`, and slivers nowhere deeper than :data:`MIN_DEPTH_MM`."""
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box])
    voxels = sum(np.bincount(plane.ravel(), minlength=count + 1) for plane in labels)
    kept = np.zeros(count + 1, bool)
    kept[labels[deeper_than(mask, MIN_DEPTH_MM, grid.spacing)[box]]] = True
    kept &= voxels * grid.voxel_ml >= MIN_LESION_ML
    for plane, found in zip(result[box], labels, strict=True):
        plane[...] = kept[found]
    return result


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
            ml = {kind: np.count_nonzero(lesions.labels == kind) * lesions.grid.voxel_ml for kind in LesionType}
            parts = [f"{kind.name.lower().replace('_', ' ')} {ml[kind]:.0f} ml" for kind in LesionType if ml[kind] > 0]
            found(", ".join(parts) or "no lesion")
        op_output.emit(lesions, "lesions")
