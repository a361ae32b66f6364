"""Lung segmentation by 3D DeepMedic.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4; Tilborghs et al. 2020.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from scipy import ndimage

from models.lungs.network import DeepMedic, predict
from models.lungs.reference import AERATED_HU
from models.morphology import SECOND_LUNG, Spacing, body_region, close, dilate, distance_to, split_sides
from operators.findings import Lung, Lungs
from operators.journal import Journal
from operators.orientation import lungs_on, standard_volume
from operators.refusal import no_lungs
from operators.resampling import resample, resampled_parts, shape_at
from operators.volume import BoolArray, CTVolume, FloatArray, Grid, LabelArray, plane_areas

LUNG_PROBABILITY = 0.45
"""Lung at or above; where over- and under-segmentation of the training volumes balance."""
MAX_OUTSIDE = 0.05
"""Larger pieces of a lung mask, as a share of it in the slices where they lie, are not air under clothes."""
BESIDE_BODY_MM = 20.0
"""Farther from tissue no lung is looked for, unless it reaches so far: a field of view may cut the chest wall away."""
BRIDGES_MM, BOWEL_ML = (4.0, 8.0), 2.0
"""Half of the width of a bridge by which bowel hangs on a lung, and the least volume of its core beyond it. The wider
one is that of thick slices, the narrower one finds smaller pieces."""
EMPTIER_HU, LOWEST = 60.0, 0.4
"""By how much bowel gas is lighter than the lungs, and the part of their height in which it lies."""
RIM_MM, RIM_HU = 6.0, -400.0
"""How thick a shell of lung may be that the network has left out, and below what it is aerated for sure."""
RIM_MEDIASTINAL_MM = 4.0
"""Up to here from what lies between the lungs no shell is taken in: the bronchi enter."""
PLEURAL_MM, MEDIASTINAL_MM = 10.0, 4.0
"""Radius of the closing over dense disease at the pleura, and of that near the mediastinum, where vessels enter."""
HILUM_MM = 8.0
"""How far from what lies between the lungs the second radius holds."""
MIN_LUNG_ML = 100.0
"""Smaller components are not a lung."""


def segment_lungs(volume: CTVolume, network: DeepMedic) -> Lungs:
    """Segment both lungs, without trachea and main bronchi, with disease of any density.

    The network works at its own resolution; its probability is interpolated to the grid of the CT and cut at
    :data:`LUNG_PROBABILITY`. What lies outside the body is left out, and bowel. Kept are all components of lung size,
    for dense disease may part a lung; holes are filled, a thin shell of aerated lung is taken in, and each lung is
    closed over dense disease at its surface. Left and right are told apart in the patient coordinate system.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    network : DeepMedic
        In evaluation mode.

    Raises
    ------
    InputRefused
        NO_LUNGS if nothing of the size of a lung is found.
    """
    upright = standard_volume(volume)
    grid = upright.grid.resampled(shape_at(upright.grid, network.spacing))
    hu = resample(upright.hu, grid.shape)
    probability = predict(network, torch.from_numpy(hu), near_body(hu, grid.spacing)).numpy()
    likely = probability >= LUNG_PROBABILITY
    inside = without_bowel(within_body(likely, hu), hu, grid.spacing)
    probability[likely & ~inside] = 0.0
    sides = with_rim(label_sides(lung_components(inside, grid), grid), hu, grid.spacing)
    sides = close_sides(sides, grid.spacing)
    return lungs_on(volume.grid, Lungs(_refine(probability, sides, upright.grid), upright.grid))


def near_body(hu: FloatArray, spacing: Spacing) -> BoolArray:
    """Mark what lies up to :data:`BESIDE_BODY_MM` from tissue, in the three directions of the grid.

    All tissue counts, not that of the largest piece alone: a field of view may cut the body into several.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    """
    tissue = ndimage.binary_opening(hu > AERATED_HU)
    reach = [2 * math.ceil(BESIDE_BODY_MM / step) + 1 for step in spacing]
    return np.asarray(ndimage.maximum_filter(tissue, reach))


def within_body(mask: BoolArray, hu: FloatArray) -> BoolArray:
    """Take what lies outside the body out of a lung mask: air under clothes looks like lung.

    Only pieces are taken out that are small beside the lungs of the same slices, at most :data:`MAX_OUTSIDE` of them,
    and do not touch the end of the field of view. Where a field of view, a thin chest wall or the shoulders open the
    body, its inside cannot be told from its outside, and whole lungs would seem to lie outside.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
        Lung mask; slices are axial.
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units.
    """
    pieces, count = ndimage.label(mask & ~body_region(hu > AERATED_HU, opening=1))
    areas = plane_areas(mask)
    taken = np.zeros(count + 1, bool)
    for number, where in enumerate(ndimage.find_objects(pieces), start=1):
        size = np.count_nonzero(pieces[where] == number)
        at_edge = any(where[axis].start == 0 or where[axis].stop == mask.shape[axis] for axis in (1, 2))
        taken[number] = not at_edge and size <= MAX_OUTSIDE * areas[where[0]].sum()
    inside: BoolArray = mask & ~taken[pieces]
    return inside


def without_bowel(mask: BoolArray, hu: FloatArray, spacing: Spacing) -> BoolArray:
    """Take stomach and colon out of a lung mask: below a thin diaphragm they look like lung.

    Taken out is what hangs on the rest by no more than a bridge, lies low, and is filled with gas rather than lung.

    Parameters
    ----------
    mask : ndarray of bool, shape (z, y, x)
        Lung mask; z runs to the head.
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    """
    for bridge in BRIDGES_MM:
        mask = _without_low_gas(mask, hu, spacing, bridge)
    return mask


def _without_low_gas(mask: BoolArray, hu: FloatArray, spacing: Spacing, bridge: float) -> BoolArray:
    cores, count = ndimage.label(distance_to(~mask, spacing) > bridge)
    if count < 2:
        return mask
    numbers = np.arange(1, count + 1)
    where = np.nonzero(cores)
    core = cores[where]
    voxels = np.bincount(core)[1:]
    sizes = voxels * float(np.prod(spacing)) / 1000.0
    contents = np.array(ndimage.median(hu[where], core, numbers))
    heights = np.bincount(core, where[0])[1:] / voxels
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    low = heights < slices[0] + LOWEST * (slices[-1] - slices[0])
    gas = contents < contents[sizes.argmax()] - EMPTIER_HU
    bowel = np.isin(cores, numbers[low & gas & (sizes >= BOWEL_ML)])
    if not bowel.any():
        return mask
    nearer: BoolArray = distance_to(bowel, spacing) < distance_to((cores > 0) & ~bowel, spacing)
    return mask & ~nearer


def lung_components(mask: BoolArray, grid: Grid) -> BoolArray:
    """Keep the components that can be lungs, and fill their holes.

    Raises
    ------
    InputRefused
        NO_LUNGS if no component has :data:`MIN_LUNG_ML`.
    """
    labels, count = ndimage.label(mask)
    volumes = ndimage.sum_labels(mask, labels, range(1, count + 1)) * grid.voxel_ml
    large = np.flatnonzero(volumes >= max(MIN_LUNG_ML, SECOND_LUNG * volumes.max(initial=0.0)))
    if not large.size:
        raise no_lungs()
    return np.asarray(ndimage.binary_fill_holes(np.isin(labels, large + 1)))


def label_sides(mask: BoolArray, grid: Grid) -> LabelArray:
    """Give every voxel of a lung mask its :class:`Lung`; left and right are the patient's (LPS: left is +x)."""
    low, high = split_sides(mask, grid.spacing)
    to_left = grid.affine[0, 2] > 0  # does the column index run to the patient's left?
    left, right = (high, low) if to_left else (low, high)
    return (np.uint8(Lung.LEFT) * left + np.uint8(Lung.RIGHT) * right).astype(np.uint8)


def with_rim(sides: LabelArray, hu: FloatArray, spacing: Spacing) -> LabelArray:
    """Take in the aerated lung at the surface of each lung that is left out in CTs unlike those learned from.

    It is denser than gas, hangs on the lung, is at most :data:`RIM_MM` thick, and lies on no side where bronchi enter
    (docs/reference_weights.md, "An aerated rim").

    Parameters
    ----------
    sides : ndarray of uint8, shape (z, y, x)
        :class:`Lung` of each voxel, 0 elsewhere; slices are axial.
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    """
    lungs = sides > 0
    aerated = (hu < RIM_HU) & (hu > np.median(hu[lungs]) - EMPTIER_HU)
    near = dilate(lungs, RIM_MM, spacing) & ~dilate(_between(sides), RIM_MEDIASTINAL_MM, spacing)
    pieces, _ = ndimage.label(lungs | (aerated & near))
    rim = np.isin(pieces, np.unique(pieces[lungs])) & ~lungs
    result = sides.copy()
    result[rim] = np.where(_nearer_left(sides, spacing)[rim], Lung.LEFT, Lung.RIGHT)
    return result


def close_sides(sides: LabelArray, spacing: Spacing) -> LabelArray:
    """Close each lung over what dents it: consolidation, nodules and mucus at the pleura belong to the lung.

    By a ball of :data:`PLEURAL_MM`, but up to :data:`HILUM_MM` from what lies between the two lungs of an axial row
    by one of :data:`MEDIASTINAL_MM`, for the larger one would take in the hilum.

    Parameters
    ----------
    sides : ndarray of uint8, shape (z, y, x)
        :class:`Lung` of each voxel, 0 elsewhere; slices are axial.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    """
    medial = dilate(_between(sides), HILUM_MM, spacing)
    result = sides.copy()
    for side in Lung:
        lung = sides == side
        closed = np.where(medial, close(lung, MEDIASTINAL_MM, spacing), close(lung, PLEURAL_MM, spacing))
        result[ndimage.binary_fill_holes(closed) & (result == 0)] = side
    return result


def _between(sides: LabelArray) -> BoolArray:
    """Mark what lies between the two lungs of an axial row."""
    before, after = _last_in_row(sides), _last_in_row(sides[..., ::-1])[..., ::-1]
    return np.asarray((before > 0) & (after > 0) & (before != after))


def _nearer_left(sides: LabelArray, spacing: Spacing) -> BoolArray:
    """Say of each voxel whether the left lung is nearer to it than the right one."""
    left, right = (
        distance_to(sides == side, spacing) if (sides == side).any() else np.full(sides.shape, np.inf)
        for side in (Lung.LEFT, Lung.RIGHT)
    )
    return np.asarray(left < right)


def _last_in_row(sides: LabelArray) -> LabelArray:
    """Return, for each voxel, the label of the last lung voxel up to it in its row; 0 where there is none."""
    column = np.where(sides > 0, np.arange(sides.shape[-1]), 0)
    return np.take_along_axis(sides, np.maximum.accumulate(column, axis=-1), axis=-1)


def _refine(probability: FloatArray, sides: LabelArray, grid: Grid) -> LabelArray:
    """Bring side labels to the grid of the CT: the border follows the interpolated probability."""
    unit = (1.0, 1.0, 1.0)
    kept = ndimage.binary_dilation(sides > 0)  # the interpolated border may lie up to a voxel outside
    smooth = np.where(kept, np.where((sides > 0) & (probability < LUNG_PROBABILITY), 1.0, probability), 0.0)
    labels = np.zeros(grid.shape, np.uint8)
    both = (resampled_parts(values, grid.shape) for values in (smooth, _nearer_left(sides, unit)))
    for (part, fine), (_, nearer_left) in zip(*both, strict=True):
        labels[part] = np.where(nearer_left >= 0.5, Lung.LEFT, Lung.RIGHT) * (fine >= LUNG_PROBABILITY)
    return labels


class LungSegmentationOperator(Operator):
    """Node: input ``volume``, output ``lungs``."""

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        network: DeepMedic,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._network = network
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("volume")
        spec.output("lungs")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the CT, segment, emit the lungs."""
        volume: CTVolume = op_input.receive("volume")
        with self._journal.node("Lung segmentation") as found:
            lungs = segment_lungs(volume, self._network)
            litres = [np.count_nonzero(lungs.labels == side) * lungs.grid.voxel_ml / 1000 for side in Lung]
            found(f"{sum(litres):.1f} L lung")
            found(f"left {litres[0]:.1f} L, right {litres[1]:.1f} L")
        op_output.emit(lungs, "lungs")
