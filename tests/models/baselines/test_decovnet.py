"""The 3D network like DeCoVNet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.baselines.decovnet import DeCoVNet


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def exact() -> DeCoVNet:
    """A network in float64 whose normalisations do something."""
    network = DeCoVNet().double()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def study(slices: int, rows: int, columns: int) -> Tensor:
    return torch.rand(slices, 3, rows, columns, dtype=torch.float64)


class Naive:
    """The network written down, its weights taken in the order in which they are declared."""

    def __init__(self, network: DeCoVNet) -> None:
        self.weights = iter([tensor.detach() for tensor in network.parameters()])

    def unit(self, x: Tensor, stride: int = 1) -> Tensor:
        """Convolution, and normalisation of every eight channels together."""
        kernel, scale, shift = (next(self.weights) for _ in range(3))
        x = F.conv3d(x, kernel, stride=(1, stride, stride), padding=[size // 2 for size in kernel.shape[2:]])
        parts = []
        for group in x[0].split(8):
            mean = group.mean()
            parts.append((group - mean) / ((group - mean) ** 2).mean().add(1e-5).sqrt())
        return (torch.cat(parts) * scale[:, None, None, None] + shift[:, None, None, None])[None]

    def bottleneck(self, x: Tensor, stride: int) -> Tensor:
        y = self.unit(x).relu()
        y = self.unit(y, stride).relu()
        y = self.unit(y)
        return (y + self.unit(x, stride)).relu()

    def conv(self, x: Tensor) -> Tensor:
        return F.conv3d(x, next(self.weights), next(self.weights), padding=1).relu()

    @staticmethod
    def pool(x: Tensor, *factors: int) -> Tensor:
        """Maximum of blocks; those at the end may be smaller."""
        for axis, factor in enumerate(factors, start=2):
            x = torch.stack([part.amax(axis) for part in x.split(factor, axis)], axis)
        return x

    def logits(self, study: Tensor) -> Tensor:
        x = self.unit(torch.stack([study[:, 0], study[:, 2]])[None], 2).relu()
        x = F.max_pool2d(x[0].movedim(1, 0), 3, 2, 1).movedim(0, 1)[None]
        x = self.pool(self.bottleneck(x, 1), 2, 1, 1)
        x = self.pool(self.bottleneck(x, 2), 2, 1, 1)
        x = self.pool(self.conv(x), 4, 2, 2)
        x = self.pool(self.conv(x), 4, 2, 2)
        x = self.conv(x).flatten(2).amax(2)[0]
        return next(self.weights) @ x + next(self.weights)


def test_parameter_count() -> None:
    assert sum(tensor.numel() for tensor in DeCoVNet().parameters()) == 345_922


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 49, 38), (37, 32, 45)])
def test_logits_agree_with_the_network_written_down(shape: tuple[int, int, int]) -> None:
    network = exact()
    slices = study(*shape)
    torch.testing.assert_close(network(slices), Naive(network).logits(slices), rtol=1e-9, atol=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (33, 71), (9, 5)])
def test_any_slice_size_and_number_will_do(size: tuple[int, int]) -> None:
    network = DeCoVNet()
    for count in (1, 2, 3, 33):
        logits = network(torch.rand(count, 3, *size))
        assert logits.shape == (2,)
        assert logits.isfinite().all()


@torch.inference_mode()
def test_ct_lung_mask_and_order_matter_and_the_lesion_mask_does_not() -> None:
    network = exact()
    slices = study(12, 40, 40)
    logits = network(slices)
    for channel, matters in enumerate((True, False, True)):
        other = slices.clone()
        other[:, channel] = torch.rand(12, 40, 40)
        assert torch.equal(network(other), logits) is not matters
    assert not torch.allclose(network(slices.flip(0)), logits)


def test_training_is_as_evaluation_and_forgets_what_was_seen() -> None:
    network = exact()
    assert not list(network.buffers())
    first, second = study(1, 32, 32), study(6, 36, 32)
    expected = network.eval()(first)
    network.train()(second)
    assert torch.equal(network(first), expected)


def test_every_parameter_learns() -> None:
    network = DeCoVNet()
    network(torch.rand(8, 3, 64, 64)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in network.parameters())


def test_a_study_of_air_gives_finite_gradients() -> None:
    network = DeCoVNet()
    network(torch.zeros(3, 3, 32, 32)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in network.parameters())


def test_it_learns_to_find_dense_lung() -> None:
    studies = torch.rand(2, 6, 3, 32, 32) * 0.2
    studies[:, :, 2] = 0.0
    studies[:, :, 2, 4:28, 4:28] = 1.0
    studies[1, 2:4, 0, 8:20, 10:22] += 0.7
    network = DeCoVNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(torch.stack([network(each) for each in studies]), torch.tensor([0, 1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.inference_mode():
        assert [int(network(each).argmax()) for each in studies] == [0, 1]
    assert losses[-1] < 0.1 * losses[0]
