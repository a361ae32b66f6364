"""Lesions of COVID-19 pneumonia in the lungs of the phantom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from app.phantom.space import Field, Mask, Point, Points, Space
from operators.findings import LesionType
from operators.volume import LabelArray

_EDGE = 0.36
"""Width of the fuzzy edge of a lesion as a share of its radius."""
_PLACES: tuple[tuple[LesionType, Point, float], ...] = (
    (LesionType.GROUND_GLASS, (106.0, 22.0, 128.0), 26.0),
    (LesionType.GROUND_GLASS, (-110.0, 8.0, 150.0), 24.0),
    (LesionType.GROUND_GLASS, (82.0, -38.0, 186.0), 18.0),
    (LesionType.GROUND_GLASS, (-62.0, 64.0, 200.0), 20.0),
    (LesionType.CRAZY_PAVING, (72.0, 62.0, 168.0), 26.0),
    (LesionType.COMBINED, (-96.0, 48.0, 108.0), 28.0),
    (LesionType.CONSOLIDATION, (62.0, 68.0, 84.0), 28.0),
)
"""Type, centre x, y, z and radius in mm: bilateral, peripheral, mostly dorsal and basal."""


@dataclass(frozen=True, slots=True, eq=False)
class _Lesion:
    """One lesion.

    ``field`` tells how far inside each voxel lies: 0 at the edge, 1 at the centre, negative outside.
    """

    kind: LesionType
    space: Space
    centre: Points
    radius: float
    field: Field

    def share(self, edge: float = _EDGE, core: float = 1.0) -> Field:
        """Return the share of lesion in each voxel: 0.5 on the edge, or on that of a core of less radius."""
        return np.asarray(np.clip(((self.field - 1.0) / core + 1.0) / edge + 0.5, 0.0, 1.0))


def add_lesions(hu: Field, space: Space, lungs: Mask, rng: np.random.Generator) -> LabelArray:
    """Change the density of the lung parenchyma to that of diseased lung.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x)
        Density of the lung parenchyma; is changed.
    space : Space
        Its grid.
    lungs : ndarray of bool, shape (z, y, x)
        Lesions stay within.
    rng : Generator
        Varies place, size, form and density.

    Returns
    -------
    ndarray of uint8, shape (z, y, x)
        A :class:`~operators.findings.LesionType` where the lesion fills more than half of the voxel, else 0.
    """
    labels = np.zeros(space.shape, dtype=np.uint8)
    warp = 0.17 * space.texture(rng, 7.0) + 0.07 * space.texture(rng, 3.0)
    grain = space.texture(rng, 2.0)
    for kind, place, radius in _PLACES:
        centre = np.array(place) + rng.normal(0.0, 5.0, 3)
        size = radius * rng.uniform(0.85, 1.15)
        field = 1.0 - _distance(space, centre, rng.uniform(0.8, 1.25, 3)) / size + warp
        lesion = _Lesion(kind, space, centre, size, np.asarray(field, dtype=np.float32))
        _apply(hu, lesion, grain, rng)
        labels[(lesion.field > 0.0) & lungs] = kind
    return labels


def _distance(space: Space, centre: Points, stretch: Points) -> Field:
    x, y, z = ((c - m) / s for c, m, s in zip((space.x, space.y, space.z), centre, stretch, strict=True))
    return np.asarray(np.sqrt(x**2 + y**2 + z**2), dtype=np.float32)


def _apply(hu: Field, lesion: _Lesion, grain: Field, rng: np.random.Generator) -> None:
    """Blend one lesion into the parenchyma."""
    glass = rng.uniform(-570.0, -470.0) + 40.0 * grain
    dense = rng.uniform(-30.0, 20.0) + 12.0 * grain
    if lesion.kind is LesionType.CONSOLIDATION:
        _blend(hu, dense, lesion.share(edge=_EDGE / 2.0))
        _blend(hu, np.float32(-850.0), _air_bronchograms(lesion, rng))
        return
    _blend(hu, glass, lesion.share())
    if lesion.kind is LesionType.CRAZY_PAVING:
        _blend(hu, np.float32(-150.0), _network(lesion, rng))
    elif lesion.kind is LesionType.COMBINED:
        _blend(hu, dense, lesion.share(core=0.55))


def _blend(hu: Field, target: Field | np.float32, share: Field) -> None:
    hu += share * (target - hu)


def _network(lesion: _Lesion, rng: np.random.Generator) -> Field:
    """Return the share of thickened septa: walls about 1.5 mm thick between cells of about 8 mm."""
    inside = lesion.field > 0.0
    points = lesion.space.points(inside)
    share = np.zeros(inside.shape, dtype=np.float32)
    low, high = points.min(axis=0) - 8.0, points.max(axis=0) + 8.0
    seeds = rng.uniform(low, high, (int(np.prod((high - low) / 9.0)), 3))
    nearest, _ = cKDTree(seeds).query(points, k=2)
    to_wall = (nearest[:, 1] - nearest[:, 0]) / 2.0
    share[inside] = np.clip(1.3 - to_wall / 0.9, 0.0, 1.0) * np.clip(lesion.field[inside] / _EDGE, 0.0, 1.0)
    return share


def _air_bronchograms(lesion: _Lesion, rng: np.random.Generator) -> Field:
    """Return the share of bronchi that stay open in a consolidation: a fan from the side of the hilum."""
    share = np.zeros(lesion.field.shape, dtype=np.float32)
    inward = np.array([-np.sign(lesion.centre[0]), -0.8, 0.6]) / np.sqrt(2.0)
    fork = lesion.centre + 0.25 * lesion.radius * inward
    lesion.space.draw_segment(share, lesion.centre + 0.8 * lesion.radius * inward, fork, 2.2)
    for _ in range(4):
        end = fork + 0.9 * lesion.radius * (rng.normal(0.0, 0.45, 3) - 0.6 * inward)
        lesion.space.draw_segment(share, fork, end, 1.5)
    return np.asarray(share * lesion.share())
