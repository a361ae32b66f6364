"""Training recipe of 2DS: slices of CT volumes, and annotated 8-bit slices brought to the same scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from models.involvement.network import MARGIN_MM, PATCH, PIXEL_MM, normalise
from models.training.loop import LoopSettings, fit
from models.training.source import Augmentation, PatchSize, SeededStream, Source, degrade, draw_patch
from models.unet import UNet

DEFAULTS = LoopSettings(steps=700, learning_rate=2e-3)
LUNG_HU, TISSUE_HU = -860.0, 40.0
"""What the medians of healthy lung and of chest wall are taken for in slices without Hounsfield units."""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedSlices:
    """Axial slices with lung and infection masks whose intensities are not Hounsfield units.

    Parameters
    ----------
    ct : ndarray of uint8, shape (n, rows, columns)
        Intensities after histogram equalisation; 0 away from the lungs.
    lungs, infection : ndarray of bool, shape as ``ct``
    """

    ct: npt.NDArray[np.uint8]
    lungs: npt.NDArray[np.bool_]
    infection: npt.NDArray[np.bool_]


def to_hounsfield(
    ct: npt.NDArray[np.uint8], lungs: npt.NDArray[np.bool_], infection: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Bring one equalised slice to a scale like HU: healthy lung and chest wall keep their usual medians."""
    healthy = ct[lungs & ~infection]
    wall = ct[(ct > 0) & ~lungs]
    low = float(np.median(healthy)) if healthy.size else 60.0
    high = float(np.median(wall)) if wall.size else 200.0
    scale = (TISSUE_HU - LUNG_HU) / max(high - low, 30.0)
    return (LUNG_HU + (ct.astype(np.float32) - low) * scale).astype(np.float32)


class InvolvementPatches(SeededStream):
    """Batches of axial patches: from volumes (random planes of random similarity) and from annotated slices."""

    def __init__(self, sources: Sequence[Source], slices: AnnotatedSlices | None, seed: int, batch: int = 16) -> None:
        super().__init__(seed)
        self._sources, self._slices, self._batch = sources, slices, batch
        self._lung = [np.argwhere(s.lungs > 0)[::50] for s in sources]
        self._lesion = [np.argwhere(s.lesions > 0)[::20] for s in sources]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return images, targets and weights, each (batch, 1, 128, 128)."""
        patches = [
            self._from_slices(rng) if self._slices is not None and rng.random() < 0.5 else self._from_volume(rng)
            for _ in range(self._batch)
        ]
        images, targets, lungs = (torch.stack(part)[:, None] for part in zip(*patches, strict=True))
        return images, targets.float(), lungs.float()

    def _from_volume(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        k = int(rng.integers(len(self._sources)))
        lesion = len(self._lesion[k]) > 0 and rng.random() < 0.6
        centres = self._lesion[k] if lesion else self._lung[k]
        centre = centres[rng.integers(len(centres))] + rng.uniform(-30, 30, 3) * (0, 1, 1)
        size = PatchSize((1, *PATCH), (rng.uniform(1.0, 5.0), PIXEL_MM, PIXEL_MM))
        hu, lungs, lesions = draw_patch(self._sources[k], centre, size, Augmentation(), rng)
        return self._finish(hu[0], lungs[0] > 0, lesions[0] > 0)

    def _from_slices(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        assert self._slices is not None  # noqa: S101 - asked for only where there are slices
        i = int(rng.integers(len(self._slices.ct)))
        ct, lungs, infection = self._slices.ct[i], self._slices.lungs[i], self._slices.infection[i]
        hu = to_hounsfield(ct, lungs, infection)
        points = np.argwhere(infection if infection.any() and rng.random() < 0.6 else lungs)
        centre = points[rng.integers(len(points))] + rng.uniform(-20, 20, 2) if len(points) else (128.0, 128.0)
        angle, zoom = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(0.85, 1.2)
        matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[:, 1] *= -1.0 if rng.random() < 0.5 else 1.0
        offset = np.asarray(centre) - matrix @ (np.array(PATCH) - 1) / 2

        def warp(image: npt.NDArray[np.float32], order: int, fill: float) -> npt.NDArray[np.float32]:
            return np.asarray(
                ndimage.affine_transform(image, matrix, offset, PATCH, order=order, mode="constant", cval=fill)
            )

        image = torch.from_numpy(warp(hu, 1, -1024.0))[None]
        image = degrade(image, Augmentation(noise=25.0, sharpen=0.2, contrast=0.15), rng)[0]
        masks = [torch.from_numpy(warp(m.astype(np.float32), 0, 0.0)) > 0.5 for m in (lungs, infection)]
        return self._finish(image, *masks)

    @staticmethod
    def _finish(hu: Tensor, lungs: Tensor, affected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = torch.from_numpy(
            ndimage.distance_transform_edt(~lungs.numpy()) <= MARGIN_MM / PIXEL_MM if lungs.any() else lungs.numpy()
        )
        return normalise(hu, near), affected & lungs, lungs


def _loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropy and soft Dice inside the lungs; outside, the lung mask decides, not this network."""
    image, target, lungs = batch
    logit = network(image).float()
    probability = torch.sigmoid(logit) * lungs
    entropy = F.binary_cross_entropy_with_logits(logit, target, weight=lungs, reduction="sum") / lungs.sum().clamp_min(
        1
    )
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return entropy + dice


def train(
    network: UNet,
    sources: Sequence[Source],
    slices: AnnotatedSlices | None,
    tell: Callable[[str], None],
    settings: LoopSettings = DEFAULTS,
    checkpoint: Path | None = None,
) -> UNet:
    """Train 2DS on volumes with lesion masks and, where given, on annotated slices; return the averaged network."""
    return fit(network, InvolvementPatches(sources, slices, settings.seed), _loss, settings, tell, checkpoint)
