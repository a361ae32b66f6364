"""The lung region as both lesion networks see it (paper, section 4.1): lungs and pleura, not the body."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.hounsfield import rescale
from models.morphology import BoolArray

MARGIN_MM = 15.0
"""What lies farther from the lungs within an axial slice is blanked."""
HU_RANGE = (-1000.0, 400.0)
"""Hounsfield units are clipped to this range and rescaled to [0, 1]."""


def margins(pixel: tuple[float, float]) -> tuple[int, int]:
    """Return :data:`MARGIN_MM` in whole pixels of so many mm along y and x: lung beyond a patch may be near, too."""
    return math.ceil(MARGIN_MM / pixel[0]), math.ceil(MARGIN_MM / pixel[1])


def near_lungs(lung: BoolArray, pixel: tuple[float, float]) -> BoolArray:
    """Mark what lies within :data:`MARGIN_MM` of lung in the same slice.

    Parameters
    ----------
    lung : ndarray of bool, shape (slices, rows, columns)
    pixel : tuple of float
        In mm along y, x.
    """
    near = np.zeros_like(lung)
    for number in np.flatnonzero(lung.any(axis=(1, 2))):
        near[number] = ndimage.distance_transform_edt(~lung[number], sampling=pixel) <= MARGIN_MM
    return near


def lung_region(hu: Tensor, lung: BoolArray, pixel: tuple[float, float]) -> Tensor:
    """Return what a lesion network sees of a CT.

    Parameters
    ----------
    hu : Tensor of float32, shape (slices, rows, columns)
        Hounsfield units.
    lung : ndarray of bool, shape as ``hu``
    pixel : tuple of float
        In mm along y, x.
    """
    return normalise(hu, torch.from_numpy(near_lungs(lung, pixel)))


def normalise(hu: Tensor, near: Tensor) -> Tensor:
    """Clip Hounsfield units to :data:`HU_RANGE`, rescale them to [0, 1], and blank what is not near the lungs."""
    return rescale(hu, HU_RANGE) * near
