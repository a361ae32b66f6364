"""Training recipe of the lesion network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.losses.dice import GeneralizedWassersteinDiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from models.lesions.network import PATCH, SPACING, normalise
from models.training.loop import LoopSettings, fit
from models.training.source import Augmentation, PatchSize, SeededStream, Source, draw_patch
from models.unet import UNet

DEFAULTS = LoopSettings(steps=560, learning_rate=1e-3)
REAL_WEIGHT = 4
"""How often a patient's volume is drawn for each time that one with inserted lesions is."""
DISTANCES = np.array(
    [
        [0.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.0, 0.6, 0.6, 0.4],
        [1.0, 0.6, 0.0, 0.6, 0.4],
        [1.0, 0.6, 0.6, 0.0, 0.4],
        [1.0, 0.4, 0.4, 0.4, 0.0],
    ]
)
"""Wasserstein distance between classes (Fidon et al. 2017): any lesion is far from background, the combined pattern
is nearer to each single pattern than those are to each other."""


class LesionPatches(SeededStream):
    """Single patches of :data:`PATCH` voxels, two thirds of them centred on a lesion where there is one."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        super().__init__(seed)
        self._sources = sources
        self._lung = [np.argwhere(s.lungs > 0)[::50] for s in sources]
        self._lesion = [[np.argwhere(s.lesions == k)[::20] for k in range(1, 5)] for s in sources]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return an image (1, 1, z, y, x), its labels (1, 1, z, y, x) and its lungs (1, 1, z, y, x)."""
        k = int(rng.integers(len(self._sources)))
        kinds = [points for points in self._lesion[k] if len(points)]
        lesion = bool(kinds) and rng.random() < 0.67
        centres = kinds[rng.integers(len(kinds))] if lesion else self._lung[k]
        centre = centres[rng.integers(len(centres))] + rng.uniform(-25, 25, 3)
        hu, lungs, labels = draw_patch(self._sources[k], centre, PatchSize(PATCH, SPACING), Augmentation(), rng)
        return normalise(hu)[None, None], labels[None, None], (lungs > 0)[None, None]


_wasserstein = GeneralizedWassersteinDiceLoss(DISTANCES, weighting_mode="default")


def _loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Generalised Wasserstein Dice and cross-entropy inside the lungs (beyond, the lung mask decides).

    A second cross-entropy, among the lesion types alone, keeps rare types from drowning in ground glass.
    """
    image, labels, lungs = batch
    logits: Tensor = network(image).float()
    inside = lungs[:, 0].reshape(-1)
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])[inside]
    target = labels.reshape(-1)[inside]
    if len(target) == 0:
        return logits.sum() * 0.0
    entropy = F.cross_entropy(flat, target)
    wasserstein = torch.as_tensor(_wasserstein(flat.T[None], target[None, None]))
    affected = target > 0
    types = F.cross_entropy(flat[affected, 1:], target[affected] - 1) if affected.any() else 0.0
    loss: Tensor = entropy + wasserstein + types
    return loss


def train(
    network: UNet,
    sources: Sequence[Source],
    tell: Callable[[str], None],
    settings: LoopSettings = DEFAULTS,
    checkpoint: Path | None = None,
) -> UNet:
    """Train the lesion network on sources with lung and lesion masks; return the averaged network."""
    return fit(network, LesionPatches(sources, settings.seed), _loss, settings, tell, checkpoint)
