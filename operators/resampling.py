"""Resampling between grids over the same extent, with the geometry of :meth:`Grid.resampled`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from operators.volume import FloatArray, Grid


def resample(values: FloatArray, shape: tuple[int, int, int]) -> FloatArray:
    """Resample an array to another shape over the same extent, linear, averaging where it gets coarser.

    Parameters
    ----------
    values : ndarray of float32, shape (z, y, x)
    shape : tuple of int
        New shape; the outer voxel faces of both grids coincide.

    Returns
    -------
    ndarray of float32
    """
    tensor = torch.from_numpy(np.array(values, dtype=np.float32))
    # two passes of the antialiased 2D filter: in the plane, then along z with x left as it is
    planes = F.interpolate(tensor[:, None], size=shape[1:], mode="bilinear", antialias=True)[:, 0]
    if shape[0] == planes.shape[0]:
        return np.asarray(planes.numpy())
    columns = planes.transpose(0, 1)[:, None]
    resized = F.interpolate(columns, size=(shape[0], shape[2]), mode="bilinear", antialias=True)[:, 0]
    return np.ascontiguousarray(resized.transpose(0, 1).numpy())


def shape_at(grid: Grid, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the shape that covers the extent of ``grid`` with voxels nearest to ``spacing`` (mm, z, y, x)."""
    z, y, x = (max(1, round(n * s / t)) for n, s, t in zip(grid.shape, grid.spacing, spacing, strict=True))
    return z, y, x
