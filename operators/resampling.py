"""Resampling between grids over the same extent, with the geometry of :meth:`Grid.resampled`.

Everything is computed in parts: what has the size of a CT is held as what was asked for, and nothing beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from operators.volume import BoolArray, FloatArray, Grid

Shape = tuple[int, int, int]
Part = tuple[slice, slice]
"""Slices and rows."""

PART_VOXELS = 1 << 22
"""Voxels computed at a time: bounds the memory, does not change the result."""


def resample(values: npt.NDArray[np.generic], shape: Shape, bounds: tuple[float, float] | None = None) -> FloatArray:
    """Resample an array to another shape over the same extent, linear, averaging where it gets coarser.

    Parameters
    ----------
    values : ndarray, shape (z, y, x)
        Numbers, or bool for 0 and 1.
    shape : tuple of int
        New shape; the outer voxel faces of both grids coincide.
    bounds : tuple of float, optional
        Lowest and highest value: what lies beyond is clipped before.

    Returns
    -------
    ndarray of float32
    """
    result = np.empty(shape, np.float32)
    for part, computed in resampled_parts(values, shape, bounds):
        result[part] = computed
    return result


def at_least(
    values: npt.NDArray[np.generic], shape: Shape, threshold: float, bounds: tuple[float, float] | None = None
) -> BoolArray:
    """Return where what :func:`resample` returns is at or above a threshold."""
    result = np.empty(shape, bool)
    for part, computed in resampled_parts(values, shape, bounds):
        np.greater_equal(computed, threshold, out=result[part])
    return result


def resampled_parts(
    values: npt.NDArray[np.generic], shape: Shape, bounds: tuple[float, float] | None = None
) -> Iterator[tuple[Part, FloatArray]]:
    """Yield what :func:`resample` returns in parts, and which part each is; those of equal shapes are the same."""
    depth, (slices, rows, columns) = values.shape[0], shape
    planes = ((some, _planes(values[some], (rows, columns), bounds)) for some in _ranges(depth, max(rows * columns, 1)))
    if slices == depth:
        yield from (((some, slice(None)), plane.numpy()) for some, plane in planes)
        return
    whole = torch.empty(depth, rows, columns)
    for some, plane in planes:
        whole[some] = plane
    for some in _ranges(rows, max(slices, depth) * columns):
        upright = whole[:, some].transpose(0, 1)[:, None]  # along z, with x left as it is
        resized = F.interpolate(upright, size=(slices, columns), mode="bilinear", antialias=True)[:, 0]
        yield (slice(None), some), resized.transpose(0, 1).numpy()


def _planes(values: npt.NDArray[np.generic], size: tuple[int, int], bounds: tuple[float, float] | None) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(values, dtype=np.float32))
    if bounds:
        tensor.clamp_(*bounds)
    return F.interpolate(tensor[:, None], size=size, mode="bilinear", antialias=True)[:, 0]


def _ranges(count: int, voxels: int) -> Iterator[slice]:
    """Cut ``count`` planes of so many voxels into runs of at most :data:`PART_VOXELS`, of one plane at least."""
    step = max(1, PART_VOXELS // voxels)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def shape_at(grid: Grid, spacing: tuple[float, float, float]) -> Shape:
    """Return the shape that covers the extent of ``grid`` with voxels nearest to ``spacing`` (mm, z, y, x)."""
    z, y, x = (max(1, round(n * s / t)) for n, s, t in zip(grid.shape, grid.spacing, spacing, strict=True))
    return z, y, x
