"""Training recipe of the lung network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from models.lungs.network import HALO, DeepMedic, normalise
from models.lungs.reference import air_in_body
from models.training.loop import LoopSettings, fit
from models.training.source import Augmentation, PatchSize, SeededStream, Source, draw_patch

SPACING = (3.0, 2.0, 2.0)
"""Working resolution in mm along z, y, x."""
INTERIOR = (24, 48, 48)
"""Voxels (z, y, x) of a training patch that are predicted."""
DEFAULTS = LoopSettings(steps=1500, learning_rate=2e-3, averaging=0.98)
AERATED = 0.6
"""Normalised intensity below which a threshold would say lung: about -400 HU."""
OTHER_AIR_WEIGHT = 0.5
"""Additional weight of air that is not lung."""


class LungPatches(SeededStream):
    """Batches of patches, centred on the lungs and their surface, on other air in the body, or anywhere."""

    def __init__(self, sources: Sequence[Source], seed: int, batch: int = 2) -> None:
        super().__init__(seed)
        self._sources = sources
        self._batch = batch
        self._lungs = [_surface(source.lungs > 0) for source in sources]
        # variants with inserted lesions share the lungs of their source, and differ from it only inside them
        one_of_each = {id(source.lungs): source for source in sources}
        other_air = {key: _other_air(source) for key, source in one_of_each.items()}
        self._other_air = [other_air[id(source.lungs)] for source in sources]
        z, y, x = (n + 2 * h for n, h in zip(INTERIOR, HALO, strict=True))
        self._size = PatchSize((z, y, x), SPACING, oversampling=2)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return intensities (batch, 1, z + 30, y + 60, x + 60) and lung labels (batch, 1, z, y, x)."""
        images, targets = [], []
        for _ in range(self._batch):
            k = int(rng.integers(len(self._sources)))
            hu, lungs, _ = draw_patch(self._sources[k], self._centre(k, rng), self._size, Augmentation(), rng)
            z, y, x = (slice(h, -h) for h in HALO)
            images.append(normalise(hu)[None])
            targets.append((lungs[z, y, x] > 0).float()[None])
        return torch.stack(images), torch.stack(targets)

    def _centre(self, k: int, rng: np.random.Generator) -> npt.ArrayLike:
        points = rng.choice([0, 1, 2], p=(0.45, 0.4, 0.15))
        candidates = (self._lungs[k], self._other_air[k], np.zeros((0, 3)))[points]
        if len(candidates) == 0:
            return rng.uniform(0, self._sources[k].hu.shape)
        return np.asarray(candidates[rng.integers(len(candidates))] + rng.uniform(-12, 12, 3))


def _surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the indices of voxels of the mask whose right neighbour is outside, and of every 50th inside."""
    edge = mask ^ np.roll(mask, 1, axis=2)
    edge |= mask ^ np.roll(mask, 1, axis=1)
    return np.concatenate([np.argwhere(edge)[::5], np.argwhere(mask)[::100]])


def _other_air(source: Source) -> npt.NDArray[np.intp]:
    """Return the indices of air in the body that is not lung: airways and bowel."""
    near_lungs = ndimage.binary_dilation(source.lungs > 0, iterations=2)
    return np.argwhere(air_in_body(source.hu.astype(np.float32), source.spacing) & ~near_lungs)[::5]


def _loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Binary cross-entropy plus soft Dice; air outside the lungs (airways, bowel) weighs more.

    Dense tissue inside them does not: at the pleura that would move the border outwards.
    """
    image, target = batch
    logit = network(image).float()
    z, y, x = (slice(h, -h) for h in HALO)
    other_air = (image[:, :, z, y, x] < AERATED) & (target == 0)
    probability = torch.sigmoid(logit)
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logit, target, weight=1.0 + OTHER_AIR_WEIGHT * other_air) + dice


def train(
    network: DeepMedic,
    sources: Sequence[Source],
    tell: Callable[[str], None],
    settings: LoopSettings = DEFAULTS,
    checkpoint: Path | None = None,
) -> DeepMedic:
    """Train DeepMedic on sources with lung masks; return the averaged network."""
    return fit(network, LungPatches(sources, settings.seed), _loss, settings, tell, checkpoint)
