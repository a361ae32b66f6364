"""The same patient on other scanners."""

from __future__ import annotations

import numpy as np
import pytest

from app.phantom.scanner import NOISE_HU, scanned

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
    assert 2 < max(spread) <= 6  # slices of at most 6 mm


def test_nothing_is_lighter_than_air() -> None:
    air = np.full((4, 16, 16), -1020.0, np.float32)
    assert all(scanned(air, SPACING, np.random.default_rng(seed))[0].min() >= -1024.0 for seed in SEEDS)
