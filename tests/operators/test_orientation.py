"""Any acquisition in the standard arrangement and back: exact, and left stays left."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from operators.findings import Explanation, Involvement, Lesions, Lung, Lungs
from operators.orientation import (
    arrangement_like,
    explanation_like,
    involvement_on,
    lesions_on,
    lungs_on,
    standard_arrangement,
    standard_lesions,
    standard_lungs,
    standard_volume,
)
from operators.volume import CTVolume, Grid
from tests.builders import axial_grid, ct_volume

SHAPE = (5, 6, 7)
SPACING = (3.0, 1.5, 0.5)
ALL = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _acquired(axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, Grid, np.ndarray, Grid]:
    """A standard array with its grid, and the same points acquired along other axes; by loops over voxels."""
    grid = axial_grid(SHAPE, SPACING, (-10.0, 20.0, 30.0))
    values = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.float32)
    shape = tuple(SHAPE[axis] for axis in axes)
    other = np.empty(shape, np.float32)
    for index in np.ndindex(*shape):
        source = [0, 0, 0]
        for k, axis in enumerate(axes):
            source[axis] = index[k] if signs[k] > 0 else SHAPE[axis] - 1 - index[k]
        other[index] = values[tuple(source)]
    affine = np.eye(4)
    first = [0.0, 0.0, 0.0, 1.0]
    for k, axis in enumerate(axes):
        affine[:3, k] = signs[k] * grid.affine[:3, axis]
        if signs[k] < 0:
            first[axis] = SHAPE[axis] - 1
    affine[:3, 3] = (grid.affine @ first)[:3]
    return values, grid, other, Grid(shape, affine)  # type: ignore[arg-type]


@pytest.mark.parametrize(("axes", "signs"), ALL)
def test_every_arrangement_becomes_the_standard_one_and_goes_back(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    values, grid, other, other_grid = _acquired(axes, signs)
    arrangement = standard_arrangement(other_grid)
    np.testing.assert_array_equal(arrangement.apply(other), values)
    np.testing.assert_allclose(arrangement.apply_to_grid(other_grid).affine, grid.affine, atol=1e-12)
    np.testing.assert_array_equal(arrangement.undo(values), other)


@pytest.mark.parametrize(("axes", "signs"), ALL[::5])
def test_findings_go_to_the_standard_arrangement_and_back(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values, grid, other, other_grid = _acquired(axes, signs)
    labels, other_labels = (np.clip(np.abs(a) / 200, 0, 2).astype(np.uint8) for a in (values, other))
    for standard, back, kind in (
        (standard_lungs, lungs_on, Lungs),
        (standard_lesions, lesions_on, Lesions),
    ):
        upright = standard(kind(other_labels, other_grid))  # type: ignore[arg-type]
        np.testing.assert_array_equal(upright.labels, labels)
        assert upright.grid.matches(grid)
        np.testing.assert_array_equal(back(other_grid, upright).labels, other_labels)  # type: ignore[arg-type]
    involvement = involvement_on(other_grid, Involvement(labels > 0, grid))
    np.testing.assert_array_equal(involvement.mask, other_labels > 0)
    assert involvement.grid.matches(other_grid)
    volume = CTVolume(other, other_grid, ct_volume(values).headers[:1], (0,))
    np.testing.assert_array_equal(standard_volume(volume).hu, values)


def test_oblique_grids_go_to_the_nearest_axes() -> None:
    angle = np.radians(20.0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [[0, 0, 1], [-np.sin(angle), np.cos(angle), 0], [np.cos(angle), np.sin(angle), 0]]
    ) * np.array(SPACING)
    arrangement = standard_arrangement(Grid(SHAPE, affine))
    assert arrangement.axes == (0, 1, 2)
    assert arrangement.reversed_axes == ()


@pytest.mark.parametrize(("axes", "signs"), ALL[1::7])
def test_a_coarse_heatmap_is_arranged_as_the_ct_is(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values, grid, other, other_grid = _acquired(axes, signs)
    explanation = Explanation(values, -values, grid, 1, 1.0)
    turned = explanation_like(explanation, other_grid)
    np.testing.assert_array_equal(turned.ct, other)
    np.testing.assert_array_equal(turned.lesions, -other)
    assert turned.grid.matches(other_grid)
    np.testing.assert_array_equal(arrangement_like(other_grid, grid).apply(other), values)


def test_labels_keep_their_meaning() -> None:
    """A voxel on the patient's left has x > 0, whatever the arrangement."""
    grid = axial_grid((4, 4, 8), (1.0, 1.0, 1.0), (-3.5, 0.0, 0.0))
    labels = np.full(grid.shape, Lung.RIGHT, np.uint8)
    labels[..., 4:] = Lung.LEFT
    turned = lungs_on(Grid((4, 4, 8), grid.affine @ np.diag([1, 1, -1, 1]) + _shift(grid, 7)), Lungs(labels, grid))
    for index in np.ndindex(*turned.labels.shape):
        x = (turned.grid.affine @ [*index, 1])[0]
        assert turned.labels[index] == (Lung.LEFT if x > 0 else Lung.RIGHT)


def _shift(grid: Grid, columns: int) -> np.ndarray:
    """What moves the origin of a grid to its last column."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = grid.affine[:3, 2] * columns
    return shift
