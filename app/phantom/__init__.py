"""A synthetic chest CT with known lungs and lesions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from app.phantom.anatomy import AIR, BLOOD, HILA, Chest, body_hu, build_chest
from app.phantom.dicom import write_ct_series
from app.phantom.lesions import add_lesions
from app.phantom.space import Field, Mask, Point, Space
from app.phantom.trees import grow_tree
from models.hounsfield import whole
from operators.findings import Lung
from operators.volume import FloatArray, LabelArray

EXTENT_MM = (300.0, 358.4, 358.4)
"""Field of view along z, y, x."""
SPACING_MM = (3.0, 1.4, 1.4)
"""Usual distance between voxel centres along z, y, x."""
COARSE_MM = (6.0, 2.8, 2.8)
"""The same for a phantom that is made and processed in a moment."""
_PSF_MM = 0.8
"""Standard deviation of the scanner's point spread function."""
_NOISE_HU = 16.0


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A synthetic chest CT and its truth.

    Parameters
    ----------
    hu : ndarray of float32, shape (z, y, x)
        Hounsfield units, from feet to head.
    spacing : tuple of float
        Along z, y, x in mm.
    lungs : ndarray of uint8, shape (z, y, x)
        A :class:`~operators.findings.Lung` or 0; with vessels and lesions, without trachea and main bronchi.
    lesions : ndarray of uint8, shape (z, y, x)
        A :class:`~operators.findings.LesionType` or 0, within the lungs.
    """

    hu: FloatArray
    spacing: tuple[float, float, float]
    lungs: LabelArray
    lesions: LabelArray


Disease = Callable[[FloatArray, LabelArray], tuple[FloatArray, LabelArray]]
"""From Hounsfield units before the scan, and lungs, to both with disease: Hounsfield units and lesions."""


def make_phantom(
    seed: int = 0,
    spacing: tuple[float, float, float] = SPACING_MM,
    lesions: bool = True,
    disease: Disease | None = None,
) -> Phantom:
    """Make the chest CT of a synthetic adult.

    Parameters
    ----------
    seed : int
        Varies size, heart, vessels, lesions and noise; the same seed gives the same CT.
    spacing : tuple of float
        Along z, y, x in mm; the field of view is always 300 x 358 x 358 mm.
    lesions : bool
        False for healthy lungs, else ground glass, consolidation, crazy paving and the combined pattern.
    disease : callable, optional
        What healthy lungs fall ill with, before the scanner sees them.

    Returns
    -------
    Phantom
        The CT and its truth.
    """
    rng = np.random.default_rng(seed)
    person = rng.uniform(0.95, 1.04, 3)
    shape = tuple(round(extent / step) for extent, step in zip(EXTENT_MM, spacing, strict=True))
    space = Space((shape[0], shape[1], shape[2]), tuple((np.array(spacing) / person).tolist()))
    chest = build_chest(space, rng)
    lungs = np.where(chest.left, np.uint8(Lung.LEFT), np.where(chest.right, np.uint8(Lung.RIGHT), np.uint8(0)))
    hu = body_hu(space, chest, rng)
    inside = lungs > 0
    content = _parenchyma(space, rng)
    labels = add_lesions(content, space, inside, rng) if lesions else np.zeros_like(lungs)
    _add_trees(content, space, chest, rng)
    hu[inside] = content[inside]
    if disease is not None:
        hu, labels = disease(hu, lungs)
    return Phantom(_scan(hu, space, rng), spacing, lungs, labels)


def _parenchyma(space: Space, rng: np.random.Generator) -> Field:
    """Return the density of healthy lung: denser at the back, where the blood sinks, and finely mottled."""
    gravity = -865.0 + 45.0 * (space.y + 80.0) / 160.0
    return np.asarray(gravity + 15.0 * space.texture(rng, 1.6) + 10.0 * space.texture(rng, 9.0), dtype=np.float32)


def _add_trees(content: Field, space: Space, chest: Chest, rng: np.random.Generator) -> None:
    """Add arteries, veins and bronchi to the content of both lungs."""
    for lung, (x, y, z) in zip((chest.left, chest.right), HILA, strict=True):
        vessels = np.zeros(space.shape, dtype=np.float32)
        for root, leaves in (((x, y, z + 6.0), 300), ((x, y - 6.0, z - 12.0), 220)):
            grow_tree(space, lung, root, leaves=leaves, leaf_radius=0.7, rng=rng).draw(space, vessels)
        _fill(content, vessels, BLOOD, lung)
        airways = grow_tree(space, _central(space, lung, (x, y, z)), (x, y, z), leaves=14, leaf_radius=1.1, rng=rng)
        for widen, density in ((0.8, BLOOD - 100.0), (0.0, AIR + 20.0)):
            share = np.zeros(space.shape, dtype=np.float32)
            airways.draw(space, share, widen)
            _fill(content, share, density, lung)


def _central(space: Space, lung: Mask, hilum: Point) -> Mask:
    """Return the part of a lung whose airways are wide enough to be seen."""
    return lung & (space.depth(lung) > 15.0) & space.ellipsoid(hilum, (60.0, 60.0, 75.0))


def _fill(content: Field, share: Field, density: float, lung: Mask) -> None:
    content[lung] += share[lung] * (density - content[lung])


def _scan(hu: Field, space: Space, rng: np.random.Generator) -> FloatArray:
    """Return what a scanner sees of the density: blurred, with correlated noise, in whole HU from -1024."""
    seen = space.blur(hu, _PSF_MM)
    grain = ndimage.gaussian_filter(rng.standard_normal(space.shape, dtype=np.float32), (0.3, 0.7, 0.7))
    centre = np.exp(-((space.x / 170.0) ** 2) - (space.y / 120.0) ** 2)
    seen += grain / grain.std() * _NOISE_HU * (0.6 + 0.5 * centre)
    return whole(seen).astype(np.float32)


def write_phantom(folder: Path, seed: int = 0, spacing: tuple[float, float, float] = SPACING_MM) -> Path:
    """Write a phantom: the CT to ``ct/*.dcm`` and its truth to ``truth.npz``.

    Parameters
    ----------
    folder : Path
        Is made where it is missing.
    seed, spacing
        As for :func:`make_phantom`.

    Returns
    -------
    Path
        Folder of the DICOM series. ``truth.npz`` holds ``lungs`` and ``lesions`` (uint8, slices from feet to
        head) and ``spacing`` (z, y, x in mm).
    """
    phantom = make_phantom(seed, spacing)
    series = folder / "ct"
    write_ct_series(
        series, phantom.hu, phantom.spacing, origin=origin_of(phantom), study=study_name(str(seed), spacing)
    )
    np.savez_compressed(
        folder / "truth.npz", lungs=phantom.lungs, lesions=phantom.lesions, spacing=np.array(phantom.spacing)
    )
    return series


def study_name(name: str, spacing: tuple[float, float, float]) -> str:
    """Tell the same patient on other voxels from the one on the usual ones: no two CTs may have the same UIDs."""
    return name if tuple(spacing) == SPACING_MM else f"{name}-{'x'.join(f'{step:g}' for step in spacing)}"


def origin_of(phantom: Phantom) -> tuple[float, float, float]:
    """Return the centre of the first voxel as x, y, z: the patient's middle is at 0."""
    _, rows, columns = phantom.hu.shape
    return -(columns - 1) / 2 * phantom.spacing[2], -(rows - 1) / 2 * phantom.spacing[1], 0.0
