"""The images of a cohort: CTs as volumes, masks on their grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom import Dataset

from app.cohort.table import CohortStudy
from app.outcome import UsageError
from operators.refusal import InputRefused
from operators.series_loader import load_ct_series
from operators.volume import CTVolume, Grid, LabelArray

_SAME_PLACE = 0.01
"""How far corners may lie apart in mm that count as the same."""


def load_study(study: CohortStudy) -> CTVolume:
    """Load the CT of a study; of a NIfTI file nothing but its voxels and their places are known.

    Raises
    ------
    UsageError
        If it cannot be read as a chest CT; names the study and the reason.
    """
    try:
        if study.path.is_dir():
            return load_ct_series(study.path)
        hu, grid = _read(study.path)
        return CTVolume(hu.astype(np.float32), grid, (Dataset(),) * grid.shape[0])
    except InputRefused as refusal:
        raise UsageError(f"study {study.path.name}: {refusal.code}: {refusal.message}") from refusal
    except ValueError as error:
        raise UsageError(f"study {study.path.name}: {error}") from error


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
    if own.shape != grid.shape or not np.allclose(_corners(own), _corners(grid), atol=_SAME_PLACE):
        raise UsageError(f"the mask {path.name} does not lie on the grid of its CT")
    if not np.isin(labels, range(highest + 1)).all():
        raise UsageError(f"the mask {path.name} holds other labels than 0 to {highest}")
    return labels.astype(np.uint8)


def _read(path: Path) -> tuple[npt.NDArray[np.generic], Grid]:
    """Read an image with axes z, y, x to the head, to the back and to the left, whatever its own order is."""
    try:
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UsageError(f"cannot read {path.name} as NIfTI") from error
    if image.GetDimension() != 3:
        raise UsageError(f"{path.name} is not three-dimensional")
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns[:, ::-1], image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image)
    slices, rows, columns_ = voxels.shape
    return voxels, Grid((slices, rows, columns_), affine)


def _corners(grid: Grid) -> npt.NDArray[np.float64]:
    z, y, x = (n - 1 for n in grid.shape)
    indices = np.array([[i, j, k, 1] for i in (0, z) for j in (0, y) for k in (0, x)])
    return np.asarray(indices @ grid.affine.T)
