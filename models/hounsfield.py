"""Hounsfield units as the networks see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor  # reading of images need not wait for it

AIR_HU = -1024
"""The least value: air, and what was not scanned or lies beyond a volume, in training as in use."""


def whole(hu: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Round Hounsfield units to whole numbers, :data:`AIR_HU` and above."""
    rounded: npt.NDArray[np.int16] = np.rint(hu).clip(AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    return rounded


def rescale(hu: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Clip Hounsfield units to ``bounds`` and rescale them to [0, 1]."""
    low, high = bounds
    return (hu.clamp(low, high) - low) / (high - low)
