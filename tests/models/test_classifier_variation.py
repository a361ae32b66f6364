"""Slices as other patients and scanners would have given them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.classifier import variation
from models.classifier.variation import varied
from models.training import patches

LUNG, SOLID, FAINT = 0.2, 0.8, 0.4


def slices() -> Tensor:
    """Two lungs of one intensity, the left one with a solid lesion and a faint one."""
    made = torch.zeros(3, 3, 128, 96)
    for columns in (slice(12, 40), slice(56, 84)):
        made[:, 2, 30:98, columns] = 1.0
    made[:, 1, 40:60, 60:80] = made[:, 1, 70:90, 60:80] = 1.0
    made[:, 0] = LUNG * made[:, 2]
    made[:, 0, 40:60, 60:80], made[:, 0, 70:90, 60:80] = SOLID, FAINT
    return made


def drawn(count: int) -> list[Tensor]:
    return [varied(slices(), np.random.default_rng(seed)) for seed in range(count)]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and offset."""
    monkeypatch.setattr(variation, "NOISE_HU", 0.0)
    monkeypatch.setattr(variation, "OFFSET_HU", 0.0)


def test_what_comes_out_is_what_a_study_is() -> None:
    before = slices()
    for made in drawn(20):
        assert made.shape == before.shape
        assert made.dtype == before.dtype
        ct, lesion, lung = made.unbind(1)
        assert ct.min() >= 0.0
        assert ct.max() <= 1.0
        assert set(lesion.unique().tolist()) <= {0.0, 1.0}
        assert set(lung.unique().tolist()) <= {0.0, 1.0}
        assert not (lesion * (1 - lung)).any()
        assert not (ct * (1 - lung)).any()


def test_the_same_numbers_give_the_same_and_others_something_else() -> None:
    first, again = drawn(6), drawn(6)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len({each.numpy().tobytes() for each in first}) == 6


def test_the_study_given_is_left_as_it_is() -> None:
    made = slices()
    varied(made, np.random.default_rng(0))
    torch.testing.assert_close(made, slices(), rtol=0, atol=0)


def test_sides_are_exchanged_half_of_the_time() -> None:
    left = [bool(made[:, 1, :, 48:].sum() > made[:, 1, :, :48].sum()) for made in drawn(40)]
    assert 10 < sum(left) < 30


def test_size_and_place_vary_about_those_of_the_study() -> None:
    before, after = slices()[:, 2], [made[:, 2] for made in drawn(60)]
    sizes = np.array([float(lung.sum() / before.sum()) for lung in after])
    most = (1.0 - patches.SCALE) ** -2
    assert sizes.min() < 0.85
    assert 1.15 < sizes.max() < most + 0.02
    assert 0.9 < np.median(sizes) < 1.1
    rows = np.array([float((lung.sum((0, 2)) * torch.arange(128)).sum() / lung.sum()) for lung in after])
    assert np.ptp(rows) > 4.0
    assert abs(rows - 63.5).max() < 128 * variation.SHIFT * most + 6.0  # and what the rotation adds


def test_all_slices_of_a_study_are_varied_alike() -> None:
    for made in drawn(10):
        torch.testing.assert_close(made[:, 1:], made[:1, 1:].expand(3, -1, -1, -1), rtol=0, atol=0)


@pytest.mark.usefixtures("quiet")
def test_the_rim_of_the_lungs_is_not_mixed_with_what_is_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "INFLATED", 0.0)
    for made in drawn(30):
        outside = made[:, 2] - made[:, 1]  # lung, but no lesion
        near_lesion = torch.nn.functional.max_pool2d(made[:, 1:2], 13, 1, 6)[:, 0]
        rim = (outside > 0) & (near_lesion == 0)
        assert rim.any()
        torch.testing.assert_close(made[:, 0][rim], torch.full((int(rim.sum()),), LUNG), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("quiet")
def test_more_tissue_in_the_lungs_leaves_solid_disease_and_the_order() -> None:
    kinds = []
    for made in drawn(30):
        ct, lesion, lung = made.unbind(1)
        kinds.append([float(ct[where].median()) for where in ((lung > lesion), (lesion > 0) & (ct < 0.6), ct > 0.7)])
    aerated, faint, solid = np.array(kinds).T
    assert (aerated < faint).all()
    assert (faint < solid).all()
    assert np.ptp(aerated) > 0.08
    assert np.ptp(solid) < 0.05


def test_noise_and_offset_are_those_of_scanners() -> None:
    middles, noises = [], []
    for made in drawn(60):
        ct, lesion, _ = made.unbind(1)
        values = ct[(lesion > 0) & (ct > 0.65)] * 1400.0
        middles.append(float(values.median()))
        noises.append(float(values.std()))
    assert 30.0 < np.ptp(middles) < 2 * patches.OFFSET_HU + 40.0
    assert np.median(noises) > 8.0


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 24, 100), (3, 3, 100, 24)])
def test_few_and_small_slices_can_be_varied(shape: tuple[int, ...]) -> None:
    assert varied(torch.ones(shape), np.random.default_rng(0)).shape == shape
