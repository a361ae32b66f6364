"""The same CT as other scanners and protocols would give it: slices, kernel, offset, noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from app.phantom.scanner import smooth
from models.hounsfield import AIR_HU
from models.morphology import Spacing
from operators.resampling import resample
from operators.volume import FloatArray

Image = tuple[FloatArray, Spacing]
"""Hounsfield units (z, y, x), and the voxel size in mm along z, y, x."""
Quality = Callable[[FloatArray, Spacing, np.random.Generator], Image]
SMOOTH_MM, SHARP_MM, SHARPENING = 1.0, 0.8, 1.0
"""Standard deviation of a smooth kernel; that and the weight of the unsharp mask that stands for a sharp one."""


def _as_is(hu: FloatArray, spacing: Spacing, rng: np.random.Generator) -> Image:
    return hu, spacing


def _slices(hu: FloatArray, spacing: Spacing, rng: np.random.Generator, *, thickness: float) -> Image:
    """Slices of another thickness, without gaps, over the same extent; averaged where they get thicker."""
    extent = hu.shape[0] * spacing[0]
    count = max(1, round(extent / thickness))
    return resample(hu, (count, *hu.shape[1:])), (extent / count, *spacing[1:])


def _smooth(hu: FloatArray, spacing: Spacing, rng: np.random.Generator) -> Image:
    return smooth(hu, spacing, SMOOTH_MM), spacing


def _sharp(hu: FloatArray, spacing: Spacing, rng: np.random.Generator) -> Image:
    return _seen(hu + SHARPENING * (hu - smooth(hu, spacing, SHARP_MM))), spacing


def _offset(hu: FloatArray, spacing: Spacing, rng: np.random.Generator, *, by: float) -> Image:
    return _seen(hu + np.float32(by)), spacing


def _noise(hu: FloatArray, spacing: Spacing, rng: np.random.Generator, *, deviation: float) -> Image:
    return _seen(hu + rng.normal(0.0, deviation, hu.shape).astype(np.float32)), spacing


def _seen(hu: FloatArray) -> FloatArray:
    return np.maximum(hu, np.float32(AIR_HU))


AS_IS = "as it is"
QUALITIES: Mapping[str, Quality] = {
    AS_IS: _as_is,
    "slices of 0.7 mm": partial(_slices, thickness=0.7),
    "slices of 5 mm": partial(_slices, thickness=5.0),
    "slices of 10 mm": partial(_slices, thickness=10.0),
    "smooth kernel": _smooth,
    "sharp kernel": _sharp,
    "50 HU higher": partial(_offset, by=50.0),
    "50 HU lower": partial(_offset, by=-50.0),
    "noise of 60 HU": partial(_noise, deviation=60.0),
}
"""What is done to a CT, by name; :data:`AS_IS` first."""
