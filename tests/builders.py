"""Synthetic inputs that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.phantom.dicom import ct_headers, write_ct_series
from operators.volume import CTVolume, Grid

Triple = tuple[float, float, float]


def axial_grid(
    shape: tuple[int, int, int], spacing: Triple = (3.0, 1.5, 1.5), origin: Triple = (0.0, 0.0, 0.0)
) -> Grid:
    """Grid of an axial series; ``spacing`` is z, y, x in mm, ``origin`` x, y, z (LPS, mm)."""
    dz, dy, dx = spacing
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = dz, dy, dx
    affine[:, 3] = [*origin, 1.0]
    return Grid(shape, affine)


def ct_volume(
    hu: npt.ArrayLike,
    spacing: Triple = (3.0, 1.5, 1.5),
    origin: Triple = (0.0, 0.0, 0.0),
    study: str = "0",
    **attributes: object,
) -> CTVolume:
    """A valid CT volume of ``hu`` (z, y, x; feet to head); ``attributes`` replace DICOM attributes by keyword."""
    voxels = np.array(hu, dtype=np.float32)
    slices, rows, columns = voxels.shape
    headers = ct_headers((slices, rows, columns), spacing, origin, study)
    for header in headers:
        for keyword, value in attributes.items():
            setattr(header, keyword, value)
    return CTVolume(voxels, axial_grid((slices, rows, columns), spacing, origin), headers)


def write_series(
    folder: Path,
    hu: npt.ArrayLike,
    spacing: Triple = (3.0, 1.5, 1.5),
    origin: Triple = (0.0, 0.0, 0.0),
    study: str = "0",
    **attributes: object,
) -> list[Path]:
    """Write ``hu`` (z, y, x; feet to head) as a CT series; returns the files in the order of the slices."""
    return write_ct_series(folder, np.asarray(hu, dtype=np.float32), spacing, origin=origin, study=study, **attributes)
