"""What is seen in lungs beside the lesions of COVID-19, and must not be taken for them.

Nodules, tree-in-bud, bronchiectasis with or without mucus, bands, dependent density, emphysema, and pleural effusion,
which is not even lung. Drawn into CTs without disease; forms and densities after Hansell et al. 2008 (Fleischner
Society: glossary of terms for thoracic imaging, doi:10.1148/radiol.2462070712).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.phantom.insertion import Box, around
from app.phantom.textures import any_direction, bounded_noise, from_segment, grain, norm, smooth_noise
from models.morphology import BoolArray, FloatArray, Spacing

SOFT_HU, WATER_HU, GAS_HU = 40.0, 8.0, -980.0
_Draw = Callable[[FloatArray, BoolArray, tuple[int, int, int], Spacing, np.random.Generator], None]


def insert_mimics(
    hu: FloatArray, lungs: npt.NDArray[np.uint8], spacing: Spacing, count: int, rng: np.random.Generator
) -> FloatArray:
    """Insert findings that are no lesion of COVID-19.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units; axes run to the head, to the back and to the patient's left.
    lungs : ndarray of uint8
        0 elsewhere, 1 left, 2 right.
    spacing : tuple of float
        Voxel size in mm along z, y, x.
    count : int
        How many: of kinds and in places that are drawn.
    rng : numpy Generator

    Returns
    -------
    ndarray of float32
        Unchanged outside the lungs.
    """
    result, inside = hu.copy(), lungs > 0
    places = np.argwhere(inside)
    for _ in range(count):
        z, y, x = places[int(rng.integers(len(places)))].tolist()
        _KINDS[int(rng.integers(len(_KINDS)))](result, inside, (z, y, x), spacing, rng)
    return result


def insert_dependent_density(
    hu: FloatArray, lungs: npt.NDArray[np.uint8], spacing: Spacing, rng: np.random.Generator
) -> FloatArray:
    """Make the lung at the back denser, as it is in those who lie on it and do not breathe in deeply."""
    below = _above_the_back(lungs > 0, spacing)
    haze = rng.uniform(0.05, 0.25) * np.exp(-below / rng.uniform(5.0, 25.0))
    haze *= 1.0 + 0.2 * smooth_noise(hu.shape, 15.0, spacing, rng)
    return np.where(lungs > 0, hu + haze * np.maximum(SOFT_HU - (hu - grain(hu)), 0.0), hu).astype(np.float32)


def insert_effusion(
    hu: FloatArray, lungs: npt.NDArray[np.uint8], spacing: Spacing, rng: np.random.Generator
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Fill the back of one pleural space with fluid, which is no lung.

    Returns
    -------
    hu : ndarray of float32
    lungs : ndarray of uint8
        Without the fluid.
    """
    side = lungs == rng.choice(np.unique(lungs[lungs > 0]))
    bottom = float(np.argwhere(side.any(axis=(1, 2)))[0, 0])
    height = (np.arange(hu.shape[0]) - bottom)[:, None, None] * spacing[0]
    deepest, rise = rng.uniform(10.0, 50.0), rng.uniform(60.0, 160.0)
    level = deepest * np.clip(1.0 - height / rise, 0.0, 1.0) + 4.0 * smooth_noise(hu.shape, 40.0, spacing, rng)
    fluid = side & (_above_the_back(side, spacing) < level)
    water = WATER_HU + grain(hu)
    return np.where(fluid, water, hu).astype(np.float32), np.where(fluid, 0, lungs).astype(np.uint8)


def _above_the_back(lung: BoolArray, spacing: Spacing) -> FloatArray:
    """Return how far in mm each voxel lies before the hindmost lung of its line to the back; infinity without lung."""
    hindmost = lung.shape[1] - 1 - np.argmax(lung[:, ::-1], axis=1)
    rows = np.arange(lung.shape[1])[None, :, None]
    away = (hindmost[:, None, :] - rows) * spacing[1]
    there = np.asarray(lung.any(axis=1))
    return np.where(there[:, None, :], away, np.inf).astype(np.float32)


def _blend(hu: FloatArray, inside: BoolArray, box: Box, share: FloatArray, target: float) -> None:
    """Replace a share of what is there, but not of its noise."""
    part = np.clip(share, 0.0, 1.0) * inside[box]
    hu[box] += part * (target - (hu[box] - grain(hu[box])))


def _nodule(
    hu: FloatArray, inside: BoolArray, centre: tuple[int, int, int], spacing: Spacing, rng: np.random.Generator
) -> None:
    """Draw a solid nodule of 4 to 28 mm, smooth or with an uneven border."""
    radius = float(np.exp(rng.uniform(np.log(2.0), np.log(14.0))))
    box, offsets = around(centre, (1.6 * radius + 1.0,) * 3, spacing, hu.shape)
    rough = rng.uniform(0.0, 0.35) * bounded_noise(hu[box].shape, max(radius, 2.0), spacing, rng)
    _blend(hu, inside, box, (radius * (1.0 + rough) - norm(offsets)) + 0.5, rng.uniform(0.0, 60.0))


def _tree_in_bud(
    hu: FloatArray, inside: BoolArray, centre: tuple[int, int, int], spacing: Spacing, rng: np.random.Generator
) -> None:
    """Draw small centrilobular nodules, some joined by short branches, in a part of 2 to 5 cm."""
    extent = rng.uniform(10.0, 25.0)
    for _ in range(int(rng.integers(12, 60))):
        bud = _near(centre, extent / 2.0, hu.shape, spacing, rng)
        _tube(hu, inside, bud, spacing, rng, rng.uniform(0.8, 1.8), rng.uniform(0.0, 5.0), 0.0)


def _bronchiectasis(
    hu: FloatArray, inside: BoolArray, centre: tuple[int, int, int], spacing: Spacing, rng: np.random.Generator
) -> None:
    """Draw a few wide bronchi with thick walls, some filled with mucus."""
    for _ in range(int(rng.integers(1, 6))):
        lumen = 0.0 if rng.random() < 0.3 else float(rng.uniform(1.5, 5.0))
        radius = lumen + float(rng.uniform(1.0, 2.5))
        near = _near(centre, 12.0, hu.shape, spacing, rng)
        _tube(hu, inside, near, spacing, rng, radius, rng.uniform(8.0, 35.0), lumen)


def _near(
    centre: tuple[int, int, int], deviation: float, shape: tuple[int, ...], spacing: Spacing, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Draw a voxel near another: the deviation is in mm."""
    offset = rng.normal(0.0, deviation, 3) / spacing
    z, y, x = np.clip(np.rint(np.add(centre, offset)), 0, np.subtract(shape, 1)).astype(int).tolist()
    return z, y, x


def _tube(
    hu: FloatArray,
    inside: BoolArray,
    centre: tuple[int, int, int],
    spacing: Spacing,
    rng: np.random.Generator,
    radius: float,
    length: float,
    lumen: float,
) -> None:
    """Draw a straight tube of soft tissue, in any direction, with gas in its lumen where it has one; mm."""
    box, offsets = around(centre, (length / 2.0 + radius + 2.0,) * 3, spacing, hu.shape)
    away = from_segment(offsets, any_direction(rng), length)
    _blend(hu, inside, box, radius - away + 0.5, rng.uniform(0.0, 60.0))
    if lumen:
        _blend(hu, inside, box, lumen - away + 0.5, rng.uniform(GAS_HU, -880.0))


def _band(
    hu: FloatArray, inside: BoolArray, centre: tuple[int, int, int], spacing: Spacing, rng: np.random.Generator
) -> None:
    """Draw a plate-like atelectasis or a scar: 1.5 to 4 mm thick, a little bent."""
    extent, thickness = rng.uniform(10.0, 35.0), rng.uniform(1.5, 4.0)
    box, offsets = around(centre, (extent,) * 3, spacing, hu.shape)
    normal = rng.normal(size=3) * (2.0, 1.0, 0.5)  # mostly lying
    normal /= np.linalg.norm(normal)
    across = sum(o * n for o, n in zip(offsets, normal, strict=True))
    across = across + rng.uniform(0.0, 2.0) * smooth_noise(hu[box].shape, 25.0, spacing, rng)
    share = np.minimum(thickness / 2.0 - np.abs(across) + 0.5, (extent - norm(offsets)) / 5.0)
    _blend(hu, inside, box, np.asarray(share, dtype=np.float32), rng.uniform(-100.0, 50.0))


def _emphysema(
    hu: FloatArray, inside: BoolArray, centre: tuple[int, int, int], spacing: Spacing, rng: np.random.Generator
) -> None:
    """Draw holes of gas without walls; what is denser than lung, as vessels are, stays."""
    extent = rng.uniform(10.0, 40.0)
    box, offsets = around(centre, (extent,) * 3, spacing, hu.shape)
    holes = smooth_noise(hu[box].shape, rng.uniform(4.0, 10.0), spacing, rng) > rng.uniform(0.0, 1.0)
    soft = ndimage.gaussian_filter(holes.astype(np.float32), [1.0 / s for s in spacing])
    share = soft * np.clip((extent - norm(offsets)) / 8.0, 0.0, 1.0) * (hu[box] < -700.0)
    _blend(hu, inside, box, np.asarray(share, dtype=np.float32), GAS_HU)


_KINDS: tuple[_Draw, ...] = (_nodule, _tree_in_bud, _bronchiectasis, _band, _emphysema)
