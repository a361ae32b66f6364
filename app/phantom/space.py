"""The space in which the phantom is built, and the shapes drawn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.morphology import bounding_box

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = tuple[float, float, float]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Sampling grid and coordinates of the anatomy.

    Coordinates are in mm of a standard person: x to the left, y to the back, z to the head; x = 0 is the
    midline, y = 0 the middle of the chest, z = 0 the lowest slice.

    Parameters
    ----------
    shape : tuple of int
        Slices, rows, columns.
    step : tuple of float
        Distance between voxel centres along z, y, x in mm of the standard person.
    """

    shape: tuple[int, int, int]
    step: Point

    @property
    def z(self) -> Field:
        """Coordinate along z, shape (slices, 1, 1)."""
        return (np.arange(self.shape[0], dtype=np.float32) * np.float32(self.step[0]))[:, None, None]

    @property
    def y(self) -> Field:
        """Coordinate along y, shape (rows, 1)."""
        return self._centred(1)[:, None]

    @property
    def x(self) -> Field:
        """Coordinate along x, shape (columns,)."""
        return self._centred(2)

    def _centred(self, axis: int) -> Field:
        count = self.shape[axis]
        return np.asarray((np.arange(count) - (count - 1) / 2) * self.step[axis], dtype=np.float32)

    def index(self, points: Points) -> Points:
        """Return the fractional index (slice, row, column) of points given as x, y, z."""
        middle = np.array([0.0, (self.shape[1] - 1) / 2, (self.shape[2] - 1) / 2])
        return np.asarray(points[:, ::-1] / np.array(self.step) + middle)

    def points(self, mask: Mask) -> Points:
        """Return the coordinates x, y, z of the voxels of a mask, shape (voxels, 3)."""
        middle = np.array([0.0, (self.shape[1] - 1) / 2, (self.shape[2] - 1) / 2])
        return np.asarray(((np.argwhere(mask) - middle) * np.array(self.step))[:, ::-1])

    def blur(self, array: npt.NDArray[np.generic], sigma: float) -> Field:
        """Return the array filtered by a Gaussian of ``sigma`` mm."""
        sigmas = [sigma / step for step in self.step]
        return np.asarray(ndimage.gaussian_filter(array.astype(np.float32), sigmas, truncate=3.0))

    def texture(self, rng: np.random.Generator, sigma: float) -> Field:
        """Return noise of zero mean and unit deviation, correlated over ``sigma`` mm."""
        noise = self.blur(rng.standard_normal(self.shape, dtype=np.float32), sigma)
        return np.asarray(noise / noise.std())

    def depth(self, mask: Mask) -> Field:
        """Return how deep in the mask each voxel lies, in mm."""
        depth = np.zeros(mask.shape, dtype=np.float32)
        if mask.any():
            box = bounding_box(mask, (1, 1, 1))  # what lies further away is not nearest to any of its voxels
            depth[box] = ndimage.distance_transform_edt(mask[box], sampling=self.step)
        return depth

    def ellipsoid(self, centre: Point, radii: Point, turn: float = 0.0) -> Mask:
        """Return an ellipsoid; centre and radii as x, y, z, turned by ``turn`` degrees in the axial plane."""
        cos, sin = float(np.cos(np.radians(turn))), float(np.sin(np.radians(turn)))
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        u, v = cos * x + sin * y, cos * y - sin * x
        return np.asarray((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1.0)

    def tube(self, line: Sequence[Point], radius: float) -> Mask:
        """Return a tube of constant radius along a polyline of points x, y, z."""
        share = np.zeros(self.shape, dtype=np.float32)
        points = np.array(line, dtype=np.float64)
        for start, end in pairwise(points):
            self.draw_segment(share, start, end, radius)
        return share > 0.5  # more than half of the voxel

    def draw_segment(self, share: Field, start: Points, end: Points, radius: float) -> None:
        """Raise ``share``, the part of each voxel that is filled, by a straight tube with round ends."""
        reach = radius + max(self.step)
        corners = np.stack([np.minimum(start, end) - reach, np.maximum(start, end) + reach])
        low = np.clip(np.floor(self.index(corners)[0]), 0, None).astype(int)
        high = np.minimum(np.ceil(self.index(corners)[1]).astype(int) + 1, self.shape)
        if (low >= high).any():
            return
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        x, y, z = self.x[box[2]] - start[0], self.y[box[1]] - start[1], self.z[box[0]] - start[2]
        along = end - start
        t = np.clip((x * along[0] + y * along[1] + z * along[2]) / max(float(along @ along), 1e-6), 0.0, 1.0)
        distance = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2)
        filled = np.clip(0.5 + (radius - distance) / self.step[2], 0.0, min(1.0, 2.0 * radius / self.step[2]))
        np.maximum(share[box], filled, out=share[box], casting="same_kind")
