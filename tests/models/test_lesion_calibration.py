"""The shift of background that is best for the Dice of lesions."""

from __future__ import annotations

import pytest
import torch

from models.lesions.calibration import LARGEST, STEP, best_shift, lesion_odds, shift_background
from models.lesions.network import LesionNetwork


def naive_dice(odds: list[float], lesion: list[bool], shift: float) -> float:
    found = [value + shift >= 0 for value in odds]
    both = sum(f and t for f, t in zip(found, lesion, strict=True))
    return 2 * both / (sum(found) + sum(lesion))


def voxels(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lesion = torch.rand(count, generator=generator) < 0.2
    return torch.randn(count, generator=generator) + 2.0 * lesion - 2.0 + (-1.5, 0.0, 2.5)[seed % 3], lesion


@pytest.mark.parametrize("seed", range(6))
def test_no_other_shift_is_better(seed: int) -> None:
    odds, lesion = voxels(seed)
    shift = best_shift(odds, lesion)
    best = naive_dice(odds.tolist(), lesion.tolist(), shift)
    steps = round(LARGEST / STEP)
    for step in range(-steps, steps + 1):
        dice = naive_dice(odds.tolist(), lesion.tolist(), step * STEP)
        assert dice <= best + 1e-9
        assert dice < best - 1e-9 or abs(step * STEP) >= abs(shift) - 1e-9, "of equally good ones the smallest"
    assert shift == 0.0 or best > naive_dice(odds.tolist(), lesion.tolist(), 0.0)
    assert (shift > 0.0) == (seed % 3 < 2)


def test_odds_that_tell_nothing_are_left_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    odds, lesion = torch.randn(2000, generator=generator) - 2.0, torch.rand(2000, generator=generator) < 0.3
    assert naive_dice(odds.tolist(), lesion.tolist(), LARGEST) > naive_dice(odds.tolist(), lesion.tolist(), 0.0)
    assert best_shift(odds, lesion) == 0.0


def test_without_lesions_nothing_is_shifted() -> None:
    assert best_shift(torch.randn(50), torch.zeros(50, dtype=torch.bool)) == 0.0


def test_what_is_right_already_stays() -> None:
    lesion = torch.arange(40) % 4 == 0
    assert best_shift(torch.where(lesion, 2.0, -2.0), lesion) == 0.0


def test_the_odds_are_those_of_all_types_together() -> None:
    logits = torch.randn(30, 5, dtype=torch.float64)
    lesion = logits.softmax(1)[:, 1:].sum(1)
    torch.testing.assert_close(lesion_odds(logits), (lesion / (1 - lesion)).log())


def test_a_shifted_network_raises_the_odds_everywhere_and_keeps_the_types() -> None:
    torch.manual_seed(0)
    network = LesionNetwork(patch=(8, 16, 16)).eval()
    image = torch.rand(1, 1, 8, 16, 16)
    with torch.inference_mode():
        before = network(image)[0].flatten(1).T
        shift_background(network.head, 0.8)
        after = network(image)[0].flatten(1).T
    torch.testing.assert_close(lesion_odds(after), lesion_odds(before) + 0.8, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
