"""Training recipe of the lung network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import PositiveFloat, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.hounsfield import AIR_HU
from models.lungs.network import HALO, DeepMedic, normalise
from models.training.patches import Kinds, PatchRecipe, cut_patch, draw_centre
from models.training.recipe import Item, Objective
from models.training.settings import PatchSettings
from models.training.standardisation import standardise
from models.training.volumes import COVERAGE, HU, Volume

AERATED = 0.6
"""Normalised intensity below which a threshold would say lung: about -400 HU."""
OTHER_AIR_WEIGHT = 0.5
"""Additional weight of air that is not lung."""
KINDS: Kinds = {("surface",): 0.4, ("other_air",): 0.35, ("body",): 0.1, ("beside",): 0.15}
"""How often a patch lies at the border of a lung, at other air in the body, anywhere in it, or at what lies beside
it: the foam of tables is as dense as lung."""
WIDE_AIR_HU, LITTER_HU = -880.0, (-960.0, -500.0)
"""Air lies below the first, and what is put into it in this range."""
LITTERED = 0.4
"""How often what is wide air in a varied patch holds something."""
TISSUE_HU, GAS_HU = -200.0, (-1010.0, -930.0)
"""Tissue lies above the first, and gas that is put into it in this range."""
POCKETED = 0.4
"""How often tissue in a varied patch holds pockets of gas."""
FARTHER_HU = 50.0
"""By how much more than others patches are shifted at most: lungs are known by shape, not by attenuation."""
JITTER_MM = 30.0
"""By how much the middle of a patch lies off its voxel at most, along each axis."""


class LungSettings(PatchSettings):
    """Training of the lung network.

    Parameters
    ----------
    spacing : tuple of float
        Working resolution in mm along z, y, x.
    interior : tuple of int
        Voxels (z, y, x) of a patch that are predicted, multiples of 3.
    """

    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    interior: tuple[int, int, int]

    @field_validator("interior")
    @classmethod
    def _multiples(cls, interior: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(size < 3 or size % 3 for size in interior):
            raise ValueError("three multiples of 3 are needed")
        return interior


class LungObjective(Objective):
    """Binary cross-entropy plus soft Dice; air outside the lungs (airways, bowel) weighs more.

    Dense tissue inside them does not: at the pleura that would move the border outwards.
    """

    def forward(self, *item: Tensor) -> Tensor:
        """Loss of intensities (1, 1, z + 36, y + 66, x + 66) for the share of lung in each voxel (1, 1, z, y, x)."""
        image, target = item
        logit = self.network(image).float()
        other_air = (_interior(image) < AERATED) & (target == 0)
        probability = torch.sigmoid(logit)
        # with squares, the least loss is where the probability is the share (Milletari et al. 2016)
        dice = 1 - (2 * (probability * target).sum() + 1) / (probability.square().sum() + target.square().sum() + 1)
        return F.binary_cross_entropy_with_logits(logit, target, weight=1.0 + OTHER_AIR_WEIGHT * other_air) + dice


class LungRecipe(PatchRecipe):
    """Patches around the lungs.

    Parameters
    ----------
    network : DeepMedic
    settings : LungSettings
    training, validation : sequence of Volume
        With ``coverage``, at the working resolution.
    """

    def __init__(
        self, network: DeepMedic, settings: LungSettings, training: Sequence[Volume], validation: Sequence[Volume]
    ) -> None:
        super().__init__(LungObjective(network), settings, training, validation)
        self._settings = settings

    def fit_to_data(self) -> None:
        """Standardise what each convolution gives over the first patches."""
        standardise(self.objective.network, self.first_images())

    def patch(self, volumes: Sequence[Volume], rng: np.random.Generator, vary: bool) -> Item:
        """Return intensities (1, 1, z + 36, y + 66, x + 66) and the share of lung in each voxel (1, 1, z, y, x)."""
        volume, centre = draw_centre(volumes, KINDS, [JITTER_MM / step for step in self._settings.spacing], rng)
        z, y, x = (n + 2 * h for n, h in zip(self._settings.interior, HALO, strict=True))
        patch = cut_patch(volume, centre, (z, y, x), (HU, COVERAGE), rng if vary else None)
        if vary and rng.random() < LITTERED:
            patch[HU] = litter(patch[HU], patch[COVERAGE] > 0, rng)
        if vary and rng.random() < POCKETED:
            patch[HU] = pocket(patch[HU], patch[COVERAGE] > 0, rng)
        if vary:
            patch[HU] = shift(patch[HU], rng.uniform(-FARTHER_HU, FARTHER_HU))
        return normalise(patch[HU])[None], (_interior(patch[COVERAGE]) / 255.0)[None]

    def pictures(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Draw CT, lungs and probability of the middle slice of the first validation patch."""
        image, target = self.validation_item(0)
        device = next(network.parameters()).device
        probability = torch.sigmoid(network(image.to(device)).float()).cpu()
        middle = target.shape[2] // 2
        shown = {"ct": _interior(image)[0, 0], "lungs": target[0, 0], "probability": probability[0, 0]}
        return {name: volume[middle] for name, volume in shown.items()}


def litter(hu: Tensor, lung: Tensor, rng: np.random.Generator) -> Tensor:
    """Put something as light as lung into wide air that is no lung: blankets, foam, what the bowel holds.

    Parameters
    ----------
    hu : Tensor of float32, shape (1, z, y, x)
        Hounsfield units. What was not scanned, at exactly :data:`~models.hounsfield.AIR_HU`, stays as it is.
    lung : Tensor of bool, shape (1, z, y, x)
    rng : numpy Generator
    """
    air = (hu < WIDE_AIR_HU) & (hu > AIR_HU) & ~lung
    coarse = air[:, ::2, ::3, ::3].float()
    narrowed = -F.max_pool3d(-coarse, 3, stride=1, padding=1)
    wide = F.interpolate(F.max_pool3d(narrowed, 3, stride=1, padding=1)[None], size=hu.shape[1:])[0] > 0
    there = air & wide & (_texture(hu.shape, rng.uniform(5.0, 25.0), rng) > rng.uniform(-0.3, 0.6))
    return torch.where(there, _stuff(hu.shape, rng), hu)


def pocket(hu: Tensor, lung: Tensor, rng: np.random.Generator) -> Tensor:
    """Put pockets of gas, or of what looks like lung, into tissue that is no lung: bowel, also right below the lungs.

    Parameters
    ----------
    hu : Tensor of float32, shape (1, z, y, x)
        Hounsfield units.
    lung : Tensor of bool, shape (1, z, y, x)
        No pocket is in it, nor in the voxels beside it: a wall remains.
    rng : numpy Generator
    """
    walled = F.max_pool3d(lung.float(), 3, stride=1, padding=1) > 0
    blobs = _texture(hu.shape, rng.uniform(5.0, 15.0), rng) > rng.uniform(0.3, 1.0)
    there = (hu > TISSUE_HU) & ~walled & blobs
    held = rng.uniform(*GAS_HU) if rng.random() < 0.7 else _stuff(hu.shape, rng)
    noise = torch.from_numpy(rng.standard_normal(hu.shape, dtype=np.float32))  # as in lung, or it would tell them apart
    return torch.where(there, held + rng.uniform(0.0, 40.0) * noise, hu)


def shift(hu: Tensor, by: float) -> Tensor:
    """Add to Hounsfield units of any shape; what was not scanned, at exactly ``AIR_HU``, stays as it is."""
    return torch.where(hu == AIR_HU, hu, hu + by)


def _texture(shape: Sequence[int], scale: float, rng: np.random.Generator) -> Tensor:
    """Draw normal noise (1, z, y, x) whose grains have so many voxels across."""
    grid = rng.standard_normal([1, 1, *(max(2, round(n / scale)) for n in shape[1:])]).astype(np.float32)
    return F.interpolate(torch.from_numpy(grid), size=tuple(shape[1:]), mode="trilinear")[0]


def _stuff(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Draw Hounsfield units of something as light as lung."""
    return rng.uniform(*LITTER_HU) + rng.uniform(0.0, 80.0) * _texture(shape, rng.uniform(1.5, 6.0), rng)


def _interior(patch: Tensor) -> Tensor:
    """Cut what the valid convolutions consume off the last three axes."""
    z, y, x = (slice(h, -h) for h in HALO)
    return patch[..., z, y, x]
