"""COVNet: a set of slices, each by itself, and their maximum."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.baselines.covnet import COVNet


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


@pytest.fixture(scope="module")
def exact() -> COVNet:
    """A network in float64 whose normalisations do something, for tests that do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = COVNet().double()
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def study(slices: int, *size: int) -> Tensor:
    return torch.rand(slices, 3, *(size or (40, 33)), dtype=torch.float64)


def naive_norm(features: Tensor, norm: nn.Module) -> Tensor:
    """Group normalisation of (1, c, h, w) by loops over 32 groups."""
    assert isinstance(norm, nn.GroupNorm)
    parts = []
    for group in features[0].chunk(32):
        mean = group.mean()
        parts.append((group - mean) / ((group - mean) ** 2).mean().add(1e-5).sqrt())
    return (torch.cat(parts) * norm.weight[:, None, None] + norm.bias[:, None, None])[None]


def naive_descriptor(backbone: nn.Module, image: Tensor) -> Tensor:
    """ResNet-50 written down layer by layer, on one image (H, W)."""
    layers = dict(backbone.named_modules())

    def unit(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = layers[conv].weight
        assert isinstance(weight, Tensor)
        assert layers[conv].bias is None
        return naive_norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), layers[norm])

    x = F.max_pool2d(unit(image[None, None], "conv1", "bn1", 2).relu(), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = unit(x, f"{name}.conv1", f"{name}.bn1").relu()
            y = unit(y, f"{name}.conv2", f"{name}.bn2", stride).relu()
            y = unit(y, f"{name}.conv3", f"{name}.bn3")
            short = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if block == 0 else x
            x = (y + short).relu()
    return x.mean((2, 3))[0]


def test_parameters_are_those_of_resnet50_with_one_input_channel() -> None:
    network = COVNet()
    assert sum(tensor.numel() for tensor in network.backbone.parameters()) == 25_557_032 - 2_049_000 - 2 * 64 * 49
    assert sum(tensor.numel() for tensor in network.parameters()) == 23_505_858


def test_nothing_is_kept_but_the_parameters() -> None:
    network = COVNet()
    assert not list(network.buffers())
    assert not [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert sum(isinstance(module, nn.GroupNorm) for module in network.modules()) == 53


@torch.inference_mode()
def test_descriptors_agree_with_resnet50_written_down(exact: COVNet) -> None:
    slices = study(2, 37, 50)
    expected = torch.stack([naive_descriptor(exact.backbone, each[0]) for each in slices])
    torch.testing.assert_close(exact.describe(slices), expected, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_logits_are_the_linear_layer_of_the_maximum_over_single_slices(exact: COVNet) -> None:
    slices = study(4)
    highest = exact.backbone(slices[:1, :1])[0]
    for each in slices[1:]:
        highest = torch.where((other := exact.backbone(each[None, :1])[0]) > highest, other, highest)
    expected = [float((row * highest).sum() + bias) for row, bias in zip(*exact.output.parameters(), strict=True)]
    torch.testing.assert_close(exact(slices), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(exact(slices[:3]), exact(slices))


@torch.inference_mode()
def test_slices_are_a_set(exact: COVNet) -> None:
    slices = study(4)
    logits = exact(slices)
    for order in ([2, 0, 3, 1], [0, 1, 1, 2, 3, 3, 0]):
        torch.testing.assert_close(exact(slices[order]), logits, rtol=1e-11, atol=1e-11)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 2, 4, 9])
def test_chunks_do_not_change_the_descriptors(exact: COVNet, chunk: int) -> None:
    slices = study(4)
    torch.testing.assert_close(exact.describe(slices, chunk=chunk), exact.describe(slices), rtol=1e-11, atol=1e-11)


@torch.inference_mode()
def test_only_the_ct_is_used(exact: COVNet) -> None:
    slices = study(2)
    other = torch.cat([slices[:, :1], torch.rand_like(slices[:, 1:])], dim=1)
    assert torch.equal(exact(other), exact(slices))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (33, 71), (17, 5)])
def test_any_slice_size_and_number_will_do(exact: COVNet, size: tuple[int, int]) -> None:
    for count in (1, 2):
        slices = study(count, *size)
        assert exact.describe(slices).shape == (count, 2048)
        assert exact(slices).shape == (2,)
        assert exact(slices).isfinite().all()


def test_training_is_as_evaluation_and_forgets_what_was_seen() -> None:
    network = COVNet().double()
    first, second = study(1, 32, 32), study(3, 32, 32)
    expected = network.eval()(first)
    network.train()(second)
    torch.testing.assert_close(network(first), expected, rtol=0, atol=0)


def test_every_parameter_learns_even_from_one_slice() -> None:
    network = COVNet()
    network(torch.rand(1, 3, 64, 64)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in network.parameters())


def test_a_study_of_air_gives_finite_gradients() -> None:
    network = COVNet()
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in network.parameters())


def test_it_learns_to_find_the_one_bright_slice() -> None:
    negative, positive = torch.rand(2, 3, 3, 32, 32) * 0.2
    positive[1, 0, 8:20, 10:22] += 0.7
    network = COVNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    losses = []
    for _ in range(6):
        logits = torch.stack([network(negative), network(positive)])
        loss = F.cross_entropy(logits, torch.tensor([0, 1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.inference_mode():
        assert network(negative).argmax() == 0
        assert network(positive).argmax() == 1
    assert losses[-1] < 0.1 * losses[0]
