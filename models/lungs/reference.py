"""Lung masks from thresholds and morphology: the reference that DeepMedic learns from.

Right where the lungs are healthy or only hazy; dense disease at the pleura is closed over up to a stated
radius. Too slow and too fragile for the product, good enough to teach a network that is neither.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.morphology import (
    BoolArray,
    FloatArray,
    Spacing,
    body_region,
    bounding_box,
    close,
    dilate,
    distance_to,
    split_sides,
)

AERATED_HU = -320.0
"""Aerated lung, ground glass included, lies below; midway between air and soft tissue after smoothing."""
LUMEN_HU = -890.0
"""The lumen of the trachea and the main bronchi lies below this, most lung above."""
MIN_LUNG_ML = 150.0
"""Smaller pockets of air in the body are not a lung."""
PURE_GAS_HU, GAS_HU = -975.0, -920.0
"""Gas in the bowel lies below these after smoothing, lung tissue above the first, and most of it above the second."""
MOSTLY_INSIDE, MOSTLY_OUTSIDE = (0.3, 1.0), (0.01, 0.5)
"""Least and largest share of a pocket of gas that lies in a mask of the lungs."""


def air_in_body(hu: FloatArray, spacing: Spacing) -> BoolArray:
    """Return the air inside the body, in the lungs, the airways or the bowel; shape as ``hu``."""
    smooth = ndimage.gaussian_filter(hu, [0.5 / s for s in spacing])
    return np.asarray(body_region(smooth > AERATED_HU, opening=2) & (smooth < AERATED_HU))


def _trachea_pieces(lumen: BoolArray, spacing: Spacing) -> BoolArray:
    """Mark, in the upper half, the round, mid-sized pieces of lumen near the midline: trachea, or gas beside it."""
    result = np.zeros_like(lumen)
    middle = np.array(lumen.shape[1:]) / 2.0
    reach = np.array(lumen.shape[1:]) * (0.2, 0.1)
    for z in range(lumen.shape[0] // 2, lumen.shape[0]):
        labels, count = ndimage.label(lumen[z])
        areas = ndimage.sum_labels(lumen[z], labels, range(1, count + 1)) * spacing[1] * spacing[2]
        for label in 1 + np.flatnonzero((areas > 60.0) & (areas < 600.0)):
            piece = labels == label
            box = bounding_box(piece)
            height, width = ((s.stop - s.start) * step for s, step in zip(box, spacing[1:], strict=True))
            round_enough = 0.4 < width / height < 2.5 and areas[label - 1] > 0.6 * height * width
            if round_enough and (np.abs(ndimage.center_of_mass(piece) - middle) < reach).all():
                result[z] |= piece
    return result


def airways(hu: FloatArray, spacing: Spacing) -> BoolArray:
    """Return the lumen of the trachea and the main bronchi (and gas in the oesophagus), shape as ``hu``.

    Grown from the trachea at rising thresholds through passages at least 5 mm wide, so that it stops where the
    bronchi enter the lungs; the last threshold that does not leak wins (trachea and main bronchi hold 20 to 110 ml).
    """
    coarse = ndimage.gaussian_filter(hu, [0.6 / s for s in spacing])[:, ::2, ::2]
    step = (spacing[0], 2 * spacing[1], 2 * spacing[2])
    seeds = _trachea_pieces(coarse < LUMEN_HU, step)
    best = np.zeros(coarse.shape, bool)
    for threshold in range(-990, int(LUMEN_HU) + 41, 10):
        lumen = coarse < threshold
        labels, _ = ndimage.label(distance_to(~lumen, step) > 2.0)
        trunk = np.isin(labels, np.setdiff1d(labels[seeds], [0]))
        grown = dilate(trunk, 3.0, step) & lumen
        if grown.sum() * float(np.prod(step)) / 1000.0 > 110.0:
            break
        best = grown
    return np.asarray(best.repeat(2, axis=1).repeat(2, axis=2)[:, : hu.shape[1], : hu.shape[2]])


def _bowel_gas(
    hu: FloatArray, lungs: BoolArray, spacing: Spacing, gas_hu: float, shares: tuple[float, float]
) -> BoolArray:
    """Pockets of gas of which such a share lies in the lowest part of ``lungs``: stomach and colon."""
    height = bounding_box(lungs)[0]
    lowest = height.start + int(0.4 * (height.stop - height.start))
    smooth = ndimage.gaussian_filter(hu[:lowest], [2.0 / s for s in spacing])
    labels, count = ndimage.label(smooth < gas_hu)
    volumes = ndimage.sum_labels(labels > 0, labels, range(1, count + 1)) * float(np.prod(spacing)) / 1000.0
    within = ndimage.sum_labels(lungs[:lowest], labels, range(1, count + 1)) * float(np.prod(spacing)) / 1000.0
    result = np.zeros(hu.shape, bool)
    chosen = (volumes > 2.0) & (within > shares[0] * volumes) & (within <= shares[1] * volumes)
    result[:lowest] = np.isin(labels, 1 + np.flatnonzero(chosen))
    return dilate(result, 6.0, spacing)


def reference_lungs(hu: FloatArray, spacing: Spacing, closing: float = 10.0) -> npt.NDArray[np.uint8]:
    """Return the lung mask of a chest CT: 0 elsewhere, 1 left, 2 right.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units; axes run to the head, to the back and to the patient's left.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    closing : float
        Radius in mm of the closing that takes in vessels and disease at the pleura.

    Raises
    ------
    ValueError
        If no lung is found.
    """
    airway = airways(hu, spacing)
    air = air_in_body(hu, spacing) & ~dilate(airway, 2.0, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000.0
    labels, count = ndimage.label(ndimage.binary_opening(air))
    volumes = ndimage.sum_labels(air, labels, range(1, count + 1)) * voxel_ml
    lungs = np.isin(labels, 1 + np.flatnonzero(volumes > MIN_LUNG_ML))
    if not lungs.any():
        raise ValueError("no lungs found")
    lungs &= ~_bowel_gas(hu, lungs, spacing, PURE_GAS_HU, MOSTLY_INSIDE)
    # what hung on the lung by a bridge that is now cut was bowel, too
    labels, count = ndimage.label(ndimage.binary_opening(lungs))
    volumes = ndimage.sum_labels(lungs, labels, range(1, count + 1)) * voxel_ml
    lungs = np.isin(labels, 1 + np.flatnonzero(volumes > MIN_LUNG_ML))
    result = np.zeros(hu.shape, np.uint8)
    wall = dilate(airway, 2.0, spacing)
    for side, half in enumerate(split_sides(lungs, spacing)[::-1], start=1):
        closed = close(half, closing, spacing)
        # in 3D only: in a slice, the dome of the diaphragm is a hole, too
        closed = ndimage.binary_fill_holes(closed)
        result[closed & ~wall & (result == 0)] = side
    # what lies beyond a thin diaphragm, the closing took in a part of
    result[_bowel_gas(hu, result > 0, spacing, GAS_HU, MOSTLY_OUTSIDE) & ~lungs] = 0
    return result
