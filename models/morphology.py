"""Morphology of binary masks in millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]
"""Voxel size in mm along z, y, x."""
SLAB = 64
"""Slices that distances are computed for at a time, where that is possible: bounds the memory alone."""
SECOND_LUNG = 0.08
"""What is smaller beside a lung, as a share of it, is not the other one."""
_RADII = (0.0, 1.5, 3.0, 5.0, 8.0, 12.0)
"""By how much lungs that touch are eroded, in mm."""
_APART = (0.05, 0.25)
"""Of two lungs beside each other so much, at most, lies among the columns of the other; the second of a patient who is
turned."""
_TOUCHING, _LARGE = 0.15, 0.01
"""Least size of the core of a second lung where both touch, and of a further part that is not just nearest to one, as
shares of the largest."""


def distance_to(mask: BoolArray, spacing: Spacing) -> FloatArray:
    """Return the distance in mm from each voxel to the nearest voxel of ``mask``; 0 inside it."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])  # type: ignore[no-untyped-call]
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)  # type: ignore[no-untyped-call]
    found: FloatArray = sitk.GetArrayFromImage(distance)
    return np.maximum(found, np.float32(0.0), out=found)


def deeper_than(mask: BoolArray, depth: float, spacing: Spacing) -> BoolArray:
    """Return where a mask is farther than ``depth`` mm from all that is not in it; nothing is known beyond the array.

    In slabs, each with what is near enough to matter beside it: a distance map is four times as large as a mask.
    """
    result = np.zeros_like(mask)
    beside = math.ceil(depth / spacing[0])
    for start in range(0, len(mask), SLAB):
        stop = min(start + SLAB, len(mask))
        if not mask[start:stop].any():
            continue
        inner, outer = slice(start, stop), slice(max(start - beside, 0), stop + beside)
        _, rows, columns = bounding_box(mask[outer], (0, 1, 1))
        outside = ~mask[outer, rows, columns]
        deep = distance_to(outside, spacing) > depth if outside.any() else ~outside
        result[inner, rows, columns] = deep[start - outer.start :][: stop - start]
    return result


def dilate(mask: BoolArray, radius: float, spacing: Spacing) -> BoolArray:
    """Dilate by a ball of ``radius`` mm."""
    return distance_to(mask, spacing) <= radius if mask.any() else mask.copy()


def close(mask: BoolArray, radius: float, spacing: Spacing) -> BoolArray:
    """Close by a ball of ``radius`` mm, with room around so that the border does not attract.

    Beyond the first and the last slice the mask goes on as it ends: a scan that ends in the lungs cuts vessels, too.
    """
    if not mask.any():
        return mask.copy()
    pad = [int(np.ceil(radius / step)) + 2 for step in spacing]
    box = bounding_box(mask, pad)
    longer = np.pad(mask[box], [(pad[0], pad[0]), (0, 0), (0, 0)], mode="edge")
    padded = np.pad(longer, [(0, 0), (pad[1], pad[1]), (pad[2], pad[2])])
    outside = ~dilate(padded, radius, spacing)
    closed = distance_to(outside, spacing) > radius if outside.any() else padded
    result = mask.copy()
    result[box] |= closed[tuple(slice(p, -p) for p in pad)]
    return result


def bounding_box(mask: BoolArray, margin: Sequence[int] = ()) -> tuple[slice, ...]:
    """Return the slices of the smallest box that holds ``mask``, and a margin as far as it is in the image.

    Parameters
    ----------
    mask : ndarray of bool
    margin : sequence of int
        Voxels on both sides along each axis; none by default.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(s.start - voxels, 0), min(s.stop + voxels, size))
        for s, voxels, size in zip(box, margin or (0,) * mask.ndim, mask.shape, strict=True)
    )


def body_region(dense: BoolArray, opening: int) -> BoolArray:
    """Return the body, its air included, slice by slice: without the table, clothes and the air around it.

    Parameters
    ----------
    dense : ndarray of bool
        What is denser than lung.
    opening : int
        Voxels by which the dense parts are opened: a skin or a blanket may be porous, the body is what is large then.
    """
    labels, count = ndimage.label(ndimage.binary_opening(dense, iterations=opening))
    if not count:
        return np.zeros_like(dense)
    body = labels == 1 + int(np.argmax(ndimage.sum_labels(dense, labels, range(1, count + 1))))
    return np.stack([ndimage.binary_fill_holes(plane) for plane in body])


def split_sides(lungs: BoolArray, spacing: Spacing) -> tuple[BoolArray, BoolArray]:
    """Split a lung mask into the halves at low and at high x (for LPS axes: right and left lung).

    Two large parts that lie beside each other are the two lungs. Lungs that touch are parted by eroding until there are
    such parts. Other large parts belong to the lung in whose columns they lie, and each voxel to the nearest part; what
    hangs together with parts of one lung only belongs to it. What cannot be parted is cut in the middle of the image;
    where hardly anything is on one side of it, there is one lung.
    """
    middle = lungs.shape[2] // 2
    low, high = int(lungs[..., :middle].sum()), int(lungs[..., middle:].sum())
    alone = min(low, high) < SECOND_LUNG * max(low, high)
    depth = distance_to(~lungs, spacing)
    for apart in _APART:
        for radius in _RADII[:1] if alone else _RADII:
            parts, count = ndimage.label(depth > radius)
            sides = _sides_of_parts(parts, count, _TOUCHING if radius else SECOND_LUNG, apart)
            if sides is not None:
                of_low = _of_first(lungs, np.isin(parts, sides[0]), np.isin(parts, sides[1]), spacing)
                return of_low, lungs & ~of_low
    if alone:
        nothing = np.zeros_like(lungs)
        return (lungs.copy(), nothing) if low > high else (nothing, lungs.copy())
    before = np.arange(lungs.shape[2]) < middle
    return lungs & before, lungs & ~before


def _sides_of_parts(
    parts: npt.NDArray[np.int32], count: int, least: float, apart: float
) -> tuple[list[int], list[int]] | None:
    """Return which numbered parts lie at low and at high x; None unless the largest has another lung beside it."""
    columns = np.stack([np.bincount(plane.ravel(), minlength=count + 1)[1:] for plane in np.moveaxis(parts, 2, 0)])
    sizes = columns.sum(axis=0)
    share = np.cumsum(columns, axis=0) / np.maximum(sizes, 1)
    begin, centre, end = ((share < quantile).sum(axis=0) for quantile in (apart, 0.5, 1.0 - apart))
    order = np.argsort(sizes)[::-1]
    for other in order[1:][sizes[order[1:]] >= least * sizes.max(initial=0)]:
        first, second = sorted((int(order[0]), int(other)), key=lambda part: int(centre[part]))
        if end[first] <= begin[second]:
            large = np.flatnonzero(sizes >= _LARGE * sizes.max())
            at_low = np.abs(centre[large] - centre[first]) <= np.abs(centre[large] - centre[second])
            return (large[at_low] + 1).tolist(), (large[~at_low] + 1).tolist()
    return None


def _of_first(mask: BoolArray, first: BoolArray, second: BoolArray, spacing: Spacing) -> BoolArray:
    """Return the voxels of a mask that belong to the first of two groups of its parts."""
    pieces, count = ndimage.label(mask)
    with_first, with_second = (np.bincount(pieces[group], minlength=count + 1) > 0 for group in (first, second))
    nearer = distance_to(first, spacing) <= distance_to(second, spacing)
    return mask & np.where((with_first == with_second)[pieces], nearer, with_first[pieces])
