"""The same patient on other scanners."""

from __future__ import annotations

import numpy as np
import pytest

from app.phantom.scanner import NOISE_HU, scanned, smooth, thick

SPACING = (1.0, 0.8, 0.8)
SEEDS = range(60)


def test_an_even_ct_shows_the_noise_and_nothing_else() -> None:
    even = np.full((20, 40, 40), -300.0, np.float32)
    told = []
    for seed in SEEDS:
        hu, noise = scanned(even, SPACING, np.random.default_rng(seed))
        assert hu.dtype == np.float32
        assert hu.mean() == pytest.approx(-300.0, abs=0.05 + 0.03 * noise)
        assert hu.std() == pytest.approx(noise, rel=0.03, abs=1e-2)
        told.append(noise)
    assert 0.0 <= min(told) < max(told) <= NOISE_HU
    assert 10 < told.count(0.0) < 50


def test_kernels_and_slices_spread_a_point_or_sharpen_it_and_keep_its_sum() -> None:
    point = np.zeros((21, 41, 41), np.float32)
    point[10, 20, 20] = 500.0
    peaks, spread = [], []
    for seed in SEEDS:
        hu, noise = scanned(point, SPACING, np.random.default_rng(seed))
        if noise:
            continue
        assert hu.sum() == pytest.approx(500.0, rel=1e-3)
        peaks.append(float(hu.max()))
        spread.append(int((hu[:, 20, 20] > 1.0).sum()))
    assert min(peaks) < 400.0
    assert max(peaks) > 501.0
    assert min(spread) == 1
    assert 2 < max(spread) <= 7  # 6 mm, halves at both ends


# --- against explicit loops, on a grid that differs along each axis


ANISOTROPIC = (1.5, 0.7, 1.1)


def image(seed: int = 0) -> np.ndarray:
    return (100.0 * np.random.default_rng(seed).standard_normal((12, 14, 13))).astype(np.float32)


def gaussian(values: np.ndarray, step: float, deviation: float) -> list[float]:
    """Smooth a line of voxels, mirrored at its ends."""
    reach = int(4.0 * deviation / step + 0.5)
    weights = [np.exp(-0.5 * (k * step / deviation) ** 2) for k in range(-reach, reach + 1)]
    mirrored = np.concatenate([values[::-1], values, values[::-1]])
    count = len(values)
    return [
        sum(w * mirrored[count + i + k] for w, k in zip(weights, range(-reach, reach + 1), strict=True)) / sum(weights)
        for i in range(count)
    ]


def test_a_smooth_kernel_is_a_gaussian_in_the_plane_in_mm() -> None:
    hu, deviation = image(), 0.9
    naive = np.apply_along_axis(gaussian, 1, hu.astype(np.float64), ANISOTROPIC[1], deviation)
    naive = np.apply_along_axis(gaussian, 2, naive, ANISOTROPIC[2], deviation)
    np.testing.assert_allclose(smooth(hu, ANISOTROPIC, deviation), naive, rtol=0, atol=1e-2)


@pytest.mark.parametrize("thickness", [1.6, 3.0, 4.0, 6.0])
def test_thick_slices_are_means_over_so_many_mm_around_each_slice(thickness: float) -> None:
    hu, step = image(1), ANISOTROPIC[0]
    got = thick(hu, ANISOTROPIC, thickness)
    fine = np.repeat(hu.astype(np.float64), 1000, axis=0)  # each slice as a thousand thin ones
    for z in range(5, 7):
        middle = (z + 0.5) * 1000
        half = 1000 * thickness / step / 2
        mean = fine[round(middle - half) : round(middle + half)].mean(0)
        np.testing.assert_allclose(got[z], mean, rtol=0, atol=0.3)


def test_thick_slices_stay_where_they_are() -> None:
    point = np.zeros((21, 3, 3), np.float32)
    point[10] = 1.0
    for thickness in np.linspace(1.6, 6.0, 12):
        line = thick(point, ANISOTROPIC, float(thickness))[:, 1, 1]
        assert (line * np.arange(21)).sum() / line.sum() == pytest.approx(10.0, abs=1e-5)


def test_nothing_is_lighter_than_air() -> None:
    air = np.full((4, 16, 16), -1020.0, np.float32)
    assert all(scanned(air, SPACING, np.random.default_rng(seed))[0].min() >= -1024.0 for seed in SEEDS)
