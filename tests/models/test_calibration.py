"""Platt scaling of the classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from models.classifier.calibration import PlattScaling, platt_scaling
from models.classifier.network import Classifier


def cohort(count: int, slope: float, offset: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draw logits, and labels whose log odds are a line of them."""
    rng = np.random.default_rng(seed)
    logits = 0.05 * rng.standard_normal(count) + 0.3
    return (rng.random(count) < 1.0 / (1.0 + np.exp(-slope * logits - offset))).astype(np.int64), logits


def naive(labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Fit slope and offset by Newton's method, one study at a time."""
    n1, n0 = int(labels.sum()), int((1 - labels).sum())
    slope, offset = 0.0, 0.0
    for _ in range(100):
        g, h = np.zeros(2), np.zeros((2, 2))
        for label, logit in zip(labels.tolist(), logits.tolist(), strict=True):
            target = (n1 + 1) / (n1 + 2) if label else 1 / (n0 + 2)
            p = 1.0 / (1.0 + np.exp(-(slope * logit + offset)))
            row = np.array([logit, 1.0])
            g += (p - target) * row
            h += p * (1.0 - p) * np.outer(row, row)
        slope, offset = np.array([slope, offset]) - np.linalg.solve(h, g)
    return slope, offset


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_maximum_of_the_likelihood(seed: int) -> None:
    labels, logits = cohort(60, 30.0, -9.0, seed)
    found = platt_scaling(labels, logits)
    assert found is not None
    assert (found.slope, found.offset) == pytest.approx(naive(labels, logits), rel=1e-3)


def test_many_studies_show_the_line_that_they_were_drawn_from() -> None:
    found = platt_scaling(*cohort(20000, 30.0, -8.0, 0))
    assert found is not None
    assert found.slope == pytest.approx(30.0, rel=0.1)
    assert found.offset == pytest.approx(-8.0, rel=0.1)


def test_the_mean_probability_is_the_mean_target() -> None:
    labels, logits = cohort(80, 40.0, -13.0, 3)
    found = platt_scaling(labels, logits)
    assert found is not None
    n1, n0 = int(labels.sum()), int((1 - labels).sum())
    wanted = (n1 * (n1 + 1) / (n1 + 2) + n0 / (n0 + 2)) / len(labels)
    assert np.mean(1.0 / (1.0 + np.exp(-found.slope * logits - found.offset))) == pytest.approx(wanted, abs=1e-4)


def test_classes_told_apart_without_error_do_not_become_certain() -> None:
    labels, logits = np.array([0, 0, 0, 1, 1, 1]), np.array([-0.02, -0.01, -0.01, 0.01, 0.02, 0.03])
    found = platt_scaling(labels, logits)
    assert found is not None
    probabilities = 1.0 / (1.0 + np.exp(-found.slope * logits - found.offset))
    assert 0.01 < probabilities.min() < 0.3
    assert 0.7 < probabilities.max() < 0.99


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([], []),
        ([1, 1, 1], [0.1, 0.2, 0.3]),
        ([0, 0], [0.1, 0.2]),
        ([0, 1, 0, 1], [0.2, 0.2, 0.2, 0.2]),
        ([0, 1, 0], [0.1, 0.1, 0.1]),
        ([0, 1, 0, 1], [0.2, 0.2 + 1e-8, 0.2 - 1e-8, 0.2]),
        ([1, 1, 0, 0], [-0.2, -0.1, 0.1, 0.2]),
    ],
    ids=["nobody", "positive", "negative", "alike", "inexact", "rounded", "reversed"],
)
def test_where_it_would_mislead_there_is_none(labels: list[int], logits: list[float]) -> None:
    assert platt_scaling(labels, logits) is None


def test_logits_of_any_scale_and_place_give_the_same_probabilities() -> None:
    labels, logits = cohort(50, 30.0, -9.0, 4)
    one, other = platt_scaling(labels, logits), platt_scaling(labels, 1e2 * logits - 70.0)
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(
        other.slope * (1e2 * logits - 70.0) + other.offset, one.slope * logits + one.offset, rtol=0, atol=1e-4
    )


def test_folded_into_the_last_layer_it_scales_the_logit_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = Classifier(in_plane=32).double().eval()
    slices = torch.rand(3, 2, 16, 16, dtype=torch.float64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    positive, logit = network(slices)[1].item(), network(slices).diff().item()
    PlattScaling(slope=3.0, offset=-0.7).fold_into(network.output)
    assert network(slices)[1].item() == pytest.approx(3.0 * positive, rel=1e-12), "as its relevance"
    assert network(slices).diff().item() == pytest.approx(3.0 * logit - 0.7, rel=1e-12)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("output")


def test_a_slope_that_weights_cannot_hold_is_none() -> None:
    labels = [0, 0, 1, 1] * 5
    assert platt_scaling(labels, [1e-6, 2e-6, 3e-6, 4e-6] * 5) is None
    assert platt_scaling(labels, [1e4, 2e4, 3e4, 4e4] * 5) is None
    assert platt_scaling(labels, [0.01, 0.02, 0.03, 0.04] * 5) is not None


def test_folded_weights_can_still_be_learned() -> None:
    layer = nn.Linear(4, 2)
    PlattScaling(2.0, 0.1).fold_into(layer)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None
