"""The CT volume: the one domain type that everything after loading shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset

from operators.remarks import Remark

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
HuArray = npt.NDArray[np.int16 | np.float32]
"""Hounsfield units: whole ones take half the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular sampling grid in the patient coordinate system.

    Parameters
    ----------
    shape : tuple of int
        Slices, rows, columns: the axes z, y, x of every array on this grid.
    affine : ndarray of float64, shape (4, 4)
        Maps the homogeneous index ``(slice, row, column, 1)`` of a voxel's centre to the DICOM patient
        coordinate system (LPS, mm; PS3.3 C.7.6.2.1.1). Index order as in ``highdicom.Volume``.

    Raises
    ------
    ValueError
        If the affine is not 4 x 4, not finite, singular, or the axes are not mutually orthogonal.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("affine must be a finite 4 x 4 matrix")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError("shape must be three positive numbers")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not spacing.all():
            raise ValueError("voxels must have a size")
        directions = affine[:3, :3] / spacing
        if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
            raise ValueError("axes must be orthogonal")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along z, y, x in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x

    @property
    def orientation(self) -> list[float]:
        """Directions of the rows and of the columns: Image Orientation (Patient)."""
        directions = self.affine[:3, :3] / self.spacing
        return [*directions[:, 2].tolist(), *directions[:, 1].tolist()]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(np.prod(self.spacing)) / 1000.0

    def resampled(self, shape: tuple[int, int, int]) -> Self:
        """Return the grid of another shape over the same extent (outer voxel faces coincide)."""
        zoom = np.array(self.shape, dtype=np.float64) / np.array(shape, dtype=np.float64)
        affine = np.array(self.affine)
        affine[:3, :3] *= zoom
        affine[:3, 3] += self.affine[:3, :3] @ ((zoom - 1.0) / 2.0)
        return type(self)(shape, affine)

    def matches(self, other: Grid) -> bool:
        """Tell whether both grids sample the same points."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class CTVolume:
    """A CT series as one volume, immutable.

    Parameters
    ----------
    hu : ndarray of int16 or float32, shape (z, y, x)
        Hounsfield units. Slices are ordered along the normal of the image plane, so for an axial series of
        a supine, head-first patient from feet to head.
    grid : Grid
        Geometry of ``hu``.
    headers : tuple of Dataset
        Header of each source image in the order of the slices, without pixel data. All outputs take patient, study
        and frame of reference from here.
    places : tuple of int
        Slice of ``hu`` at which each source image lies, ascending; by default each slice has its image. Slices
        without an image were interpolated.
    frames : tuple of int
        Frame number of each source image in its multi-frame object, from 1; 0, the default, for single-frame images.
    remarks : tuple of Remark
        What was repaired in the input.
    texts : tuple of DataElement
        Texts of the first header, in their bytes, that outputs would have in other bytes, as those that do not fit
        the character set.

    Raises
    ------
    ValueError
        If array, grid, headers and places do not agree, or a value is not finite.
    """

    hu: HuArray
    grid: Grid
    headers: tuple[Dataset, ...]
    places: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    remarks: tuple[Remark, ...] = ()
    texts: tuple[DataElement, ...] = ()

    def __post_init__(self) -> None:
        slices = self.grid.shape[0]
        if self.hu.dtype not in (np.int16, np.float32) or self.hu.shape != self.grid.shape:
            raise ValueError("hu must be int16 or float32 and of the shape of the grid")
        object.__setattr__(self, "places", self.places or tuple(range(slices)))
        object.__setattr__(self, "frames", self.frames or (0,) * len(self.headers))
        if not len(self.headers) == len(self.places) == len(self.frames) > 0:
            raise ValueError("one header, place and frame number is needed for each source image")
        if not 0 <= self.places[0] <= self.places[-1] < slices or any(np.diff(self.places) < 1):
            raise ValueError("the places of the source images must ascend within the slices")
        if not all(np.isfinite(plane).all() for plane in self.hu):  # slice by slice: no second volume in memory
            raise ValueError("hu must be finite")
        self.hu.setflags(write=False)

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return str(self.headers[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        """Series Instance UID of the source images."""
        return str(self.headers[0].SeriesInstanceUID)


def plane_areas(mask: BoolArray | LabelArray, axis: int = 0) -> npt.NDArray[np.int64]:
    """Count the voxels that are not zero in each plane across ``axis``.

    Many times faster than ``numpy.count_nonzero`` with axes, which counts in an array of integers.
    """
    return np.array([np.count_nonzero(plane) for plane in np.moveaxis(mask, axis, 0)], dtype=np.int64)
