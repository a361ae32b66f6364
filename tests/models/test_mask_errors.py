"""True lesion masks, varied as a segmentation errs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.classifier import mask_errors
from models.classifier.mask_errors import with_errors

FAINT, SOLID = 0.3, 0.7


def slices(intensity: float = SOLID, lesion: bool = True) -> Tensor:
    """Lungs of a quarter of the picture's intensity with vessels in them, and a large lesion or none."""
    made = torch.zeros(16, 3, 96, 96)
    made[:, 2, 8:88, 8:88] = 1.0
    made[:, 0] = 0.15 * made[:, 2]
    made[:, 0, 8:88, 12:88:8] = 0.5
    if lesion:
        made[4:12, 1, 30:70, 30:70] = 1.0
        made[4:12, 0, 30:70, 30:70] = intensity
    return made


def drawn(made: Tensor, count: int = 20) -> Tensor:
    """Masks (count, n, H, W), each by another seed."""
    return torch.stack([with_errors(made, np.random.default_rng(seed))[:, 1] for seed in range(count)])


def test_only_the_lesion_mask_is_varied_and_stays_a_mask_within_the_lungs() -> None:
    made = slices()
    before = made.clone()
    masks = set()
    for seed in range(10):
        varied = with_errors(made, np.random.default_rng(seed))
        torch.testing.assert_close(varied[:, [0, 2]], made[:, [0, 2]], rtol=0, atol=0)
        assert set(varied[:, 1].unique().tolist()) <= {0.0, 1.0}
        assert not (varied[:, 1] * (1 - made[:, 2])).any()
        masks.add(varied[:, 1].numpy().tobytes())
    torch.testing.assert_close(made, before, rtol=0, atol=0)
    assert len(masks) == 10


def test_the_same_numbers_give_the_same_errors() -> None:
    first, second = (with_errors(slices(), np.random.default_rng(3)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_faint_lesions_are_missed_more_than_solid_ones() -> None:
    inside = (slice(None), slice(4, 12), slice(34, 66), slice(34, 66))
    solid, faint = (drawn(slices(intensity), 80)[inside].mean().item() for intensity in (SOLID, FAINT))
    assert 0.9 < solid < 1.0
    assert faint < solid - 0.1
    assert faint > 0.4


def test_borders_move_both_ways_and_no_farther_than_the_average_reaches() -> None:
    masks = drawn(slices())[:, 4:12]
    rows = masks[:, :, :, 49]  # between two vessels
    assert 0 < rows[:, :, 28:30].mean() < 1
    assert 0.5 < rows[:, :, 30:32].mean() < 1
    reach = mask_errors.WIDTH // 2
    assert not rows[:, :, 8 : 30 - reach].any()


def test_without_a_lesion_dense_lung_alone_is_taken_for_one_now_and_then() -> None:
    made = slices(lesion=False)
    masks = drawn(made)
    shares = [mask.mean().item() for mask in masks]
    assert min(shares) == 0.0
    assert 0.002 < max(shares) < 0.05
    assert not masks[:, made[:, 0] <= mask_errors.VESSEL].any()


def _lesions(count: int) -> Tensor:
    """A mask of so many small lesions in rows, half of them in each half of the slices."""
    mask = torch.zeros(4, 64, 64)
    for number in range(count):
        row, column = divmod(number, 8)
        mask[1:3, 2 + 8 * row : 6 + 8 * row, 2 + 8 * column : 6 + 8 * column] = 1.0
    return mask


def test_lesions_are_overlooked_whole_and_never_all_of_them() -> None:
    mask = _lesions(16)
    shares, halves = [], set()
    for seed in range(300):
        seen = mask_errors._some_lesions(mask, np.random.default_rng(seed))
        squares = [
            float(seen[1:3, 2 + 8 * (n // 8) : 6 + 8 * (n // 8), 2 + 8 * (n % 8) : 6 + 8 * (n % 8)].mean())
            for n in range(16)
        ]
        assert set(squares) <= {0.0, 1.0}
        assert float(seen.sum()) == 32.0 * sum(squares)
        shares.append(sum(squares) / 16)
        halves.add((bool(seen[..., :32].any()), bool(seen[..., 32:].any())))
    assert min(shares) == 1 / 16
    assert max(shares) > 0.9
    assert halves == {(True, True), (True, False), (False, True)}


def test_errors_overlook_lesions_as_often_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(mask_errors, "_some_lesions", lambda lesion, rng: calls.append(1) or torch.zeros_like(lesion))
    masks = drawn(slices(), 200)
    assert len(calls) / 200 == pytest.approx(mask_errors.OVERLOOKED, abs=0.1)
    inside = masks[:, 4:12, 40:60, 45:55].mean((1, 2, 3))
    assert (inside < 0.5).sum() == pytest.approx(len(calls), abs=10), "what is overlooked is marked by chance alone"


def test_only_one_half_is_seen_now_and_then_and_only_one_that_holds_lesions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_errors, "LEAST_SEEN", 1.0)  # all that may be seen is
    both, one = _lesions(32), _lesions(32)
    one[..., 32:] = 0.0
    shares = []
    for seed in range(1000):
        seen = mask_errors._some_lesions(both, np.random.default_rng(seed))
        shares.append(float(seen.sum() / both.sum()))
        assert torch.equal(mask_errors._some_lesions(one, np.random.default_rng(seed)), one)
    assert set(shares) == {0.5, 1.0}
    assert shares.count(0.5) / 1000 == pytest.approx(mask_errors.ONE_SIDE, abs=0.05)


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_lesion_is_never_overlooked_and_none_is_made(count: int) -> None:
    mask = _lesions(count)
    for seed in range(30):
        assert torch.equal(mask_errors._some_lesions(mask, np.random.default_rng(seed)), mask)


def test_a_large_lesion_is_seen_before_a_small_one_where_chance_would_miss_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mask_errors, "LEAST_SEEN", 0.0)
    mask = torch.zeros(2, 32, 32)
    mask[:, 2:4, 2:4] = 1.0
    mask[:, 10:30, 2:12] = 1.0
    seen = [mask_errors._some_lesions(mask, np.random.default_rng(seed)) for seed in range(200)]
    large, small = (sum(bool(each[0, row, 3]) for each in seen) for row in (20, 3))
    assert large > 1.3 * small


def test_errors_are_smooth_and_centred() -> None:
    field = mask_errors._errors(torch.zeros(40, 200, 200), np.random.default_rng(0))
    assert field.abs().max() <= 1.0
    assert abs(field.mean()) < 0.05
    assert field.std() > 0.2
    assert field.diff(dim=1).abs().max() < 4.0 / mask_errors.CELL


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 8, 100), (3, 3, 100, 8)])
def test_few_and_small_slices_can_be_varied(shape: tuple[int, ...]) -> None:
    assert with_errors(torch.ones(shape), np.random.default_rng(0)).shape == shape
