"""What synthetic disease is made of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.phantom.textures import any_direction, bounded_noise, from_segment, grain, lobular_walls, smooth_noise


def test_smooth_noise_is_smooth_and_of_unit_variance() -> None:
    noise = smooth_noise((30, 30, 30), 8.0, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    assert np.abs(np.diff(noise, axis=2)).mean() < 0.3


def test_smooth_noise_is_interpolated_and_level_at_the_coarse_values() -> None:
    shape, spacing, scale = (9, 20, 31), (3.0, 1.5, 0.7), 5.0
    noise = smooth_noise(shape, scale, spacing, np.random.default_rng(3))
    coarse = np.random.default_rng(3).standard_normal((9, 9, 8)).astype(np.float32)
    places = np.meshgrid(*[np.arange(n) * s / scale + 1.0 for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    eased = [np.floor(place) + (place % 1.0) ** 2 * (3.0 - 2.0 * (place % 1.0)) for place in places]
    expected = ndimage.map_coordinates(coarse, eased, order=1)
    np.testing.assert_allclose(noise, expected / expected.std(), atol=1e-4)


def test_bounded_noise_is_bounded() -> None:
    noise = bounded_noise((30, 30, 30), 5.0, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert np.abs(noise).max() == pytest.approx(1.7)


@pytest.mark.parametrize("kernel", [0.0, 0.5, 1.0])
def test_grain_is_the_noise_and_not_the_edges(kernel: float) -> None:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(0.0, 1.0, (20, 40, 40)), (0.0, kernel, kernel)).astype(np.float32)
    noise *= 30.0 / noise.std()
    step = np.where(np.arange(40) < 20, -850.0, 40.0).astype(np.float32)
    found = grain(noise + step)
    away = np.abs(np.arange(40) - 19.5) > 4
    assert np.corrcoef(found[..., away].ravel(), noise[..., away].ravel())[0, 1] > 0.9
    assert found[..., away].std() > 0.8 * 30.0
    assert np.abs(found).max() < 110.0
    assert abs(found.mean()) < 1.0
    assert not grain(np.broadcast_to(step, noise.shape).copy()).any()


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.25, 0.7, 0.7), (3.0, 2.0, 2.0)])
def test_walls_part_lobules_and_fill_the_same_share_on_any_voxels(spacing: tuple[float, float, float]) -> None:
    shares = []
    for seed in range(8):
        where = np.ones([round(50 / step) for step in spacing], bool)
        where[0] = False
        walls = lobular_walls(where, spacing, np.random.default_rng(seed))
        assert not walls[0].any()
        assert 0.0 <= walls.min() <= walls.max() <= 1.0
        shares.append(float(walls[1:].mean()))
    assert 0.15 < np.mean(shares) < 0.45


def test_the_distance_from_a_segment_is_that_to_its_nearest_point() -> None:
    rng = np.random.default_rng(0)
    direction, length = any_direction(rng), 7.0
    assert np.linalg.norm(direction) == pytest.approx(1.0)
    points = rng.uniform(-10, 10, (3, 50)).astype(np.float32)
    steps = np.linspace(-length / 2, length / 2, 20_001)[:, None] * direction
    nearest = [np.linalg.norm(steps - point, axis=1).min() for point in points.T]
    np.testing.assert_allclose(from_segment((points[0], points[1], points[2]), direction, length), nearest, atol=1e-3)
