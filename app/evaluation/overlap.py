"""How well a mask agrees with the truth: overlap, surfaces, volumes.

A measure is NaN where it is undefined: neither mask holds anything of the class.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics.surface_dice import compute_surface_dice
from scipy import ndimage

from models.morphology import BoolArray, Spacing, dilate


def dice(truth: BoolArray, found: BoolArray) -> float:
    """Return the Dice coefficient of two masks of one shape."""
    total = int(truth.sum()) + int(found.sum())
    return 2.0 * int((truth & found).sum()) / total if total else float("nan")


def surface_dice(truth: BoolArray, found: BoolArray, spacing: Spacing, tolerance: float) -> float:
    """Return the share of both surfaces that is within a distance of the other.

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
    box = _around(truth | found)
    first, second = (torch.from_numpy(np.stack([~mask[box], mask[box]])[None]) for mask in (found, truth))
    return float(compute_surface_dice(first, second, class_thresholds=[tolerance], spacing=list(spacing))[0, 0])


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


def _around(mask: BoolArray) -> tuple[slice, ...]:
    """Return the box that holds a mask with a voxel to spare, so that its surface is not cut."""
    box = []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        box.append(slice(max(int(there[0]) - 1, 0), int(there[-1]) + 2))
    return tuple(box)
