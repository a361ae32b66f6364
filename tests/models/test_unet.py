"""The two U-Nets: sizes, shapes, and instance normalisation."""

import itertools

import pytest
import torch

from models.involvement.network import WIDTHS as WIDTHS_2D
from models.involvement.network import InvolvementNetwork
from models.involvement.network import normalise as normalise_2d
from models.involvement.network import predict as predict_2d
from models.lesions.network import WIDTHS as WIDTHS_3D
from models.lesions.network import LesionNetwork
from models.lesions.network import normalise as normalise_3d
from models.lesions.network import predict as predict_3d
from models.unet import UNet


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


def test_group_norm_with_one_channel_a_group_is_instance_norm() -> None:
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(torch.nn.GroupNorm(6, 6)(x), torch.nn.InstanceNorm2d(6)(x))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = UNet(2, ((4, 4), (8, 8)), classes=1).eval()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


def test_lesion_probabilities_sum_to_one_for_any_size() -> None:
    torch.manual_seed(0)
    network = UNet(3, ((4, 4), (8, 8), (8, 8), (8, 8)), classes=5).eval()
    network.patch = (24, 96, 96)
    got = predict_3d(network, torch.randn(9, 100, 50) * 300 - 500)
    assert got.shape == (5, 9, 100, 50)
    torch.testing.assert_close(got.sum(0), torch.ones(9, 100, 50), rtol=0, atol=1e-5)


def test_involvement_is_a_probability_for_any_size() -> None:
    torch.manual_seed(0)
    network = UNet(2, ((4, 4), (8, 8)), classes=1).eval().double()
    image = torch.rand(5, 150, 60, dtype=torch.float64)
    got = predict_2d(network, image, batch=4)
    assert got.shape == image.shape
    assert 0.0 <= float(got.min()) <= float(got.max()) <= 1.0
    torch.testing.assert_close(got, predict_2d(network, image, batch=5), rtol=1e-4, atol=1e-5)


def test_intensities_are_clipped_scaled_and_blanked() -> None:
    hu = torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 900.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])
    torch.testing.assert_close(normalise_3d(hu), expected)
    near = torch.tensor([True, True, True, False, True])
    torch.testing.assert_close(normalise_2d(hu, near), expected * near)
