"""DeepMedic: shape, size, receptive field and block-wise inference."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.hounsfield import AIR_HU
from models.lungs.network import HALO, DeepMedic, normalise, predict
from models.training.standardisation import standardise
from tests.app.tiny_run import threshold_network


def _network() -> DeepMedic:
    torch.manual_seed(0)
    return DeepMedic().eval()


def test_about_690_thousand_parameters() -> None:
    conv = sum(p.numel() for n, p in DeepMedic().named_parameters() if p.dim() > 1)
    assert conv == 2 * (9 * 32 + 4 * 9 * 32 * 32 + 27 * 32 * 48 + 4 * 27 * 48 * 48) + 96 * 150 + 150 * 150 + 150
    assert 0.685e6 < sum(p.numel() for p in DeepMedic().parameters()) < 0.705e6


def test_valid_convolutions_consume_the_halo() -> None:
    x = torch.rand(1, 1, 6 + 2 * HALO[0], 9 + 2 * HALO[1], 3 + 2 * HALO[2])
    assert _network()(x).shape == (1, 1, 6, 9, 3)


def test_receptive_field_is_the_halo_and_no_more() -> None:
    """A block of the size of a coarse voxel depends on the corner of the halo, through interpolation."""
    network = _network()
    x = torch.rand(1, 1, 3 + 2 * HALO[0], 3 + 2 * HALO[1], 3 + 2 * HALO[2], requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    z, y, x_ = torch.nonzero(gradient[0, 0], as_tuple=True)
    assert (z.min(), z.max()) == (0, 2 + 2 * HALO[0])
    assert (y.min(), y.max()) == (0, 2 + 2 * HALO[1])
    assert (x_.min(), x_.max()) == (0, 2 + 2 * HALO[2])


def test_both_pathways_are_aligned() -> None:
    """A block moved by the subsampling factor gives the same output, moved."""
    network = _network()
    x = torch.rand(1, 1, 9 + 2 * HALO[0], 9 + 2 * HALO[1], 9 + 2 * HALO[2])
    whole = network(x)
    torch.testing.assert_close(network(x[:, :, 3:, 3:, 3:]), whole[:, :, 3:, 3:, 3:], rtol=1e-4, atol=1e-5)


def test_coarse_features_are_interpolated_without_steps() -> None:
    """With the fine pathway cut off, the logit of a wedge is straight between coarse voxels, at their borders too."""
    network = _network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.zero_()
                module.bias.zero_()
        for layer in network.coarse:
            if isinstance(layer, nn.Conv3d):
                layer.weight[(0, 0, *(size // 2 for size in layer.kernel_size))] = 1.0
        first, second, last = (layer for layer in network.head if isinstance(layer, nn.Conv3d))
        first.weight[0, 48] = second.weight[0, 0] = last.weight[0, 0] = 1.0
        wedge = torch.linspace(0.1, 0.9, 12 + 2 * HALO[2]).expand(1, 1, 3 + 2 * HALO[0], 3 + 2 * HALO[1], -1)
        logit = network(wedge)
    torch.testing.assert_close(logit, wedge[..., HALO[0] : -HALO[0], HALO[1] : -HALO[1], HALO[2] : -HALO[2]])


def test_slabs_do_not_change_the_result() -> None:
    network = _network()
    hu = torch.randn(13, 10, 11) * 200 - 600
    torch.testing.assert_close(predict(network, hu, slab=3), predict(network, hu, slab=15), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slab", [6, 36])
def test_inside_the_boxes_looked_at_the_result_is_that_of_the_whole(slab: int) -> None:
    network = _network()
    with torch.no_grad():
        network.head[-1].bias -= 20.0  # type: ignore[operator]  # no lung at all, so that none reaches out of a box
    hu = torch.randn(14, 23, 31) * 200 - 600
    within = np.zeros(hu.shape, bool)
    within[1:5, 4:9, 11:13] = within[10, 15, 25:30] = True
    whole, part = predict(network, hu), predict(network, hu, within, slab)
    inside = part > 0
    assert inside[torch.from_numpy(within)].all()
    torch.testing.assert_close(part[inside], whole[inside], rtol=1e-4, atol=1e-5)
    boxes = [np.s_[0:12, 3:18, 9:30]] if slab == 36 else [np.s_[0:6, 3:9, 9:15], np.s_[6:12, 15:18, 24:30]]
    expected = torch.zeros(hu.shape, dtype=torch.bool)
    for box in boxes:
        expected[box] = True
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("place", [np.s_[:, 5:9, 12:15], np.s_[:, 5:9, 24:27], np.s_[:, 2:4, 15:20], np.s_[:, 17, 15]])
def test_lung_that_reaches_out_of_a_box_is_followed(place: tuple[slice, ...]) -> None:
    """Whichever side of the box it is that it crosses."""
    network = threshold_network().eval()
    hu = torch.full((6, 24, 33), 40.0)
    hu[:, 2:19, 12:27] = -850.0
    within = np.zeros(hu.shape, bool)
    within[place] = True
    assert torch.equal(predict(network, hu, within), predict(network, hu))


def test_where_nothing_is_looked_at_there_is_no_lung() -> None:
    hu = torch.full((5, 7, 9), -850.0)
    assert torch.equal(predict(_network(), hu, np.zeros(hu.shape, bool)), torch.zeros(hu.shape))


def test_a_scan_goes_on_beyond_its_ends_and_air_lies_beside_it() -> None:
    """As if its first and last slice had been scanned again and again, in air."""
    network = _network()
    hu = torch.randn(4, 10, 11) * 200 - 600
    longer = torch.cat([hu[:1].expand(21, -1, -1), hu, hu[-1:].expand(20, -1, -1)])
    wider = torch.nn.functional.pad(longer, (6, 9, 3, 6), value=AIR_HU)
    torch.testing.assert_close(predict(network, hu), predict(network, wider)[21:25, 3:-6, 6:-9], rtol=1e-4, atol=1e-5)


def test_intensities_are_clipped_and_scaled() -> None:
    got = normalise(torch.tensor([-2000.0, -1100.0, -500.0, 100.0, 900.0]))
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_attenuation_is_not_normalised_away() -> None:
    """What a patch holds elsewhere does not change the features of a voxel, in training either."""
    network = _network().train()
    for dropout in (module for module in network.modules() if isinstance(module, nn.Dropout3d)):
        dropout.eval()
    x = torch.rand(1, 1, 3 + 2 * HALO[0], 33 + 2 * HALO[1], 3 + 2 * HALO[2])
    other = x.clone()
    other[..., -3:, :] = 1.0  # out of reach of the first row
    torch.testing.assert_close(network(x)[..., 0, :], network(other)[..., 0, :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contrast", [0.02, 1.0])
def test_standardised_convolutions_have_mean_0_and_variance_1(contrast: float) -> None:
    network, seen = _network(), []
    images = 0.7 + contrast * torch.randn(2, 1, 9 + 2 * HALO[0], 12 + 2 * HALO[1], 12 + 2 * HALO[2])
    before = network.head[-1].weight.clone()
    standardise(network.train(), images)
    assert network.training
    network.eval()

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output.mean((0, 2, 3, 4)), output.std((0, 2, 3, 4))))

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    for layer in convolutions:
        layer.register_forward_hook(see)
    with torch.no_grad():
        network(images)
    assert len(seen) == len(convolutions) == 23
    for mean, deviation in seen[:-1]:
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=2e-3, rtol=0.0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=2e-3, rtol=0.0)
    assert torch.equal(network.head[-1].weight, before), "the last one is not standardised"


def test_what_is_constant_keeps_its_scale() -> None:
    network = _network()
    before = [module.weight.clone() for module in network.modules() if isinstance(module, nn.Conv3d)]
    standardise(network, torch.full((1, 1, 3 + 2 * HALO[0], 3 + 2 * HALO[1], 3 + 2 * HALO[2]), 0.5))
    after = [module.weight for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
