"""Hounsfield units as the networks see them."""

from __future__ import annotations

from torch import Tensor

AIR_HU = -1024
"""What lies beyond a volume, in training as in use."""


def rescale(hu: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Clip Hounsfield units to ``bounds`` and rescale them to [0, 1]."""
    low, high = bounds
    return (hu.clamp(low, high) - low) / (high - low)
