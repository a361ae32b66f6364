"""Patches cut from volumes, and varied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd
from monai.transforms.utility.dictionary import EnsureTyped
from torch import Tensor

from models.hounsfield import AIR_HU
from models.training.recipe import Item, Objective, Recipe, seed_of
from models.training.settings import PatchSettings
from models.training.volumes import COVERAGE, HU, LUNGS, Size, Volume

SCALE, ROTATION = 0.15, 10.0
"""How far patches vary in size, and in direction in the axial plane, in degrees."""
NOISE_HU, OFFSET_HU, CONTRAST = 40.0, 40.0, 0.06
"""How far their intensities vary."""
INFLATION, INFLATED = (0.35, 2.0), 0.7
"""Least and greatest factor of the tissue in aerated lung, and how often it varies: as patients breathe in, and age."""
SOLID_HU, AERATED_HU = 20.0, -850.0
"""What is denser than the first does not change with the air of the lungs; the second is lung as it usually is."""
SOFT, SHARP, OVERSHOOT, KERNEL_CHANGED = (0.3, 1.0), (0.2, 0.3), (0.1, 0.8), 0.4
"""Standard deviations in pixels of soft and sharp kernels, how much the latter overshoot, and how often each comes."""
THICK = (0.4, 1.3)
"""Standard deviation in slices of the blur between them where slices are thick."""
CUT, SHORTEST = 0.3, 6
"""How often the scan, or its field of view, ends inside a varied patch, and the fewest slices that it has."""
_TILT = ROTATION / 3.0
_FIRST = 4
"""Patches over which first weights are brought to scale."""
_RIM = 5
"""Voxels at the sides that smoothing spoils, for MONAI pads with zeros: they are cut off after it."""


class PatchRecipe(Recipe):
    """Patches of volumes: varied ones to learn from, and fixed ones as they are to validate with.

    Parameters
    ----------
    objective : Objective
        Network and loss.
    settings : PatchSettings
    training, validation : sequence of Volume
        At the working resolution of the network.
    """

    def __init__(
        self, objective: Objective, settings: PatchSettings, training: Sequence[Volume], validation: Sequence[Volume]
    ) -> None:
        super().__init__(objective, settings.steps, settings.validation_patches)
        self._seed, self._augment = settings.seed, settings.augment
        self._training, self._validation = training, validation

    @abstractmethod
    def patch(self, volumes: Sequence[Volume], rng: np.random.Generator, vary: bool) -> Item:
        """Draw a patch of the volumes, varied or as it is."""

    def __getitem__(self, number: int, /) -> Item:
        """Draw a patch of the training volumes."""
        return self.patch(self._training, np.random.default_rng((self._seed, number)), self._augment)

    def first_images(self) -> Tensor:
        """Return the images of the first patches, together, to bring first weights to scale over."""
        return torch.cat([self[number][0] for number in range(_FIRST)])

    def validation_item(self, index: int) -> Item:
        """Return a patch of the validation volumes, as it is."""
        return self.patch(self._validation, np.random.default_rng(index), False)


Kinds = Mapping[tuple[str, ...], float]
"""How often each group of kinds of voxels is drawn; those of a group are equally likely."""


def draw_centre(
    volumes: Sequence[Volume], kinds: Kinds, jitter: Sequence[float], rng: np.random.Generator
) -> tuple[Volume, npt.NDArray[np.intp]]:
    """Draw a kind, then a volume that has it, and in it a voxel, moved by up to ``jitter`` voxels along each axis.

    In this order, for else what few volumes have would hardly ever be seen.

    Parameters
    ----------
    volumes : sequence of Volume
        Of those with voxels of a kind, each is as likely as the others.
    kinds : mapping
        A kind that no volume has leaves its share to the others of its group, a group to the other groups.
    jitter : sequence of float
        Along z, y, x.
    rng : numpy Generator

    Raises
    ------
    ValueError
        If no volume has a voxel of any kind.
    """
    groups, shares = list(kinds), np.array(list(kinds.values()))
    order = rng.choice(len(groups), len(groups), replace=False, p=shares / shares.sum())
    for kind in (str(kind) for place in order for kind in rng.permutation(groups[place])):
        for index in rng.permutation(len(volumes)):
            points = volumes[index].points(kind)
            if len(points):
                centre = points[int(rng.integers(len(points)))]
                moved = centre + rng.uniform(-1.0, 1.0, 3) * np.asarray(jitter)
                return volumes[index], np.rint(moved).astype(np.intp)
    raise ValueError("the prepared volumes have no voxels to learn from")


def cut_patch(
    volume: Volume, centre: npt.NDArray[np.intp], size: Size, names: Sequence[str], rng: np.random.Generator | None
) -> dict[str, Tensor]:
    """Cut a patch out of a volume.

    Parameters
    ----------
    volume : Volume
    centre : ndarray of int, shape (3,)
        Voxel in the middle of the patch; z, y, x.
    size : tuple of int
        Voxels of the patch. One of a single slice is varied in the plane only.
    names : sequence of str
        Arrays to cut, ``hu`` first.
    rng : numpy Generator, optional
        Vary position, size and image quality; None cuts what is there.

    Returns
    -------
    dict of str to Tensor
        float32, shape (1, z, y, x).
    """
    room = size if rng is None else _room(size)
    start = [int(c) - n // 2 for c, n in zip(centre, room, strict=True)]
    patch = {name: torch.from_numpy(volume.box(name, start, room).astype(np.float32))[None] for name in names}
    if rng is None:
        return patch
    if (factor := draw_inflation(rng)) is not None:  # before the scanner: else its noise would tell lesions from lung
        patch[HU] = inflate(patch[HU], _lung_share(patch), factor)
    vary = variation(size, names)
    vary.set_random_state(seed_of(int(rng.integers(2**62))) % 2**32)
    varied: dict[str, Tensor] = vary(patch)
    return cut_short(varied, rng) if rng.random() < CUT else varied


def _lung_share(patch: Mapping[str, Tensor]) -> Tensor:
    return patch[COVERAGE] / 255.0 if COVERAGE in patch else (patch[LUNGS] > 0).float()


def inflate(hu: Tensor, lung: Tensor, factor: float) -> Tensor:
    """Let there be more or less tissue for the air in the lungs.

    Without this, networks take the attenuation that the lungs of a few patients have for that of lungs. What lies
    between aerated lung and solid tissue is taken for a mixture of both, so disease keeps its place between them, and
    noise nearly its size: it changes by a seventh where aerated lung changes from -850 to -700 HU.

    Parameters
    ----------
    hu, lung : Tensor, any shape
        Hounsfield units, and the share of lung in each voxel.
    factor : float
        Of the share of tissue in aerated lung, (:data:`AERATED_HU` + 1000) / 1000; vessels and solid disease stay.
    """
    change = (factor - 1.0) * (AERATED_HU + 1000.0) / (SOLID_HU - AERATED_HU)
    return hu + change * (SOLID_HU - hu).clamp_min(0.0) * lung


def draw_inflation(rng: np.random.Generator) -> float | None:
    """Draw a factor for :func:`inflate`, or leave the air in the lungs as it is."""
    return float(np.exp(rng.uniform(*np.log(INFLATION)))) if rng.random() < INFLATED else None


def cut_short(patch: Mapping[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """End the scan inside a patch: beyond a first and a last slice, or a circular field of view; its middle is kept.

    What lies beyond is as :meth:`~models.training.volumes.Volume.box` gives it.
    """
    _, depth, rows, columns = patch[HU].shape
    if depth > 1 and rng.random() < 0.75:
        length = int(rng.integers(min(SHORTEST, depth), depth + 1))
        first = int(rng.integers(max(depth // 2 - length + 1, 0), min(depth // 2, depth - length) + 1))
        slices = torch.arange(depth).clamp(first, first + length - 1)
        return {name: array[:, slices] for name, array in patch.items()}
    radius = rng.uniform(0.7, 1.5) * max(rows, columns)
    angle, beyond = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.0, max(rows, columns) / 2.0)
    y = torch.arange(rows)[:, None] - rows / 2.0 - (beyond - radius) * np.sin(angle)
    x = torch.arange(columns) - columns / 2.0 - (beyond - radius) * np.cos(angle)
    scanned = y**2 + x**2 <= radius**2
    return {name: array.where(scanned, AIR_HU if name == HU else 0) for name, array in patch.items()}


def _room(size: Size) -> Size:
    """Return the size of what a varied patch may reach: longer by the scale and, in its plane, by the rotation."""
    diagonal = np.hypot(size[1], size[2])
    turned = [abs(n * np.cos(np.deg2rad(ROTATION))) + diagonal * np.sin(np.deg2rad(ROTATION)) for n in size]
    tilted = size[0] + (size[1] + size[2]) * np.sin(np.deg2rad(_TILT))
    z = size[0] if size[0] == 1 else round(tilted * (1.0 + SCALE)) + 2
    y, x = (round(n * (1.0 + SCALE)) + 2 * _RIM for n in turned[1:])
    return z, y, x


def variation(size: Size, names: Sequence[str]) -> Compose:
    """Vary patches as patients and scanners do: position, size and side; kernel, noise, offset and contrast."""
    flat = size[0] == 1
    turn, tilt = np.deg2rad(ROTATION), 0.0 if flat else np.deg2rad(_TILT)
    scale = (-SCALE, SCALE)
    still = (0.01, 0.01)
    return Compose(
        [
            RandGaussianSmoothd(HU, sigma_x=THICK, sigma_y=still, sigma_z=still, prob=0.0 if flat else 0.3),
            RandGaussianSmoothd(HU, sigma_x=still, sigma_y=SOFT, sigma_z=SOFT, prob=KERNEL_CHANGED),
            RandGaussianSharpend(
                HU,
                sigma1_x=still,  # MONAI's x is the first axis: between slices nothing is sharpened
                sigma1_y=SHARP,
                sigma1_z=SHARP,
                sigma2_x=still,
                sigma2_y=SOFT,
                sigma2_z=SOFT,
                alpha=OVERSHOOT,
                prob=KERNEL_CHANGED,
            ),
            RandAffined(
                names,
                spatial_size=size,
                prob=1.0,
                rotate_range=((-turn, turn), (-tilt, tilt), (-tilt, tilt)),
                scale_range=((0.0, 0.0) if flat else scale, scale, scale),
                mode=["bilinear" if name in (HU, COVERAGE) else "nearest" for name in names],
                padding_mode="border",
            ),
            RandFlipd(names, prob=0.5, spatial_axis=2),
            RandGaussianNoised(HU, prob=0.8, std=NOISE_HU),
            RandScaleIntensityFixedMeand(HU, prob=1.0, factors=CONTRAST, preserve_range=False),
            RandShiftIntensityd(HU, offsets=OFFSET_HU, prob=1.0),
            EnsureTyped(names, track_meta=False),
        ]
    )
