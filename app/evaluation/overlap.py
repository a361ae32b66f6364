"""How well a mask agrees with the truth: overlap, surfaces, volumes.

A measure is NaN where it is undefined: neither mask holds anything of the class.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from models.morphology import BoolArray, Spacing, bounding_box, dilate, distance_to


def dice(truth: BoolArray, found: BoolArray) -> float:
    """Return the Dice coefficient of two masks of one shape."""
    total = int(truth.sum()) + int(found.sum())
    return 2.0 * int((truth & found).sum()) / total if total else float("nan")


def surface_dice(truth: BoolArray, found: BoolArray, spacing: Spacing, tolerance: float) -> float:
    """Return the share of both surfaces that is within a distance of the other, counted in voxels.

    A mask that goes on where the image ends has no surface there.

    Parameters
    ----------
    truth, found : ndarray of bool, shape (z, y, x)
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    tolerance : float
        Distance in mm.

    References
    ----------
    Nikolov et al., arXiv:1809.04430.
    """
    if not truth.any() and not found.any():
        return float("nan")
    if not truth.any() or not found.any():
        return 0.0
    box = bounding_box(truth | found, (1, 1, 1))
    first, second = (_surface(mask[box]) for mask in (truth, found))
    count = int(first.sum()) + int(second.sum())
    near = _within(first, second, spacing, tolerance) + _within(second, first, spacing, tolerance)
    return near / count if count else 1.0


def _surface(mask: BoolArray) -> BoolArray:
    """Return the voxels of a mask that touch what is not in it. Where the image ends, nothing is known beyond."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=1))


def _within(surface: BoolArray, other: BoolArray, spacing: Spacing, tolerance: float) -> int:
    """Count the voxels of a surface that are within a distance of the other."""
    return int((distance_to(other, spacing)[surface] <= tolerance).sum()) if other.any() else 0


def outside_ml(truth: BoolArray, found: BoolArray, spacing: Spacing, tolerance: float) -> float:
    """Return the ml of the largest connected piece of ``found`` farther than ``tolerance`` mm from the truth."""
    labels, count = ndimage.label(found & ~dilate(truth, tolerance, spacing))
    return float(np.bincount(labels.ravel())[1:].max()) * float(np.prod(spacing)) / 1000.0 if count else 0.0


def volume_ml(mask: BoolArray, spacing: Spacing) -> float:
    """Return the volume of a mask in ml."""
    return float(mask.sum()) * float(np.prod(spacing)) / 1000.0


def percent(part: BoolArray, whole: BoolArray) -> float:
    """Return how much of ``whole`` lies in ``part``, in percent."""
    total = int(whole.sum())
    return 100.0 * int((part & whole).sum()) / total if total else float("nan")
