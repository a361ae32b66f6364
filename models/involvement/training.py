"""Training recipe of 2DS, on axial slices of volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.involvement.network import InvolvementNetwork
from models.lung_region import lung_region, margins
from models.training.patches import Kinds, PatchRecipe, cut_patch, draw_centre
from models.training.recipe import Item, Objective
from models.training.settings import PatchSettings
from models.training.volumes import HU, LESIONS, LUNGS, Volume

KINDS: Kinds = {("lesion",): 0.6, ("lung",): 0.4}
"""How often a patch lies at a lesion, or anywhere in the lungs."""
JITTER_MM = 45.0
"""By how much the middle of a patch lies off its voxel at most, in the plane."""


class InvolvementSettings(PatchSettings):
    """Training of 2DS.

    Parameters
    ----------
    pixel_mm : float
        Working resolution in the axial plane.
    patch : tuple of int
        Pixels (rows, columns), multiples of 16.
    patches : int
        Patches in an item.
    """

    pixel_mm: PositiveFloat
    patch: tuple[PositiveInt, PositiveInt]
    patches: PositiveInt

    @field_validator("patch")
    @classmethod
    def _multiples(cls, patch: tuple[int, int]) -> tuple[int, int]:
        if any(size % 16 for size in patch) or max(patch) == 16:  # of one pixel there is no instance norm
            raise ValueError("two multiples of 16 are needed, one of them larger than 16")
        return patch


class InvolvementObjective(Objective):
    """Cross-entropy and soft Dice inside the lungs; outside, the lung mask decides, not this network."""

    def forward(self, *item: Tensor) -> Tensor:
        """Loss of images (n, 1, rows, columns) for affected lung and lungs of the same shape."""
        image, target, lungs = item
        logit = self.network(image).float()
        probability = torch.sigmoid(logit) * lungs
        entropy = F.binary_cross_entropy_with_logits(logit, target, weight=lungs, reduction="sum")
        dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        return entropy / lungs.sum().clamp_min(1) + dice


class InvolvementRecipe(PatchRecipe):
    """Items of several axial patches in the lungs.

    Parameters
    ----------
    network : InvolvementNetwork
    settings : InvolvementSettings
    training, validation : sequence of Volume
        With ``lungs`` and ``lesions``, at the working resolution in the plane.
    """

    def __init__(
        self,
        network: InvolvementNetwork,
        settings: InvolvementSettings,
        training: Sequence[Volume],
        validation: Sequence[Volume],
    ) -> None:
        super().__init__(InvolvementObjective(network), settings, training, validation)
        self._settings = settings

    def __getitem__(self, number: int, /) -> Item:
        """Draw an item of the training volumes."""
        rng = np.random.default_rng((self._settings.seed, number))
        parts = [self.patch(self._training, rng, self._settings.augment) for _ in range(self._settings.patches)]
        images, targets, lungs = (torch.cat(part) for part in zip(*parts, strict=True))
        return images, targets, lungs

    def patch(self, volumes: Sequence[Volume], rng: np.random.Generator, vary: bool) -> Item:
        """Return image, affected lung and lungs, each (1, 1, rows, columns)."""
        pixel = self._settings.pixel_mm
        volume, centre = draw_centre(volumes, KINDS, (0.0, JITTER_MM / pixel, JITTER_MM / pixel), rng)
        margin, _ = margins((pixel, pixel))
        rows, columns = (size + 2 * margin for size in self._settings.patch)
        patch = cut_patch(volume, centre, (1, rows, columns), (HU, LESIONS, LUNGS), rng if vary else None)
        lungs = patch[LUNGS] > 0
        image = lung_region(patch[HU][0], lungs[0].numpy(), (pixel, pixel))[None]
        parts = image, (patch[LESIONS] > 0) & lungs, lungs
        inner = slice(margin, -margin)
        cut, affected, inside = (part[..., inner, inner].float() for part in parts)
        return cut, affected, inside

    def pictures(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Draw image, affected lung and probability of the first validation patch."""
        image, target, _ = self.validation_item(0)
        probability = torch.sigmoid(network(image.to(next(network.parameters()).device)).float()).cpu()
        shown = {"image": image, "affected": target, "probability": probability}
        return {name: picture[0, 0] for name, picture in shown.items()}
