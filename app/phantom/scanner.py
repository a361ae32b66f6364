"""The same patient on another scanner: kernel, slice thickness and noise, on the grid of the CT."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from models.hounsfield import AIR_HU
from models.morphology import Spacing
from operators.volume import FloatArray

SMOOTH_MM, SHARP_MM, SHARPENING = 1.0, 0.8, 1.0
"""Greatest standard deviation of a smooth kernel; that and the greatest weight of the unsharp mask of a sharp one."""
THICKEST_MM, NOISE_HU = 6.0, 40.0
"""Thickest slices, and the greatest standard deviation of the noise."""


def scanned(hu: FloatArray, spacing: Spacing, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Vary the quality of a CT: a smooth or a sharp kernel, thicker overlapping slices, and noise, each or none.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    rng : numpy Generator

    Returns
    -------
    hu : ndarray of float32
        On the same grid.
    noise : float
        Standard deviation of the noise in HU.
    """
    kernel, strength = rng.random(), rng.random()
    if kernel < 0.3:
        hu = smooth(hu, spacing, SMOOTH_MM * strength)
    elif kernel < 0.6:
        hu = hu + np.float32(SHARPENING * strength) * (hu - smooth(hu, spacing, SHARP_MM))
    thickness = rng.uniform(1.0, THICKEST_MM)
    if rng.random() < 0.5 and thickness > spacing[0]:
        hu = thick(hu, spacing, thickness)
    noise = float(rng.uniform(0.0, NOISE_HU)) if rng.random() < 0.6 else 0.0
    if noise:
        hu = hu + np.float32(noise) * rng.standard_normal(hu.shape, dtype=np.float32)
    return np.maximum(hu, np.float32(AIR_HU)), noise


def thick(hu: FloatArray, spacing: Spacing, thickness: float) -> FloatArray:
    """Average over so many mm along z, centred on each slice."""
    half = thickness / spacing[0] / 2.0
    reach = int(np.ceil(half - 0.5))
    weights = np.clip(half + 0.5 - np.abs(np.arange(-reach, reach + 1)), 0.0, 1.0)  # what of each slice lies within
    result: FloatArray = ndimage.correlate1d(hu, weights / weights.sum(), axis=0, mode="nearest")
    return result


def smooth(hu: FloatArray, spacing: Spacing, deviation: float) -> FloatArray:
    """Smooth slices (z, y, x) in their plane by a Gaussian of so many mm."""
    result: FloatArray = ndimage.gaussian_filter(hu, (0.0, deviation / spacing[1], deviation / spacing[2]))
    return result
