"""Where the slices of a CT series lie: their order and their common grid, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from operators.refusal import InputRefused, ReasonCode
from operators.volume import Grid

Vectors = npt.NDArray[np.float64]
Plane = Literal["axial", "coronal", "sagittal", "oblique", "unknown"]

MAX_DEGREES_FROM_PLANE = 30.0
"""Images tilted more than this against a plane of the patient are not in it."""
SAME_SPACING_MM = 1e-4
SAME_DIRECTION = 1e-3
"""Greatest difference of direction cosines that counts as one orientation."""
SAME_POSITION_MM = 0.01
MAX_SHIFT_MM = 0.5
"""Greatest drift of the slices across their normal, over the whole series."""
MAX_TILT_DEGREES = 0.5
"""Greatest Gantry/Detector Tilt that counts as none."""
GAP_TOLERANCE = 0.1
"""Each slice must lie within this share of a gap of its place in a uniform stack,"""
ROUNDING_MM = 0.12
"""or this near, since some scanners round positions to 0.1 mm."""
MAX_GAP_MM = 5.0
"""Greatest gap between slices that is interpolated where the gaps are not uniform."""
MAX_INTERPOLATED = 0.1
"""Greatest share of the slices of a volume that may be interpolated for missing ones."""
MAX_PIXELS = 4096
"""Rows or columns that no chest CT exceeds."""
MAX_VOLUME_BYTES = 8 << 30
"""Greatest volume in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The order of the slices of a series, and the uniform grid that they sample.

    Parameters
    ----------
    order : tuple of int
        Index of each slice in the sequence of the headers, ascending along the normal of the image plane.
    places : tuple of float
        Where each slice, in that order, lies on the grid, in slices: whole numbers, but where the gaps vary.
    grid : Grid
        Slices, rows, columns in LPS mm.
    """

    order: tuple[int, ...]
    places: tuple[float, ...]
    grid: Grid

    @property
    def interpolated(self) -> int:
        """How many slices of the grid no image shows."""
        return self.grid.shape[0] - len(self.order)

    @property
    def uniform(self) -> bool:
        """Whether every image lies on a slice of the grid."""
        return all(place.is_integer() for place in self.places)


def numbers(header: Dataset, keyword: str, count: int) -> Vectors:
    """Return the numeric value of an attribute.

    Raises
    ------
    InputRefused
        ``MISSING_ATTRIBUTE`` where it is absent, no finite number, or has another multiplicity than ``count``.
    """
    try:
        values = np.atleast_1d(np.array(header[keyword].value, dtype=np.float64))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        message = f"A slice has no valid {keyword}; send the original series of the scanner."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    return values


def plane_of(header: Dataset) -> Plane:
    """Tell in which plane of the patient an image lies, by Image Orientation (Patient)."""
    try:
        orientation = numbers(header, "ImageOrientationPatient", 6)
    except InputRefused:
        return "unknown"
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    if normal.max() < np.cos(np.radians(MAX_DEGREES_FROM_PLANE)):
        return "oblique"
    planes: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")
    return planes[int(normal.argmax())]


def stack_slices(headers: Sequence[Dataset], max_gap_mm: float = MAX_GAP_MM) -> Stack:
    """Order the slices of a series and find the grid that they sample.

    The position of a slice is the projection of Image Position (Patient) on the normal of the image plane
    (PS3.3, C.7.6.2.1.1), which is the cross product of the row and the column direction. A few missing slices
    leave places of the grid without an image; gaps that vary otherwise give a grid with the smallest gap.

    Parameters
    ----------
    headers : sequence of Dataset
        One header for each slice, in any order, at least two.
    max_gap_mm : float
        Where the gaps are not uniform, the greatest one that is allowed.

    Raises
    ------
    InputRefused
        ``MISSING_ATTRIBUTE``, ``INCONSISTENT_GEOMETRY``, ``GANTRY_TILT``, ``TOO_LARGE``, ``DUPLICATE_POSITIONS`` or
        ``MISSING_SLICES``.
    """
    size = _common(headers, "Rows", 1, 0.0), _common(headers, "Columns", 1, 0.0)
    rows, columns = int(size[0][0]), int(size[1][0])
    pixel_spacing = _common(headers, "PixelSpacing", 2, SAME_SPACING_MM)
    axes = _axes(_common(headers, "ImageOrientationPatient", 6, SAME_DIRECTION))
    if min(rows, columns) < 1 or pixel_spacing.min() <= 0.0:
        raise _inconsistent("The pixels of the series have no size")
    _refuse_tilt(headers)
    positions = np.stack([numbers(header, "ImagePositionPatient", 3) for header in headers])
    order = np.argsort(positions @ axes[:, 0], kind="stable")
    positions = positions[order]
    gap, places = _uniform_places(positions @ axes[:, 0], max_gap_mm)
    _refuse_shear(positions, axes)
    slices = round(places[-1]) + 1
    if max(rows, columns) > MAX_PIXELS or slices * rows * columns * 4 > MAX_VOLUME_BYTES:
        message = f"{slices} slices of {columns} x {rows} pixels are no chest CT; send the original axial series."
        raise InputRefused(ReasonCode.TOO_LARGE, message)

    affine = np.eye(4)
    affine[:3, :3] = axes * [gap, *pixel_spacing]
    affine[:3, 3] = positions[0]
    return Stack(tuple(order.tolist()), tuple(places.tolist()), Grid((slices, rows, columns), affine))


def _inconsistent(message: str) -> InputRefused:
    return InputRefused(ReasonCode.INCONSISTENT_GEOMETRY, f"{message}; send one complete axial series.")


def _common(headers: Sequence[Dataset], keyword: str, count: int, tolerance: float) -> Vectors:
    """Return the value that all slices share."""
    values = np.stack([numbers(header, keyword, count) for header in headers])
    if np.ptp(values, axis=0).max() > tolerance:
        raise _inconsistent(f"The slices differ in {keyword}")
    return np.asarray(values[0])


def _axes(orientation: Vectors) -> Vectors:
    """Return the directions of the slice, row and column index as columns of a matrix."""
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    axes = np.stack([normal, along_column, along_row], axis=1)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=SAME_DIRECTION):
        raise _inconsistent("Row and column direction of the images are not orthogonal unit vectors")
    return np.asarray(axes / np.linalg.norm(axes, axis=0))


def _refuse_tilt(headers: Sequence[Dataset]) -> None:
    """Refuse a series whose scanner says that its gantry was tilted."""
    for header in headers:
        if header.get("GantryDetectorTilt") is not None:
            tilt = float(numbers(header, "GantryDetectorTilt", 1)[0])
            if abs(tilt) > MAX_TILT_DEGREES:
                message = (
                    f"The gantry was tilted by {tilt:g} degrees; send a series without tilt, or a reformatted one."
                )
                raise InputRefused(ReasonCode.GANTRY_TILT, message)


def _refuse_shear(positions: Vectors, axes: Vectors) -> None:
    """Refuse slices, in order, that are not stacked along their normal."""
    across = (positions - positions[0]) @ axes[:, 1:]
    if np.abs(across).max() > MAX_SHIFT_MM:
        raise _inconsistent("The slices are not stacked along their normal (gantry tilt or shear)")


def _uniform_places(positions: Vectors, max_gap_mm: float) -> tuple[float, Vectors]:
    """Return the gap of a uniform stack in mm, and where ascending ``positions`` along the normal lie in it."""
    gaps = np.diff(positions)
    if gaps.min() < SAME_POSITION_MM:
        twice = int((gaps < SAME_POSITION_MM).sum())
        message = f"{twice} slice(s) lie where another one lies; send each slice of one acquisition once."
        raise InputRefused(ReasonCode.DUPLICATE_POSITIONS, message)
    offsets = positions - positions[0]
    complete = np.arange(len(positions), dtype=np.float64)
    gap = float(offsets[-1]) / (len(positions) - 1)
    if _fits(offsets, gap, complete):
        return gap, complete
    if gaps.max() > max_gap_mm:
        message = (
            f"The gaps between slices vary from {gaps.min():.2f} to {gaps.max():.2f} mm, more than {max_gap_mm:g} mm"
            " are not interpolated; send all slices."
        )
        raise InputRefused(ReasonCode.MISSING_SLICES, message)
    whole = np.rint(offsets / np.median(gaps[gaps < 1.5 * gaps.min()]))  # the gap where nothing is missing
    with_missing = float(offsets[-1] / max(whole[-1], 1.0))
    if np.diff(whole).min() >= 1 and _fits(offsets, with_missing, whole):
        _refuse_many_missing(whole)
        return with_missing, whole
    return _resampled(offsets, float(gaps.min()))


def _fits(offsets: Vectors, gap: float, places: Vectors) -> bool:
    """Tell whether slices at ``offsets`` lie at ``places`` of a uniform stack."""
    return bool(np.abs(offsets - gap * places).max() <= max(GAP_TOLERANCE * gap, ROUNDING_MM))


def _refuse_many_missing(places: Vectors) -> None:
    missing = int(places[-1]) + 1 - len(places)
    if missing > MAX_INTERPOLATED * (places[-1] + 1):
        message = f"{missing} of {int(places[-1]) + 1} slices are missing; send all slices."
        raise InputRefused(ReasonCode.MISSING_SLICES, message)


def _resampled(offsets: Vectors, smallest: float) -> tuple[float, Vectors]:
    """Return the gap nearest to the smallest one that divides the extent, and the places, each image near its own."""
    gap = float(offsets[-1]) / np.ceil(offsets[-1] / smallest)
    places = np.round(offsets / gap, 6)  # else the last bits decide which slice is the nearest
    if places[-1] + 1 > 2 * len(offsets):
        message = "The gaps between slices vary too much to be interpolated; send all slices."
        raise InputRefused(ReasonCode.MISSING_SLICES, message)
    places[-1] = np.rint(places[-1])
    return gap, places
