"""Where the slices of a CT series lie: their order and their common grid, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from operators.refusal import InputRefused, ReasonCode
from operators.volume import Grid

Vectors = npt.NDArray[np.float64]

MAX_DEGREES_FROM_AXIAL = 30.0
"""Images tilted more than this against the patient's axial plane are not an axial series."""
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


def is_axial(header: Dataset) -> bool:
    """Tell whether an image is oriented nearly axially; False where its orientation is not known."""
    try:
        orientation = numbers(header, "ImageOrientationPatient", 6)
    except InputRefused:
        return False
    normal = np.cross(orientation[:3], orientation[3:])
    return bool(abs(normal[2]) >= np.cos(np.radians(MAX_DEGREES_FROM_AXIAL)))


def stack_slices(headers: Sequence[Dataset]) -> tuple[list[int], Grid]:
    """Order the slices of a series and find the grid that they sample.

    The position of a slice is the projection of Image Position (Patient) on the normal of the image plane
    (PS3.3, C.7.6.2.1.1), which is the cross product of the row and the column direction.

    Parameters
    ----------
    headers : sequence of Dataset
        One header for each slice, in any order, at least two.

    Returns
    -------
    order : list of int
        Index into ``headers`` of each slice, ascending along the normal.
    grid : Grid
        Slices, rows, columns in LPS mm.

    Raises
    ------
    InputRefused
        ``MISSING_ATTRIBUTE``, ``INCONSISTENT_GEOMETRY``, ``DUPLICATE_POSITIONS`` or ``MISSING_SLICES``.
    """
    size = _common(headers, "Rows", 1, 0.0), _common(headers, "Columns", 1, 0.0)
    rows, columns = int(size[0][0]), int(size[1][0])
    pixel_spacing = _common(headers, "PixelSpacing", 2, SAME_SPACING_MM)
    axes = _axes(_common(headers, "ImageOrientationPatient", 6, SAME_DIRECTION))
    if min(rows, columns) < 1 or pixel_spacing.min() <= 0.0:
        raise _inconsistent("The pixels of the series have no size")
    _refuse_tilt(headers)
    positions = np.stack([numbers(header, "ImagePositionPatient", 3) for header in headers])
    order = np.argsort(positions @ axes[:, 0])
    positions = positions[order]
    gap = _uniform_gap(positions @ axes[:, 0])
    _refuse_shear(positions, axes)

    affine = np.eye(4)
    affine[:3, :3] = axes * [gap, *pixel_spacing]
    affine[:3, 3] = positions[0]
    return order.tolist(), Grid((len(headers), rows, columns), affine)


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
                raise _inconsistent(f"The gantry was tilted by {tilt:g} degrees, which is not supported")


def _refuse_shear(positions: Vectors, axes: Vectors) -> None:
    """Refuse slices, in order, that are not stacked along their normal."""
    across = (positions - positions[0]) @ axes[:, 1:]
    if np.abs(across).max() > MAX_SHIFT_MM:
        raise _inconsistent("The slices are not stacked along their normal (gantry tilt or shear)")


def _uniform_gap(places: Vectors) -> float:
    """Return the gap in mm between slices at these places along the normal, ascending."""
    gaps = np.diff(places)
    if gaps.min() < SAME_POSITION_MM:
        twice = int((gaps < SAME_POSITION_MM).sum())
        message = f"{twice} slice(s) lie where another one lies; send each slice of one acquisition once."
        raise InputRefused(ReasonCode.DUPLICATE_POSITIONS, message)
    gap = float(places[-1] - places[0]) / len(gaps)
    off = np.abs(places - places[0] - gap * np.arange(len(places)))
    if off.max() > max(GAP_TOLERANCE * gap, ROUNDING_MM):
        message = f"The gaps between slices vary from {gaps.min():.2f} to {gaps.max():.2f} mm; send all slices."
        raise InputRefused(ReasonCode.MISSING_SLICES, message)
    return gap
