"""What the mathematics of the classifier and its autoencoder promises, beside their formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.classifier.cvae import CVAE
from models.classifier.network import PYRAMID, Classifier, NetVLAD, SpatialPyramidPooling
from models.classifier.training import start_from_cvae
from models.store import load_network, save_weights
from models.training.recipe import epoch_order, seed_of

LABELS = torch.tensor([0, 1, 1])


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


# --- Context gating


def gate_of(cvae: CVAE, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters the context gating and what leaves it."""
    seen: dict[str, Tensor] = {}
    hooks = [
        cvae.context.register_forward_pre_hook(lambda _, inputs: seen.update(entering=inputs[0])),
        cvae.conditional.register_forward_pre_hook(lambda _, inputs: seen.update(leaving=inputs[0])),
    ]
    cvae.encode(slices, LABELS)
    for hook in hooks:
        hook.remove()
    return seen["entering"], seen["leaving"]


@torch.inference_mode()
def test_context_gating_scales_each_feature_by_a_sigmoid_of_all() -> None:
    cvae = CVAE(16)
    features, gated = gate_of(cvae, torch.rand(3, 2, 16, 16))
    assert features.shape == gated.shape == (3, 64)
    assert features.any()
    for case in range(3):
        for i in range(64):
            weights, bias = cvae.context.weight[i].tolist(), float(cvae.context.bias[i])
            score = sum(w * f for w, f in zip(weights, features[case].tolist(), strict=True)) + bias
            expected = float(features[case, i]) / (1 + math.exp(-score))
            assert float(gated[case, i]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@torch.inference_mode()
def test_a_gate_that_knows_nothing_halves_and_one_that_is_sure_opens_or_shuts() -> None:
    cvae, slices = CVAE(16), torch.rand(3, 2, 16, 16)
    cvae.context.weight.zero_()
    for bias, share in ((0.0, 0.5), (40.0, 1.0), (-200.0, 0.0)):
        cvae.context.bias.fill_(bias)
        features, gated = gate_of(cvae, slices)
        torch.testing.assert_close(gated, share * features)


# --- The latent variable


@torch.inference_mode()
def test_the_prior_of_a_label_is_that_of_the_whole_network() -> None:
    cvae = CVAE(16)
    prior = cvae.encode(torch.rand(3, 2, 16, 16), LABELS)[1]
    alone = cvae.label_prior(LABELS)
    torch.testing.assert_close(alone.mean, prior.mean, rtol=0, atol=0)
    torch.testing.assert_close(alone.log_sigma, prior.log_sigma, rtol=0, atol=0)


@torch.inference_mode()
def test_every_direction_of_the_posterior_reaches_the_picture() -> None:
    """Moving z along any axis by one deviation changes the reconstruction; the same z gives the same one."""
    cvae, slices = CVAE(16), torch.rand(3, 2, 16, 16)
    conditional, _ = cvae.encode(slices, LABELS)
    still = cvae.decoder(conditional.mean)
    assert torch.equal(still, cvae.decoder(conditional.mean))
    for axis in range(16):
        moved = conditional.mean.clone()
        moved[:, axis] += conditional.log_sigma.exp()[:, axis]
        assert ((cvae.decoder(moved) - still).abs().amax((1, 2, 3)) > 1e-4).all()


# --- Spatial pyramid pooling


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (4, 5), (5, 5), (13, 9), (17, 31)])
def test_the_pyramid_holds_the_maximum_of_each_cell_for_any_size(size: tuple[int, int]) -> None:
    """Cells cover the image, and overlap where it is smaller than the grid or does not divide."""
    rows, columns = size
    features = torch.randn(2, 3, rows, columns)
    pooled = SpatialPyramidPooling()(features)
    assert pooled.shape == (2, 3 * 38)
    place = 0
    for grid in PYRAMID:
        for channel in range(3):
            seen = torch.zeros(size, dtype=torch.bool)
            for i in range(grid):
                for j in range(grid):
                    top, bottom = i * rows // grid, -(-(i + 1) * rows // grid)
                    left, right = j * columns // grid, -(-(j + 1) * columns // grid)
                    expected = features[:, channel, top:bottom, left:right].amax((1, 2))
                    assert torch.equal(pooled[:, place], expected)
                    seen[top:bottom, left:right] = True
                    place += 1
            assert seen.all()
    assert place == pooled.shape[1]


# --- NetVLAD


@torch.inference_mode()
def test_a_study_is_of_length_one_with_equal_parts_for_all_clusters() -> None:
    vector = NetVLAD(6, 4).double()(torch.randn(9, 6, dtype=torch.float64))
    assert float(vector.norm()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(vector.reshape(4, 6).norm(dim=1), torch.full((4,), 0.5, dtype=torch.float64))


@torch.inference_mode()
def test_taking_every_slice_several_times_changes_nothing() -> None:
    """The sums grow, the norms take it away again: so the number of slices alone says nothing."""
    network = Classifier().double()
    slices = torch.rand(4, 2, 20, 24, dtype=torch.float64)
    torch.testing.assert_close(network(slices.repeat(3, 1, 1, 1)), network(slices), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(slices[[0, 0, 0, 1, 2, 3]]), network(slices), rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_any_order_and_any_division_into_parts_gives_the_same_study() -> None:
    network = Classifier().double()
    slices = torch.rand(6, 2, 20, 24, dtype=torch.float64)
    whole = network(slices)
    for seed in range(3):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        parts = [network.describe(part) for part in slices[order].split([1, 2, 3])]
        torch.testing.assert_close(network.aggregate(torch.cat(parts)), whole, rtol=1e-12, atol=1e-12)


# --- From the autoencoder to the classifier


@pytest.mark.parametrize("side_branch", [True, False])
@torch.inference_mode()
def test_a_trained_encoder_survives_disk_and_transfer_tensor_by_tensor(side_branch: bool, tmp_path: Path) -> None:
    cvae = CVAE(16, side_branch=side_branch)
    settings = {"size": 16, "prior": "y", "side_branch": side_branch}
    save_weights(tmp_path, cvae, {"name": "cvae", "version": "1"}, settings, dtype=torch.float32)
    read, _ = load_network(tmp_path, CVAE)
    network = Classifier(side_branch=side_branch)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_from_cvae(network, read)
    state, encoder = network.state_dict(), cvae.encoder.state_dict()
    assert sum(tensor.numel() for tensor in encoder.values()) == (47_104 if side_branch else 23_552)
    assert {name for name in state if name.startswith("encoder.")} == {f"encoder.{name}" for name in encoder}
    for name, tensor in state.items():
        kept = before[name]
        assert torch.equal(tensor, encoder[name.removeprefix("encoder.")] if name.startswith("encoder.") else kept)
        assert torch.equal(tensor, kept) != name.startswith("encoder.")
    slices = torch.rand(3, 2, 16, 24)
    assert torch.equal(network.encoder(slices), cvae.encoder(slices))
    network.encoder.global_branch.conv1.weight.zero_()  # a copy: the autoencoder keeps its own
    assert torch.equal(read.encoder.global_branch.conv1.weight, cvae.encoder.global_branch.conv1.weight)


@pytest.mark.parametrize("side_branch", [True, False])
def test_a_refused_transfer_leaves_the_classifier_as_it_was(side_branch: bool) -> None:
    network = Classifier(side_branch=side_branch)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="both have a side branch, or neither"):
        start_from_cvae(network, CVAE(16, side_branch=not side_branch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- Chance that hangs on numbers


def test_seeds_are_different_for_different_numbers_and_fit_63_bits() -> None:
    tuples = [(a, b) for a in range(30) for b in range(30)] + [(a, b, 1) for a in range(30) for b in range(30)]
    seeds = [seed_of(*numbers) for numbers in tuples]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_of(*numbers) for numbers in tuples]


@pytest.mark.parametrize(("count", "items"), [(5, 5), (5, 6), (3, 8), (1, 2)])
def test_an_epoch_takes_each_member_as_often_as_any_other(count: int, items: int) -> None:
    orders = [[epoch_order(3, number, count, items) for number in range(e * items, (e + 1) * items)] for e in range(6)]
    for order in orders:
        times = [order.count(member) for member in range(count)]
        assert sum(times) == items
        assert max(times) - min(times) <= 1
    if count > 1:
        assert len({tuple(order) for order in orders}) > 1
    assert orders[4] == [epoch_order(3, number, count, items) for number in range(4 * items, 5 * items)]
