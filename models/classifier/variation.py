"""Slices as other patients and scanners would have given them, for classifiers that learn from few."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd
from monai.transforms.utility.dictionary import EnsureTyped
from torch import Tensor

from models.classifier.network import HU_RANGE
from models.training.patches import (
    KERNEL_CHANGED,
    NOISE_HU,
    OFFSET_HU,
    OVERSHOOT,
    ROTATION,
    SCALE,
    SHARP,
    SOFT,
    draw_inflation,
    inflate,
)

SHIFT = 0.04
"""Share of the slice by which it is moved at most."""
_LEAST, _RANGE = HU_RANGE[0], HU_RANGE[1] - HU_RANGE[0]
_CT, _SHARE, _LESION, _LUNG = "ct", "share", "lesion", "lung"


def varied(slices: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary slices of one study, all alike, in position, size and side, air in the lungs, kernel, noise and offset.

    Lungs stay cut out: what the kernel mixes in from outside is not known there, so it is left out of the mixture.

    Parameters
    ----------
    slices : Tensor, shape (n, 3, H, W)
        CT in [0, 1], lesion mask and lung mask.
    rng : numpy Generator

    Returns
    -------
    Tensor
        Of the same shape.
    """
    ct, lesion, lung = slices.unbind(1)
    if (factor := draw_inflation(rng)) is not None:
        ct = (inflate(ct * _RANGE + _LEAST, lung, factor) - _LEAST) / _RANGE
    vary = _variation(ct.shape[-2:])
    vary.set_random_state(int(rng.integers(2**32)))
    seen: dict[str, Tensor] = vary({_CT: ct, _SHARE: lung, _LESION: lesion, _LUNG: lung})
    inside = (seen[_LUNG] > 0.5) & (seen[_SHARE] > 0.5)
    intensity = (seen[_CT] / seen[_SHARE].where(inside, 1.0)).where(inside, 0.0)
    noisy = _noise()
    noisy.set_random_state(int(rng.integers(2**32)))
    intensity = noisy({_CT: intensity})[_CT].clamp(0.0, 1.0).where(inside, 0.0)
    marked = (seen[_LESION] > 0.5) & inside
    return torch.stack([intensity, marked.to(slices.dtype), inside.to(slices.dtype)], dim=1)


def _variation(size: torch.Size) -> Compose:
    """Vary what is linear in the image: the share of lung goes through the same, and corrects the rim."""
    turn, linear = np.deg2rad(ROTATION), (_CT, _SHARE)
    names = (*linear, _LESION, _LUNG)
    return Compose(
        [
            RandGaussianSmoothd(linear, sigma_x=SOFT, sigma_y=SOFT, prob=KERNEL_CHANGED),
            RandGaussianSharpend(
                linear,
                sigma1_x=SHARP,
                sigma1_y=SHARP,
                sigma2_x=SOFT,
                sigma2_y=SOFT,
                alpha=OVERSHOOT,
                prob=KERNEL_CHANGED,
            ),
            RandAffined(
                names,
                prob=1.0,
                rotate_range=turn,
                scale_range=((-SCALE, SCALE), (-SCALE, SCALE)),
                translate_range=[SHIFT * side for side in size],
                mode=["bilinear" if name in linear else "nearest" for name in names],
                padding_mode="zeros",
            ),
            RandFlipd(names, prob=0.5, spatial_axis=1),
            EnsureTyped(names, track_meta=False),
        ]
    )


def _noise() -> Compose:
    return Compose(
        [
            RandGaussianNoised(_CT, prob=0.8, std=NOISE_HU / _RANGE),
            RandShiftIntensityd(_CT, offsets=OFFSET_HU / _RANGE, prob=1.0),
            EnsureTyped(_CT, track_meta=False),
        ]
    )
