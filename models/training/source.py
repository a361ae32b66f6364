"""Volumes to learn from, and patches drawn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from models.morphology import Spacing

LabelArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A CT volume with what is known about it, on one grid.

    Parameters
    ----------
    name : str
        For messages; not a patient's.
    hu : ndarray of int16, shape (z, y, x)
        Hounsfield units; axes run to the head, to the back and to the patient's left.
    lungs : ndarray of uint8
        0 elsewhere, 1 left, 2 right.
    lesions : ndarray of uint8
        0 none, else the lesion type (1 ground glass, 2 consolidation, 3 crazy paving, 4 combined).
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    """

    name: str
    hu: npt.NDArray[np.int16]
    lungs: LabelArray
    lesions: LabelArray
    spacing: Spacing

    def __post_init__(self) -> None:
        if not self.hu.shape == self.lungs.shape == self.lesions.shape:
            raise ValueError("all arrays of a source must have one shape")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far patches are varied; lengths in mm, intensities in HU, angles in degrees."""

    scale: float = 0.15
    rotation: float = 10.0
    flip: float = 0.5
    noise: float = 50.0
    offset: float = 40.0
    contrast: float = 0.06
    blur: float = 1.0
    sharpen: float = 0.8


@dataclass(frozen=True, slots=True)
class PatchSize:
    """Size of a patch in voxels (z, y, x) and the voxel size in mm; oversampled in the plane, then averaged."""

    voxels: tuple[int, int, int]
    spacing: Spacing
    oversampling: int = 1


def _rotation(rng: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    """Random rotation of z, y, x: full angle about the body axis, a third of it about the others."""
    a, b, c = np.deg2rad(rng.uniform(-degrees, degrees, 3) * (1.0, 0.33, 0.33))
    about_z = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    about_x = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def draw_patch(
    source: Source, centre: npt.ArrayLike, size: PatchSize, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Resample a patch around a voxel of a source under a random similarity, with random image quality.

    Returns
    -------
    hu, lungs, lesions : Tensor, shape ``size.voxels``
        float32 Hounsfield units (air outside the source) and the two label maps as int64.
    """
    step = np.array(size.spacing) * rng.uniform(1 - augmentation.scale, 1 + augmentation.scale)
    step = step * rng.uniform(0.95, 1.05, 3)
    step[2] *= -1.0 if rng.random() < augmentation.flip else 1.0
    to_voxel = _rotation(rng, augmentation.rotation) * step / np.array(source.spacing)[:, None]
    planes = size.oversampling
    fine = (size.voxels[0], size.voxels[1] * planes, size.voxels[2] * planes)
    hu = _sample(source.hu, _points(fine, to_voxel / (1, planes, planes), centre), "bilinear", -1024.0)
    hu = F.avg_pool3d(hu[None], (1, planes, planes))[0]
    points = _points(size.voxels, to_voxel, centre)
    lungs, lesions = (_sample(labels, points, "nearest", 0.0).long() for labels in (source.lungs, source.lesions))
    return degrade(hu, augmentation, rng), lungs, lesions


def _points(
    shape: tuple[int, int, int], to_voxel: npt.NDArray[np.float64], centre: npt.ArrayLike
) -> list[npt.NDArray[np.float32]]:
    """Return the source index along z, y, x of every voxel of a patch: an affine map about its centre."""
    axes = [(np.arange(n) - (n - 1) / 2.0).astype(np.float32) for n in shape]
    grids = [axis.reshape([-1 if i == j else 1 for i in range(3)]) for j, axis in enumerate(axes)]
    matrix, middle = to_voxel.astype(np.float32), np.asarray(centre, dtype=np.float32)
    return [matrix[k, 0] * grids[0] + matrix[k, 1] * grids[1] + (matrix[k, 2] * grids[2] + middle[k]) for k in range(3)]


def _sample(values: npt.NDArray[np.generic], points: list[npt.NDArray[np.float32]], mode: str, fill: float) -> Tensor:
    """Interpolate ``values`` at ``points``; only the part of the volume that is needed is touched."""
    low = [int(np.clip(np.floor(p.min()) - 1, 0, n - 2)) for p, n in zip(points, values.shape, strict=True)]
    high = [int(np.clip(np.ceil(p.max()) + 2, a + 2, n)) for p, a, n in zip(points, low, values.shape, strict=True)]
    part = torch.from_numpy(values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32))
    # grid_sample wants x, y, z in [-1, 1] with voxel centres at the ends (align_corners), and fills with 0
    scaled = [2.0 * (points[k] - low[k]) / (part.shape[k] - 1) - 1.0 for k in (2, 1, 0)]
    grid = torch.from_numpy(np.stack(scaled, axis=-1).astype(np.float32))[None]
    return F.grid_sample((part - fill)[None, None], grid, mode=mode, align_corners=True)[0, 0] + fill


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur in the plane, sigma in pixels; image (z, y, x)."""
    radius = max(int(np.ceil(2.5 * sigma)), 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    flat = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, taps[None, None, :, None]), taps[None, None, None, :])
    return flat[:, 0]


def degrade(hu: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Vary the image as scanners do: kernel (softer or sharper), noise (white or coloured), offset, contrast."""
    if rng.random() < 0.5:  # a fair coin
        hu = _blurred(hu, rng.uniform(0.3, max(augmentation.blur, 0.31)))
    else:
        hu = hu + rng.uniform(0.0, augmentation.sharpen) * (hu - _blurred(hu, 1.0))
    noise = torch.from_numpy(rng.standard_normal(hu.shape, dtype=np.float32))
    if rng.random() < 0.5:
        noise = _blurred(noise, rng.uniform(0.4, 1.0))
        noise = noise / noise.std()
    hu = hu + noise * augmentation.noise * rng.random() ** 2
    hu = (hu + 1000.0) * rng.uniform(1 - augmentation.contrast, 1 + augmentation.contrast) - 1000.0
    return (hu + rng.uniform(-augmentation.offset, augmentation.offset)).clamp_min(-1024.0)


class SeededStream(IterableDataset[tuple[Tensor, ...]], ABC):
    """Endless batches from ``draw(rng)``; each worker and each seed has its own stream."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return one batch."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        while True:
            yield self.draw(rng)
