"""Resampling agrees with the geometry of the grids."""

import numpy as np
import pytest

from operators.resampling import at_least, resample, shape_at
from tests.builders import axial_grid


def _positions(shape: tuple[int, int, int], spacing: tuple[float, float, float], new: tuple[int, int, int]) -> list:
    grid = axial_grid(shape, spacing, origin=(10.0, -20.0, 30.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in new], indexing="ij"), -1)
    other = grid.resampled(new)
    return [
        np.einsum("ij,...j->...i", g.affine, np.concatenate([i, np.ones((*i.shape[:3], 1))], -1))[..., :3]
        for g, i in (
            (grid, np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)),
            (other, index),
        )
    ]


@pytest.mark.parametrize("new", [(10, 16, 12), (5, 8, 6), (20, 40, 30), (7, 11, 9)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_in_space_stays_that_ramp(new: tuple[int, int, int], axis: int) -> None:
    old, resampled = _positions((10, 16, 12), (3.0, 1.0, 2.0), new)
    got = resample(old[..., axis].astype(np.float32), new)
    inner = tuple(slice(n // 3, n - n // 3) for n in new)  # borders are extended, not extrapolated
    # the taps of the filter are discrete: exact within 2 % of a voxel
    np.testing.assert_allclose(got[inner], resampled[..., axis][inner], atol=0.02 * 3.0)


def test_the_same_shape_changes_nothing() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(resample(values, values.shape), values, atol=1e-6)


def test_coarser_means_average() -> None:
    noise = np.random.default_rng(0).standard_normal((16, 64, 64)).astype(np.float32)
    assert resample(noise, (4, 16, 16)).std() < 0.25


def _at_once(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resample with a matrix of weights along each axis: triangles as wide as the coarser of both voxels."""

    def weights(old: int, new: int) -> np.ndarray:
        scale = old / new
        width = max(scale, 1.0)
        centres = (np.arange(new) + 0.5) * scale - 0.5
        triangle = np.maximum(1.0 - np.abs(np.arange(old) - centres[:, None]) / width, 0.0)
        return triangle / triangle.sum(axis=1, keepdims=True)

    z, y, x = (weights(old, new) for old, new in zip(values.shape, shape, strict=True))
    return np.einsum("az,by,cx,zyx->abc", z, y, x, values, optimize=True)


@pytest.mark.parametrize("voxels", [1, 500, 1 << 24])
@pytest.mark.parametrize("new", [(11, 20, 9), (7, 11, 30), (25, 7, 9)])
def test_parts_make_up_the_whole(new: tuple[int, int, int], voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operators.resampling.PART_VOXELS", voxels)
    values = np.random.default_rng(0).standard_normal((11, 16, 14)).astype(np.float32)
    expected = _at_once(values, new)
    np.testing.assert_allclose(resample(values, new), expected, atol=1e-5)
    np.testing.assert_array_equal(at_least(values, new, 0.2), resample(values, new) >= np.float32(0.2))
    np.testing.assert_allclose(resample(values, new, (-0.5, 1.0)), _at_once(values.clip(-0.5, 1.0), new), atol=1e-5)
    np.testing.assert_array_equal(resample(values > 0, new), resample((values > 0).astype(np.float32), new))


def test_shape_for_a_spacing() -> None:
    assert shape_at(axial_grid((100, 512, 512), (2.0, 0.75, 0.75)), (3.0, 2.0, 2.0)) == (67, 192, 192)
    assert shape_at(axial_grid((1, 2, 2), (0.1, 0.1, 0.1)), (3.0, 2.0, 2.0)) == (1, 1, 1)
