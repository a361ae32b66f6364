"""The two U-Nets: sizes, shapes, and instance normalisation."""

import itertools

import pytest
import torch

from models.involvement.network import WIDTHS as WIDTHS_2D
from models.involvement.network import InvolvementNetwork
from models.involvement.network import predict as predict_2d
from models.lesions.network import WIDTHS as WIDTHS_3D
from models.lesions.network import LesionNetwork
from models.lesions.network import predict as predict_3d
from models.unet import Conv3d, InstanceNorm, UNet


def _convolution_weights(widths: tuple[tuple[int, int], ...], kernel: int, classes: int) -> int:
    encoder = sum(kernel * (i * a + a * b) for i, (a, b) in zip([1, *[b for _, b in widths]], widths, strict=False))
    decoder = sum(
        kernel * ((below + skip) * skip + skip * skip) for (_, skip), (_, below) in itertools.pairwise(widths)
    )
    return encoder + decoder + widths[0][1] * classes


def test_lesion_network_has_16_3_million_parameters() -> None:
    network = LesionNetwork()
    weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    assert weights == _convolution_weights(WIDTHS_3D, 27, 5)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 16.3


def test_involvement_network_has_five_levels_and_16_features() -> None:
    network = InvolvementNetwork()
    assert network.factor == 2**4
    assert network.encoder[0][0].out_channels == 16
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == _convolution_weights(WIDTHS_2D, 9, 1)


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (16, 24)), (3, (8, 16, 24))])
def test_output_has_the_size_of_the_input(dimensions: int, shape: tuple[int, ...]) -> None:
    network = UNet(dimensions, ((4, 4), (8, 8), (8, 16)), classes=3)  # type: ignore[arg-type]
    assert network(torch.rand(2, 1, *shape)).shape == (2, 3, *shape)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(8, 9), (4, 6, 5)])
def test_instance_norm_is_that_of_each_channel_of_each_instance(batch: int, shape: tuple[int, ...]) -> None:
    """Values and gradients; in training and in evaluation alike."""
    torch.manual_seed(0)
    norm = InstanceNorm(4)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = (100 + 3 * torch.randn(batch, 4, *shape)).double().requires_grad_()
    norm.double()
    over = tuple(range(2, x.ndim))
    mean = x.mean(over, keepdim=True)
    variance = (x - mean).square().mean(over, keepdim=True)
    factor, offset = (p.reshape(1, 4, *(1 for _ in shape)) for p in (norm.weight, norm.bias))
    expected = (x - mean) / (variance + 1e-5).sqrt() * factor + offset
    wanted = torch.autograd.grad(expected.sin().sum(), [x, norm.weight, norm.bias], retain_graph=True)
    for module in (norm.train(), norm.eval()):
        torch.testing.assert_close(module(x), expected)
        for got, want in zip(
            torch.autograd.grad(module(x).sin().sum(), [x, norm.weight, norm.bias]), wanted, strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_keeps_channels_last(batch: int) -> None:
    x = torch.randn(batch, 4, 4, 6, 5).contiguous(memory_format=torch.channels_last_3d)
    assert InstanceNorm(4)(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_bfloat16_gradients_are_those_of_float32(depth: int) -> None:
    """Also on two slices, where PyTorch's own gradient of the weights holds what was in memory before."""
    torch.manual_seed(0)
    convolution = Conv3d(16, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)
    x, weights = torch.rand(1, 16, depth, 12, 12).requires_grad_(), torch.randn(1, 32, depth, 12, 12)

    def gradients(lowered: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            output = convolution(x)
        return torch.autograd.grad((output.float() * weights).sum(), [x, convolution.weight])

    exact = gradients(lowered=False)
    for _ in range(10):
        torch.full((1_000_000,), 1e30)  # memory that is given back
        for got, want in zip(gradients(lowered=True), exact, strict=True):
            assert float((got - want).abs().max()) < 0.02 * float(want.abs().max())


def test_images_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = UNet(2, ((4, 4), (8, 8)), classes=1).eval()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


def test_lesion_probabilities_sum_to_one_for_any_size() -> None:
    torch.manual_seed(0)
    network = LesionNetwork(patch=(8, 16, 16)).eval()
    got = predict_3d(network, torch.rand(21, 10, 25))
    assert got.shape == (5, 21, 10, 25)
    torch.testing.assert_close(got.sum(0), torch.ones(21, 10, 25), rtol=0, atol=1e-5)


def test_blocks_of_the_lesion_network_span_the_plane() -> None:
    assert LesionNetwork().block((148, 104, 153)) == (24, 104, 160)
    assert LesionNetwork(patch=(8, 16, 16)).block((3, 10, 25)) == (16, 16, 32)


class _Scaled(LesionNetwork):
    """Gives, for each class, the image times its number, and notes what it was called with."""

    def __init__(self) -> None:
        super().__init__(patch=(8, 16, 16))
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(tuple(x.shape))
        return x * _CLASSES


_CLASSES = torch.arange(5.0)[:, None, None, None]


def test_blocks_of_the_lesion_network_are_blended_into_one() -> None:
    network, image = _Scaled().eval(), torch.rand(21, 16, 24)
    got = predict_3d(network, image)
    assert network.seen == {(1, 1, 16, 16, 24)}
    torch.testing.assert_close(got, (image * _CLASSES).softmax(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [(16, 16), (24, 32), (0, 0), (-16, 32)])
def test_a_patch_that_involvement_cannot_be_used_on_is_refused(patch: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 16 are needed, one larger"):
        InvolvementNetwork(patch=patch)


def test_involvement_is_a_probability_for_any_size() -> None:
    torch.manual_seed(0)
    network = UNet(2, ((4, 4), (8, 8)), classes=1).eval().double()
    network.patch = (64, 48)  # type: ignore[assignment]
    image = torch.rand(5, 150, 40, dtype=torch.float64)
    got = predict_2d(network, image, batch=4)
    assert got.shape == image.shape
    assert 0.0 <= float(got.min()) <= float(got.max()) <= 1.0
    torch.testing.assert_close(got, predict_2d(network, image, batch=5), rtol=1e-4, atol=1e-5)
