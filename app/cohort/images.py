"""The images of a cohort: CTs as volumes, masks on their grids."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from pydicom import Dataset

from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy
from app.outcome import UsageError
from models.hounsfield import AIR_HU
from operators.orientation import standard_arrangement
from operators.refusal import InputRefused
from operators.series_loader import load_ct_series
from operators.volume import CTVolume, FloatArray, Grid, LabelArray

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the frame of NIfTI to that of DICOM."""
_SAME_PLACE = 0.01
"""How far corners may lie apart in mm that count as the same."""


def load_study(study: CohortStudy) -> CTVolume:
    """Load the CT of a study; of a NIfTI file nothing but its voxels and their places are known.

    Raises
    ------
    StudyRefused
        If the system refuses the series.
    UsageError
        If it cannot be read as a chest CT; names the study and the reason.
    """
    try:
        if study.path.is_dir():
            return load_ct_series(study.path)
        hu, grid = _read(study.path)
        return without_headers(np.maximum(hu.astype(np.float32), np.float32(AIR_HU)), grid)
    except InputRefused as refusal:
        raise StudyRefused(study, refusal) from refusal
    except ValueError as error:
        raise UsageError(f"study {study.path.name}: {error}") from error


def without_headers(hu: FloatArray, grid: Grid) -> CTVolume:
    """Return a volume of which nothing is known but its voxels and their places."""
    return CTVolume(hu, grid, (Dataset(),) * grid.shape[0])


def bare_volume(hu: FloatArray, spacing: tuple[float, float, float]) -> CTVolume:
    """Return an axial volume without headers; ``hu`` (z, y, x) from feet to head, ``spacing`` likewise in mm."""
    return without_headers(hu, axial_grid(hu.shape, spacing))


def axial_grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], origin: tuple[float, float, float] = (0, 0, 0)
) -> Grid:
    """Return an axial grid from feet to head; ``spacing`` along z, y, x, ``origin`` as x, y, z (LPS), in mm."""
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]  # columns z, y, x; rows x, y, z
    affine[:3, 3] = origin
    return Grid(shape, affine)


def write_image(path: Path, voxels: npt.NDArray[np.generic], grid: Grid) -> None:
    """Write an array on a grid as NIfTI, whole at any moment; folders are made where they are missing.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    affine = _RAS_TO_LPS @ grid.affine[:, [2, 1, 0, 3]]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".part-{path.name}")
    try:
        nib.save(nib.Nifti1Image(voxels.transpose(), affine), partial)  # type: ignore[no-untyped-call]
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_mask(path: Path, grid: Grid, highest: int) -> LabelArray:
    """Load a mask that lies on the grid of its CT.

    Parameters
    ----------
    path : Path
        NIfTI file.
    grid : Grid
        Of the CT.
    highest : int
        The highest label that there may be.

    Returns
    -------
    ndarray of uint8, shape of the grid

    Raises
    ------
    UsageError
        If it cannot be read, lies elsewhere, or holds other labels.
    """
    labels, own = _read(path)
    turning = standard_arrangement(grid)
    turned = turning.apply_to_grid(grid)
    if own.shape != turned.shape or not np.allclose(_corners(own), _corners(turned), atol=_SAME_PLACE):
        raise UsageError(f"the mask {path.name} does not lie on the grid of its CT")
    if not np.isin(labels, range(highest + 1)).all():
        raise UsageError(f"the mask {path.name} holds other labels than 0 to {highest}")
    return turning.undo(labels.astype(np.uint8))


def grid_of(path: Path) -> Grid:
    """Return the grid of a NIfTI image, with axes z, y, x to the head, to the back and to the left.

    Raises
    ------
    UsageError
        If it cannot be read.
    """
    return _read(path)[1]


def write_masks(folder: Path, name: str, lungs: LabelArray, lesions: LabelArray, grid: Grid) -> tuple[Path, Path]:
    """Write both masks of a study; return their paths."""
    paths = folder / "masks" / f"{name}_lungs.nii.gz", folder / "masks" / f"{name}_lesions.nii.gz"
    for path, labels in zip(paths, (lungs, lesions), strict=True):
        write_image(path, labels, grid)
    return paths


def _read(path: Path) -> tuple[npt.NDArray[np.generic], Grid]:
    """Read an image with axes z, y, x to the head, to the back and to the left, whatever its own order is.

    Not by SimpleITK, which silently reads 0 where a voxel is not a number.
    """
    try:
        image: Any = nib.load(path)
        wanted = axcodes2ornt(("L", "P", "S"))  # type: ignore[no-untyped-call]
        turn = ornt_transform(io_orientation(image.affine), wanted)  # type: ignore[no-untyped-call]
        turned = image.as_reoriented(turn)
        voxels = np.asanyarray(turned.dataobj)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise UsageError(f"cannot read {path.name} as NIfTI") from error
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf":
        raise UsageError(f"{path.name} is not a three-dimensional image of numbers")
    affine = (_RAS_TO_LPS @ turned.affine)[:, [2, 1, 0, 3]]
    z, y, x = voxels.shape[::-1]
    try:
        return np.ascontiguousarray(voxels.transpose()), Grid((z, y, x), affine)
    except ValueError as error:
        raise UsageError(f"the geometry of {path.name} cannot be used: {error}") from error


def _corners(grid: Grid) -> npt.NDArray[np.float64]:
    z, y, x = (n - 1 for n in grid.shape)
    indices = np.array([[i, j, k, 1] for i in (0, z) for j in (0, y) for k in (0, x)])
    return np.asarray(indices @ grid.affine.T)
