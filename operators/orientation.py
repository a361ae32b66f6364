"""Bringing volumes of any acquisition to one orientation, and findings back.

The networks know one arrangement only: slices from feet to head, rows from front to back, columns from the patient's
right to the left. Feet-first, prone, decubitus, coronal and sagittal acquisitions are turned to it by permuting and
reversing axes: nothing is interpolated, and turning back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from operators.findings import Explanation, Involvement, Lesions, Lungs
from operators.volume import CTVolume, Grid

Scalar = TypeVar("Scalar", bound=np.generic)

_STANDARD = ((2, 1.0), (1, 1.0), (0, 1.0))
"""Patient axis (LPS) and sign along which slices, rows and columns run in the standard arrangement."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A permutation of the three axes of an array, and which of them are reversed after it.

    Parameters
    ----------
    axes : tuple of int
        Axis of the source array that becomes slices, rows and columns.
    reversed_axes : tuple of int
        Axes of the result that run the other way.
    """

    axes: tuple[int, int, int]
    reversed_axes: tuple[int, ...]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Rearrange an array; a view."""
        return np.flip(array.transpose(self.axes), self.reversed_axes)

    def undo(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Bring an array back to the source arrangement; contiguous."""
        back = np.argsort(self.axes).tolist()
        return np.ascontiguousarray(np.flip(array, self.reversed_axes).transpose(back))

    def apply_to_grid(self, grid: Grid) -> Grid:
        """Return the same points as a grid in this arrangement."""
        z, y, x = (grid.shape[axis] for axis in self.axes)
        affine = np.array(grid.affine)
        affine[:3, :3] = affine[:3, list(self.axes)]
        for axis in self.reversed_axes:
            affine[:3, 3] += affine[:3, axis] * ((z, y, x)[axis] - 1)
            affine[:3, axis] *= -1.0
        return Grid((z, y, x), affine)


def standard_arrangement(grid: Grid) -> Arrangement:
    """Return how to bring arrays on ``grid`` to slices towards the head, rows to the back, columns to the left."""
    return arrangement_towards(grid, _STANDARD)


def arrangement_towards(grid: Grid, directions: tuple[tuple[int, float], ...]) -> Arrangement:
    """Return how to bring arrays on ``grid`` to axes that run along these patient axes (LPS) with these signs."""
    nearest = _patient_axes(grid)
    axes = tuple(next(k for k, (axis, _) in enumerate(nearest) if axis == wanted) for wanted, _ in directions)
    flips = tuple(k for k, (_, sign) in enumerate(directions) if nearest[axes[k]][1] != sign)
    return Arrangement((axes[0], axes[1], axes[2]), flips)


def arrangement_like(grid: Grid, other: Grid) -> Arrangement:
    """Return how to bring arrays on ``grid`` to the arrangement of ``other``."""
    return arrangement_towards(grid, _patient_axes(other))


def _patient_axes(grid: Grid) -> tuple[tuple[int, float], ...]:
    """Return for each array axis the patient axis (LPS) that it is nearest to, each taken once, and its sign."""
    directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    left = np.abs(directions)
    nearest: dict[int, tuple[int, float]] = {}
    for _ in range(3):
        patient, array = np.unravel_index(int(left.argmax()), left.shape)
        nearest[int(array)] = int(patient), float(np.sign(directions[patient, array]))
        left[patient, :] = left[:, array] = -1.0
    return nearest[0], nearest[1], nearest[2]


def standard_volume(volume: CTVolume) -> CTVolume:
    """Return a volume in the standard arrangement; its source images are no longer told apart."""
    arrangement = standard_arrangement(volume.grid)
    grid = arrangement.apply_to_grid(volume.grid)
    return CTVolume(arrangement.apply(volume.hu), grid, volume.headers[:1], (0,))


def standard_lungs(lungs: Lungs) -> Lungs:
    """Return lungs in the standard arrangement."""
    arrangement = standard_arrangement(lungs.grid)
    return Lungs(arrangement.apply(lungs.labels), arrangement.apply_to_grid(lungs.grid))


def standard_lesions(lesions: Lesions) -> Lesions:
    """Return lesions in the standard arrangement."""
    arrangement = standard_arrangement(lesions.grid)
    return Lesions(arrangement.apply(lesions.labels), arrangement.apply_to_grid(lesions.grid))


def lungs_on(grid: Grid, lungs: Lungs) -> Lungs:
    """Bring lungs in the standard arrangement back to the grid they come from."""
    return Lungs(standard_arrangement(grid).undo(lungs.labels), grid)


def lesions_on(grid: Grid, lesions: Lesions) -> Lesions:
    """Bring lesions in the standard arrangement back to the grid they come from."""
    return Lesions(standard_arrangement(grid).undo(lesions.labels), grid)


def involvement_on(grid: Grid, involvement: Involvement) -> Involvement:
    """Bring involvement in the standard arrangement back to the grid it comes from."""
    return Involvement(standard_arrangement(grid).undo(involvement.mask), grid)


def explanation_like(explanation: Explanation, grid: Grid) -> Explanation:
    """Return an explanation with its heatmaps arranged as arrays on ``grid`` are; their resolution stays."""
    arrangement = arrangement_like(explanation.grid, grid)
    return replace(
        explanation,
        ct=arrangement.apply(explanation.ct),
        lesions=arrangement.apply(explanation.lesions),
        grid=arrangement.apply_to_grid(explanation.grid),
    )
