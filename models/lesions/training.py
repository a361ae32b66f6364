"""Training recipe of the lesion network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.losses.dice import GeneralizedWassersteinDiceLoss
from pydantic import PositiveFloat, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.lesions.calibration import best_shift, lesion_odds, shift_background
from models.lesions.network import CLASSES, UNKNOWN_TYPE, LesionNetwork, predict
from models.lung_region import MARGIN_MM, lung_region, margins
from models.morphology import BoolArray, bounding_box
from models.training.patches import Kinds, PatchRecipe, cut_patch, draw_centre
from models.training.recipe import Item, Objective
from models.training.settings import PatchSettings
from models.training.standardisation import standardise
from models.training.volumes import HU, LESIONS, LUNGS, Volume

_TYPES = tuple(f"lesion_{kind}" for kind in range(1, UNKNOWN_TYPE))
KINDS: Kinds = {(*_TYPES, *(f"lesion_{UNKNOWN_TYPE}",) * 3): 0.67, ("lung",): 0.33}
"""How often a patch lies at a lesion, or anywhere in the lungs. Every type is as likely, however rare, and the unknown
one, that of most lesions which nobody has drawn, as three of them."""
JITTER_MM = 35.0
"""By how much the middle of a patch lies off its voxel at most, along each axis; never so far that it is outside."""
SMOOTH = 100.0
"""Voxels added to both sides of the Dice: so that patches without lesion teach, too."""
Row = tuple[float, float, float, float, float]


class LesionSettings(PatchSettings):
    """Training of the lesion network.

    Parameters
    ----------
    spacing : tuple of float
        Working resolution in mm along z, y, x.
    patch : tuple of int
        Voxels (z, y, x), multiples of 8.
    distances : 5 x 5 float
        Wasserstein distance between the classes (Fidon et al. 2017), background first.
    entropy : bool
        Add cross-entropy inside the lungs, and one among the lesion types alone.
    calibrate : bool
        Shift background to where the Dice of the validation studies is largest in the end.
    """

    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    patch: tuple[int, int, int]
    distances: tuple[Row, Row, Row, Row, Row]
    entropy: bool
    calibrate: bool

    @field_validator("patch")
    @classmethod
    def _multiples(cls, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(size < 8 or size % 8 for size in patch):
            raise ValueError("three multiples of 8 are needed")
        return patch

    @field_validator("distances")
    @classmethod
    def _metric(cls, distances: tuple[Row, ...]) -> tuple[Row, ...]:
        matrix = np.array(distances)
        if (matrix != matrix.T).any() or matrix.diagonal().any() or (matrix < 0).any():
            raise ValueError("distances must be symmetric, not negative, and zero on the diagonal")
        if (matrix[0, 1:] != matrix.max()).any() or not matrix.max():
            raise ValueError("no distances may be larger than those from background, which must be alike")
        return distances


class LesionObjective(Objective):
    """Generalised Wasserstein Dice inside the lungs (beyond, the lung mask decides), with or without cross-entropy.

    The second cross-entropy, among the lesion types alone, keeps rare types from drowning in ground glass. Where the
    type is unknown, any is right: the cross-entropy takes the lesion classes together, and in the Wasserstein Dice
    none of them is at a distance.
    """

    def __init__(self, network: nn.Module, settings: LesionSettings) -> None:
        super().__init__(network)
        self._entropy = settings.entropy
        distances = np.zeros((CLASSES + 1, CLASSES + 1))
        distances[:CLASSES, :CLASSES] = settings.distances
        distances[UNKNOWN_TYPE, 0] = distances.max()
        self._wasserstein = GeneralizedWassersteinDiceLoss(
            distances, weighting_mode="default", smooth_nr=SMOOTH, smooth_dr=SMOOTH
        )

    def forward(self, *item: Tensor) -> Tensor:
        """Loss of intensities (1, 1, z, y, x) for labels and lungs of the same shape."""
        image, labels, lungs = item
        logits: Tensor = self.network(image).float()
        inside = lungs[:, 0].reshape(-1)
        flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])[inside]
        target = labels.reshape(-1)[inside]
        if len(target) == 0:
            return logits.sum() * 0.0
        never = F.pad(flat, (0, 1), value=-torch.inf)  # the unknown type is in the truth alone
        loss = torch.as_tensor(self._wasserstein(never.T[None], target[None, None])).float()
        if self._entropy:
            unknown = target == UNKNOWN_TYPE
            known = F.cross_entropy(flat, target.where(~unknown, 0), reduction="none")
            loss = loss + torch.where(unknown, F.softplus(-lesion_odds(flat)), known).mean()
            typed = (target > 0) & ~unknown
            loss = loss + (F.cross_entropy(flat[typed, 1:], target[typed] - 1) if typed.any() else 0.0)
        return loss


class LesionRecipe(PatchRecipe):
    """Patches in the lungs, most of them at lesions.

    Parameters
    ----------
    network : LesionNetwork
    settings : LesionSettings
    training, validation : sequence of Volume
        With ``lungs`` and ``lesions``, at the working resolution.
    """

    def __init__(
        self, network: LesionNetwork, settings: LesionSettings, training: Sequence[Volume], validation: Sequence[Volume]
    ) -> None:
        super().__init__(LesionObjective(network, settings), settings, training, validation)
        self._settings = settings

    def fit_to_data(self) -> None:
        """Standardise what each convolution gives over the first patches."""
        standardise(self.objective.network, self.first_images())

    def patch(self, volumes: Sequence[Volume], rng: np.random.Generator, vary: bool) -> Item:
        """Return intensities, labels and lungs, each (1, 1, z, y, x)."""
        spacing, (depth, rows, columns) = self._settings.spacing, self._settings.patch
        jitter = [min(JITTER_MM / step, size / 2 - 1) for step, size in zip(spacing, self._settings.patch, strict=True)]
        volume, centre = draw_centre(volumes, KINDS, jitter, rng)
        y, x = margins(spacing[1:])
        room = depth, rows + 2 * y, columns + 2 * x
        patch = cut_patch(volume, centre, room, (HU, LESIONS, LUNGS), rng if vary else None)
        lungs = patch[LUNGS] > 0
        image = lung_region(patch[HU][0], lungs[0].numpy(), spacing[1:])[None]
        inner = (..., slice(y, -y), slice(x, -x))
        return image[inner][None], patch[LESIONS].long()[inner][None], lungs[inner][None]

    @torch.inference_mode()
    def calibrate(self, network: nn.Module) -> Mapping[str, float]:
        """Shift background to where the Dice of lesions is largest, in the whole lungs of the validation studies."""
        assert isinstance(network, LesionNetwork)  # noqa: S101 - of this recipe
        if not self._settings.calibrate:
            return {}
        odds, lesion = [], []
        for volume in self._validation:
            lung = volume.whole(LUNGS).astype(bool)
            if lung.any():
                inside, affected = self._judged(network, volume, lung)
                odds.append(inside)
                lesion.append(affected)
        shift = best_shift(torch.cat(odds), torch.cat(lesion)) if odds else 0.0
        if not shift:
            return {}
        shift_background(network.head, shift)
        return {"shift": shift}

    def _judged(self, network: LesionNetwork, volume: Volume, lung: BoolArray) -> tuple[Tensor, Tensor]:
        """Return the log odds of lesion in all voxels of the lungs, as the application finds them, and the truth."""
        spacing = self._settings.spacing
        box = bounding_box(lung, [round(MARGIN_MM / step) for step in spacing])
        hu = torch.from_numpy(volume.whole(HU)[box].astype(np.float32))
        image = lung_region(hu, lung[box], spacing[1:]).to(next(network.parameters()).device)
        found = predict(network, image).cpu()[:, torch.from_numpy(lung[box])]
        return found[1:].sum(0).log() - found[0].log(), torch.from_numpy(volume.whole(LESIONS)[lung].astype(bool))

    def pictures(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Draw CT, lesions and what is found of the slice with most lesion of the first validation patch."""
        image, labels, lungs = self.validation_item(0)
        logits = network(image.to(next(network.parameters()).device)).float().cpu()
        found = logits.argmax(1)[0] * lungs[0, 0]
        middle = int((labels[0, 0] > 0).sum((1, 2)).argmax())
        shades = CLASSES - 1.0
        shown = {"ct": image[0, 0], "lesions": labels[0, 0] / shades, "found": found / shades}
        return {name: volume[middle] for name, volume in shown.items()}
