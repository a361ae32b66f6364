"""Training recipe of the lung network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lungs.network import HALO, DeepMedic, normalise
from models.training.loop import LoopSettings, fit
from models.training.source import Augmentation, PatchSize, SeededStream, Source, draw_patch

SPACING = (3.0, 2.0, 2.0)
"""Working resolution in mm along z, y, x."""
INTERIOR = (24, 48, 48)
"""Voxels (z, y, x) of a training patch that are predicted."""
DEFAULTS = LoopSettings(steps=1500, learning_rate=1e-3)


class LungPatches(SeededStream):
    """Batches of patches: half of them centred near the surface of the lungs, the rest anywhere."""

    def __init__(self, sources: Sequence[Source], seed: int, batch: int = 2) -> None:
        super().__init__(seed)
        self._sources = sources
        self._batch = batch
        self._edges = [_surface(source.lungs > 0) for source in sources]
        z, y, x = (n + 2 * h for n, h in zip(INTERIOR, HALO, strict=True))
        self._size = PatchSize((z, y, x), SPACING, oversampling=2)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return intensities (batch, 1, z + 30, y + 60, x + 60) and lung labels (batch, 1, z, y, x)."""
        images, targets = [], []
        for _ in range(self._batch):
            k = int(rng.integers(len(self._sources)))
            edges = self._edges[k]
            near = rng.random() < 0.6
            centre = edges[rng.integers(len(edges))] if near else rng.uniform(0, self._sources[k].hu.shape)
            hu, lungs, _ = draw_patch(self._sources[k], centre, self._size, Augmentation(), rng)
            z, y, x = (slice(h, -h) for h in HALO)
            images.append(normalise(hu)[None])
            targets.append((lungs[z, y, x] > 0).float()[None])
        return torch.stack(images), torch.stack(targets)


def _surface(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Return the indices of voxels of the mask whose right neighbour is outside, and of every 50th inside."""
    edge = mask ^ np.roll(mask, 1, axis=2)
    edge |= mask ^ np.roll(mask, 1, axis=1)
    return np.concatenate([np.argwhere(edge)[::5], np.argwhere(mask)[::100]])


def _loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Binary cross-entropy plus soft Dice."""
    image, target = batch
    logit = network(image).float()
    probability = torch.sigmoid(logit)
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logit, target) + dice


def train(
    sources: Sequence[Source],
    tell: Callable[[str], None],
    settings: LoopSettings = DEFAULTS,
    checkpoint: Path | None = None,
) -> DeepMedic:
    """Train DeepMedic on sources with lung masks and return it."""
    torch.manual_seed(settings.seed)
    network = fit(DeepMedic(), LungPatches(sources, settings.seed), _loss, settings, tell, checkpoint)
    assert isinstance(network, DeepMedic)  # noqa: S101 - fit returns what it was given
    return network
