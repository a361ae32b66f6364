"""The two U-Nets: sizes, shapes, with and without instance normalisation."""

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    assert network.encoder[0][0].out_channels == 16  # type: ignore[index]
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == _convolution_weights(WIDTHS_2D, 9, 1)


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (16, 24)), (3, (8, 16, 24))])
def test_output_has_the_size_of_the_input(dimensions: int, shape: tuple[int, ...]) -> None:
    network = UNet(dimensions, ((4, 4), (8, 8), (8, 16)), classes=3, normalised=True)  # type: ignore[arg-type]
    assert network(torch.rand(2, 1, *shape)).shape == (2, 3, *shape)


def _convolved(x: Tensor, weights: Tensor) -> Tensor:
    """Sum over the offsets of the kernel: what lies beyond the image is 0."""
    sizes = x.shape[2:]
    padded = F.pad(x, [1, 1] * len(sizes))
    result = x.new_zeros(len(x), len(weights), *sizes)
    for offset in itertools.product(range(3), repeat=len(sizes)):
        moved = padded
        for axis, (start, size) in enumerate(zip(offset, sizes, strict=True), start=2):
            moved = moved.narrow(axis, start, size)
        result += torch.einsum("oi,bi...->bo...", weights[:, :, *offset], moved)
    return result


def _double_convolution(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    if f"{name}.0.bias" in weights:
        for convolution in (0, 2):
            offset = _by_channel(weights[f"{name}.{convolution}.bias"], x)
            x = _leaky(_convolved(x, weights[f"{name}.{convolution}.weight"]) + offset)
        return x
    spatial = tuple(range(2, x.ndim))
    for convolution, norm in ((0, 1), (3, 4)):
        x = _convolved(x, weights[f"{name}.{convolution}.weight"])
        mean = x.mean(spatial, keepdim=True)
        variance = (x - mean).square().mean(spatial, keepdim=True)
        factor, offset = (_by_channel(weights[f"{name}.{norm}.{kind}"], x) for kind in ("weight", "bias"))
        x = _leaky((x - mean) / (variance + 1e-5).sqrt() * factor + offset)
    return x


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *(1 for _ in x.shape[2:]))


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x / 100)


def _largest_of_two(x: Tensor) -> Tensor:
    for axis in range(2, x.ndim):
        x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :]).amax(axis + 1)
    return x


def _twice_as_fine(x: Tensor) -> Tensor:
    """Each sample is parted in two, a quarter of a step to either side; beyond the outer ones nothing changes."""
    for axis in range(2, x.ndim):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        before = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), last], axis)
        x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
    return x


def _u_net(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """A U-Net of three levels."""
    fine = _double_convolution(x, weights, "encoder.0")
    middle = _double_convolution(_largest_of_two(fine), weights, "encoder.1")
    coarse = _double_convolution(_largest_of_two(middle), weights, "encoder.2")
    middle = _double_convolution(torch.cat([_twice_as_fine(coarse), middle], 1), weights, "decoder.0")
    fine = _double_convolution(torch.cat([_twice_as_fine(middle), fine], 1), weights, "decoder.1")
    head = weights["head.weight"].flatten(1)
    return torch.einsum("oi,bi...->bo...", head, fine) + _by_channel(weights["head.bias"], x)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(12, 20), (8, 12, 16)])
def test_the_network_is_the_u_net_that_is_written_out_here(
    normalised: bool, batch: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = UNet(len(shape), ((4, 4), (8, 8), (8, 16)), classes=3, normalised=normalised)  # type: ignore[arg-type]
    network.double().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, InstanceNorm):
                module.weight.normal_(1.0, 0.3)
                module.bias.normal_(0.0, 0.3)
    x = torch.rand(batch, 1, *shape, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), _u_net(x, network.state_dict()), rtol=0, atol=1e-9)


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
    convolution = Conv3d(16, 32, 3, padding=1).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x, weights = torch.rand(1, 16, depth, 12, 12).requires_grad_(), torch.randn(1, 32, depth, 12, 12)

    def gradients(lowered: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            output = convolution(x)
        return torch.autograd.grad((output.float() * weights).sum(), [x, convolution.weight, convolution.bias])

    exact = gradients(lowered=False)
    for _ in range(10):
        torch.full((1_000_000,), 1e30)  # memory that is given back
        for got, want in zip(gradients(lowered=True), exact, strict=True):
            assert float((got - want).abs().max()) < 0.02 * float(want.abs().max())


@pytest.mark.parametrize("training", [False, True])
def test_attenuation_is_not_normalised_away(training: bool) -> None:
    """What a block holds far away does not change what a voxel is taken for, in training either."""
    torch.manual_seed(0)
    network = LesionNetwork().train(training)
    x = torch.rand(1, 1, 8, 8, 128)
    other = x.clone()
    other[..., 120:] = 1.0
    torch.testing.assert_close(network(x)[..., :8], network(other)[..., :8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_images_of_a_batch_do_not_see_each_other(normalised: bool) -> None:
    torch.manual_seed(0)
    network = UNet(2, ((4, 4), (8, 8)), classes=1, normalised=normalised).eval()
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
    network = UNet(2, ((4, 4), (8, 8)), classes=1, normalised=True).eval().double()
    network.patch = (64, 48)  # type: ignore[assignment]
    image = torch.rand(5, 150, 40, dtype=torch.float64)
    got = predict_2d(network, image, batch=4)  # type: ignore[arg-type]
    assert got.shape == image.shape
    assert 0.0 <= float(got.min()) <= float(got.max()) <= 1.0
    torch.testing.assert_close(got, predict_2d(network, image, batch=5), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


class _Slanted(nn.Module):
    """Gives logits of the image that rise along the rows and columns of each patch, and notes the patches."""

    patch = (32, 16)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return 4 * x - 2 + _slant(self.patch)


def _slant(patch: tuple[int, int]) -> Tensor:
    rows, columns = (torch.arange(size) / size for size in patch)
    return rows[:, None] - 2 * columns


def test_patches_of_the_involvement_network_are_blended_into_one() -> None:
    """The logits of patches a quarter of which overlaps, weighted by a Gaussian of an eighth of their size."""
    torch.manual_seed(0)
    network, image = _Slanted(), torch.rand(5, 40, 34)
    weight = torch.ones(1)
    for size in network.patch:
        distance = torch.arange(size) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (distance / (size / 8)) ** 2)
    weight = weight[0].clamp(min=1e-3)
    total, weights = torch.zeros(image.shape), torch.zeros(image.shape[1:])
    for row, column in itertools.product((0, 8), (0, 12, 18)):
        where = (slice(row, row + 32), slice(column, column + 16))
        total[:, *where] += weight * (4 * image[:, *where] - 2 + _slant(network.patch))
        weights[where] += weight
    got = predict_2d(network, image, batch=2)  # type: ignore[arg-type]
    torch.testing.assert_close(got, 1 / (1 + torch.exp(-total / weights)), rtol=0, atol=1e-5)
    assert {size[1:] for size in network.seen} == {(1, 32, 16)}
    assert max(size[0] for size in network.seen) == 2


def test_involvement_of_less_than_a_patch_is_that_of_its_place_in_it() -> None:
    image = torch.rand(3, 20, 9)
    got = predict_2d(_Slanted(), image)  # type: ignore[arg-type]
    expected = torch.sigmoid(4 * image - 2 + _slant((32, 16))[6:26, 3:12])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
