"""Realistic lesions in healthy lungs, of each type, with their masks.

Air spaces fill with fluid: a fraction ``f`` of the air of each voxel is replaced by fluid (20 HU), so vessels stay
visible in ground glass and vanish in consolidation, as they do in patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.phantom.textures import (
    Offsets,
    any_direction,
    bounded_noise,
    from_segment,
    grain,
    lobular_walls,
    norm,
    smooth_noise,
)
from models.morphology import BoolArray, FloatArray, Spacing, distance_to

GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED = 1, 2, 3, 4
FLUID_HU = 20.0
MOST_HAZE = 0.6
"""Fluid fraction above which it is no ground glass."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which lesions to insert.

    Parameters
    ----------
    count : tuple of int
        Fewest and most lesions.
    radius : tuple of float
        Smallest and largest radius in mm.
    weights : tuple of float
        Probability of ground glass, consolidation, crazy paving, combined.
    subpleural : float
        Share of the lesions that touch the pleura.
    deep : float
        How far in mm from the pleura the middles of the others are, where lungs are as deep.
    sides : tuple of int
        Lungs that may be affected (1 left, 2 right).
    extent : float
        Share of both lungs at which no more lesions are inserted.
    """

    count: tuple[int, int] = (2, 14)
    radius: tuple[float, float] = (5.0, 32.0)
    weights: tuple[float, float, float, float] = (0.4, 0.25, 0.18, 0.17)
    subpleural: float = 0.75
    deep: float = 0.0
    sides: tuple[int, ...] = (1, 2)
    extent: float = 1.0


def _place(
    lungs: npt.NDArray[np.uint8], depth: FloatArray, pattern: Pattern, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Draw the centre of a lesion: at the pleura or away from it, more often low and dorsal."""
    allowed = np.isin(lungs, pattern.sides)
    allowed = allowed if allowed.any() else lungs > 0  # of a patient with one lung
    preferred = depth < rng.uniform(3.0, 12.0) if rng.random() < pattern.subpleural else depth > pattern.deep
    if (allowed & preferred).any():
        allowed &= preferred
    candidates = np.argwhere(allowed)
    some = candidates[rng.integers(0, len(candidates), 8)]
    low = 1.0 - some[:, 0] / lungs.shape[0]
    dorsal = some[:, 1] / lungs.shape[1]
    weight = (0.3 + low) * (0.3 + dorsal)
    return np.asarray(some[rng.choice(len(some), p=weight / weight.sum())])


def _fluid(kind: int, core: FloatArray, offsets: Offsets, spacing: Spacing, rng: np.random.Generator) -> FloatArray:
    """Return the fluid fraction inside a lesion, before its edge; ``core`` rises from 0 at the rim to 1."""
    shape = core.shape
    # uneven over more than the cells of crazy paving are wide, or one could not be told from the other
    haze = rng.uniform(0.18, 0.5) * (1.0 + 0.2 * smooth_noise(shape, 25.0, spacing, rng))
    haze += 0.02 * smooth_noise(shape, 3.0, spacing, rng)
    haze = np.minimum(haze, MOST_HAZE)
    if kind == GROUND_GLASS:
        return np.asarray(haze, dtype=np.float32)
    if kind == CRAZY_PAVING:
        return np.asarray(haze + rng.uniform(0.3, 0.6) * lobular_walls(core > 0, spacing, rng), dtype=np.float32)
    dense = rng.uniform(0.85, 1.02) + 0.05 * smooth_noise(shape, 6.0, spacing, rng)
    if rng.random() < 0.6:  # in most
        dense = dense + _air_bronchograms(offsets, rng) * (0.15 - dense)
    if kind == CONSOLIDATION:
        return np.asarray(dense, dtype=np.float32)
    # so fine a mixture that all around any voxel there is some of both
    spots = 0.4 * core + 0.6 * smooth_noise(shape, 5.0, spacing, rng) > rng.uniform(0.2, 0.6)
    soft = ndimage.gaussian_filter(spots.astype(np.float32), [1.0 / s for s in spacing])
    return np.asarray(haze + soft * (dense - haze), dtype=np.float32)


def _air_bronchograms(offsets: Offsets, rng: np.random.Generator) -> FloatArray:
    """Return how much of each voxel of a lesion is air in bronchi: a few tubes that start near its centre."""
    extent = [float(np.ptp(offset)) for offset in offsets]
    air = np.zeros(np.broadcast_shapes(*(offset.shape for offset in offsets)), np.float32)
    for _ in range(int(rng.integers(2, 7))):
        direction, length = any_direction(rng), rng.uniform(0.2, 0.6) * min(extent)
        middle = direction * length / 2.0 + rng.normal(0.0, 0.06, 3) * extent
        z, y, x = (np.asarray(offset - shift, np.float32) for offset, shift in zip(offsets, middle, strict=True))
        radius = rng.uniform(0.7, 1.8)
        air = np.maximum(air, np.clip(radius + 0.5 - from_segment((z, y, x), direction, length), 0.0, 1.0))
    return air


def insert_lesions(
    hu: FloatArray, lungs: npt.NDArray[np.uint8], spacing: Spacing, pattern: Pattern, rng: np.random.Generator
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Insert lesions into a healthy chest CT.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units; axes run to the head, to the back and to the patient's left.
    lungs : ndarray of uint8
        0 elsewhere, 1 left, 2 right.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    pattern : Pattern
        What to insert.
    rng : numpy Generator

    Returns
    -------
    hu : ndarray of float32
        With lesions; unchanged outside the lungs.
    lesions : ndarray of uint8
        0 none, else the type: 1 ground glass, 2 consolidation, 3 crazy paving, 4 combined.
    """
    chest = _Chest(hu, hu.copy(), np.zeros(hu.shape, np.uint8), np.zeros_like(hu), np.zeros(hu.shape, bool))
    depth = distance_to(lungs == 0, spacing)
    enough = pattern.extent * np.count_nonzero(lungs)
    for _ in range(int(rng.integers(pattern.count[0], pattern.count[1] + 1))):
        lesion = _draw_lesion(lungs, depth, spacing, pattern, rng)
        _insert(chest, lungs == lungs[lesion.centre], spacing, lesion, rng)
        if np.count_nonzero(chest.labels) >= enough:
            break
    return chest.hu, chest.labels


Box = tuple[slice, slice, slice]


def around(
    centre: tuple[int, int, int], reach: tuple[float, float, float], spacing: Spacing, shape: tuple[int, ...]
) -> tuple[Box, Offsets]:
    """Return the box that reaches so many mm around a voxel, and how far in mm its voxels lie off along z, y, x."""
    steps = [int(np.ceil(r / s)) for r, s in zip(reach, spacing, strict=True)]
    z, y, x = (slice(max(c - k, 0), min(c + k + 1, n)) for c, k, n in zip(centre, steps, shape, strict=True))
    away = [
        (np.arange(s.start, s.stop, dtype=np.float32) - np.float32(c)) * np.float32(step)
        for s, c, step in zip((z, y, x), centre, spacing, strict=True)
    ]
    return (z, y, x), (away[0][:, None, None], away[1][:, None], away[2])


@dataclass(frozen=True, slots=True)
class _Chest:
    """What lesions are inserted into, in place.

    Parameters
    ----------
    healthy, hu : ndarray of float32, shape (z, y, x)
        Hounsfield units before and after.
    labels : ndarray of uint8
        Type of the lesion; where several meet, that of the first.
    fluid : ndarray of float32
        Fraction of the air that is replaced.
    taken : ndarray of bool
        Inside of lesions: others change no more than their rims.
    """

    healthy: FloatArray
    hu: FloatArray
    labels: npt.NDArray[np.uint8]
    fluid: FloatArray
    taken: BoolArray


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A lesion to insert: its type, its centre (voxel indices) and its radii (mm), both along z, y, x."""

    kind: int
    centre: tuple[int, int, int]
    radii: tuple[float, float, float]


def _draw_lesion(
    lungs: npt.NDArray[np.uint8], depth: FloatArray, spacing: Spacing, pattern: Pattern, rng: np.random.Generator
) -> _Lesion:
    z, y, x = _place(lungs, depth, pattern, rng).tolist()
    low, high = np.log(pattern.radius)
    a, b, c = (np.exp(rng.uniform(low, high)) * rng.uniform(0.6, 1.3, 3)).tolist()
    return _Lesion(int(rng.choice(4, p=pattern.weights)) + 1, (z, y, x), (a, b, c))


def _insert(chest: _Chest, lung: BoolArray, spacing: Spacing, lesion: _Lesion, rng: np.random.Generator) -> None:
    """Insert one lesion. Where it meets another, neither leaves the half of its rim that the other one fills."""
    a, b, c = lesion.radii
    box, offsets = around(lesion.centre, (1.5 * a, 1.5 * b, 1.5 * c), spacing, chest.hu.shape)
    healthy, labels = chest.healthy[box], chest.labels[box]
    distance = norm(tuple(offset / radius for offset, radius in zip(offsets, lesion.radii, strict=True)))
    size = float(np.mean(lesion.radii))
    rough = 0.28 * bounded_noise(healthy.shape, size * 0.6, spacing, rng)  # so it ends before the box does
    core = np.asarray(1.0 - distance + rough, dtype=np.float32)
    edge = np.clip(core / (rng.uniform(1.0, 4.0) / size), 0.0, 1.0) * lung[box]
    fluid = np.clip(_fluid(lesion.kind, core, offsets, spacing, rng), 0.0, 1.0) * edge
    wet = FLUID_HU + 15.0 * smooth_noise(healthy.shape, 4.0, spacing, rng)
    filled = healthy + fluid * np.maximum(wet - (healthy - grain(healthy)), 0.0)
    more = (fluid > chest.fluid[box]) & ~chest.taken[box]
    chest.hu[box][more], chest.fluid[box][more] = filled[more], fluid[more]
    # where at least half of the effect is present
    labels[(edge > 0.5) & (fluid > 0.1) & (labels == 0) & ~chest.taken[box]] = lesion.kind
    chest.taken[box] |= edge == 1.0
