"""What synthetic disease is made of: smooth variation, grain of the scanner, walls between lobules, tubes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from models.morphology import BoolArray, FloatArray, Spacing

Offsets = tuple[FloatArray, FloatArray, FloatArray]
"""How far in mm voxels lie off a place along z, y, x; to be broadcast."""
_STRONGEST = 1.7
"""Limit of :func:`bounded_noise`, which keeps forms in their boxes."""
_GRAIN = (1.0, 1.5, 1.5)
"""Standard deviation of what takes noise away, in voxels along z, y, x: in the plane kernels spread it."""
_LOBULE_MM, _WALL_MM = (8.0, 14.0), (0.9, 1.6)
"""Size of what the walls of crazy paving part, and how thick they are."""


def smooth_noise(shape: tuple[int, ...], scale: float, spacing: Spacing, rng: np.random.Generator) -> FloatArray:
    """Return noise of unit variance, smooth over ``scale`` mm, made coarse and interpolated without kinks."""
    coarse = [max(int(np.ceil(n * s / scale)) + 3, 4) for n, s in zip(shape, spacing, strict=True)]
    noise = rng.standard_normal(coarse).astype(np.float32)
    for axis, (size, step) in enumerate(zip(shape, spacing, strict=True)):  # one after the other: little memory
        place = np.arange(size) * step / scale + 1.0
        before = place.astype(np.intp)
        between = (place - before).astype(np.float32)
        eased = between**2 * (3.0 - 2.0 * between)  # level where it passes a coarse value
        share = np.expand_dims(eased, [k for k in range(len(shape)) if k != axis])
        noise = noise.take(before, axis) * (1.0 - share) + noise.take(before + 1, axis) * share
    return np.asarray(noise / max(float(noise.std()), 1e-6), dtype=np.float32)


def bounded_noise(shape: tuple[int, ...], scale: float, spacing: Spacing, rng: np.random.Generator) -> FloatArray:
    """Return :func:`smooth_noise` that is never beyond 1.7 standard deviations."""
    return smooth_noise(shape, scale, spacing, rng).clip(-_STRONGEST, _STRONGEST)


def grain(hu: FloatArray) -> FloatArray:
    """Return the noise of an image: what is finer than its structures, and no edge of them.

    What is drawn into an image without it would be told by its evenness.
    """
    fine = hu - ndimage.gaussian_filter(hu, _GRAIN)
    limit = 3.0 * 1.4826 * float(np.median(np.abs(fine)))  # of a normal distribution three standard deviations
    return np.where(np.abs(fine) <= limit, fine, 0.0).astype(np.float32)


def lobular_walls(where: BoolArray, spacing: Spacing, rng: np.random.Generator) -> FloatArray:
    """Return how much of each voxel is wall between cells of the size of small lobules.

    Parameters
    ----------
    where : ndarray of bool, shape (z, y, x)
        Elsewhere it is 0.
    spacing : tuple of float
        In mm along z, y, x. Where voxels are larger than walls are thick, these fill a part of them.
    rng : numpy Generator
    """
    size, wall = rng.uniform(*_LOBULE_MM), rng.uniform(*_WALL_MM)
    extent = np.array(where.shape) * spacing
    seeds = rng.uniform(-size, extent + size, (int(np.prod(extent + 2.0 * size) / size**3) + 2, 3))
    distances, nearest = cKDTree(seeds).query(np.argwhere(where) * spacing, k=2)
    apart = np.linalg.norm(seeds[nearest[:, 0]] - seeds[nearest[:, 1]], axis=1)
    # from the plane between both
    away = (distances[:, 1] ** 2 - distances[:, 0] ** 2) / (2.0 * np.maximum(apart, 1e-6))
    voxel = float(np.prod(spacing)) ** (1.0 / 3.0)
    walls = np.zeros(where.shape, np.float32)
    walls[where] = np.clip((wall + voxel) / 2.0 - away, 0.0, min(wall, voxel)) / voxel
    return walls


def from_segment(offsets: Offsets, direction: npt.NDArray[np.float64], length: float) -> FloatArray:
    """Return how far in mm voxels lie from a segment of a length, with its middle where ``offsets`` are 0."""
    along = sum(offset * step for offset, step in zip(offsets, direction, strict=True))
    clipped = np.clip(along, -length / 2.0, length / 2.0)
    return norm(tuple(offset - clipped * step for offset, step in zip(offsets, direction, strict=True)))


def norm(offsets: Offsets | tuple[FloatArray, ...]) -> FloatArray:
    """Return the distance in mm that offsets along z, y, x make."""
    return np.asarray(np.sqrt(sum(offset**2 for offset in offsets)), dtype=np.float32)


def any_direction(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a unit vector."""
    drawn = rng.normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn))
