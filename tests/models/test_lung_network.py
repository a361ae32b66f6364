"""DeepMedic: shape, size, receptive field and block-wise inference."""

import torch

from models.lungs.network import HALO, DeepMedic, normalise, predict


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
    """The output voxel in the middle depends on the corner of the halo, through the coarse pathway."""
    network = _network()
    x = torch.rand(1, 1, 3 + 2 * HALO[0], 3 + 2 * HALO[1], 3 + 2 * HALO[2], requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 0, 1, 1, 1], x)
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


def test_slabs_do_not_change_the_result() -> None:
    network = _network()
    hu = torch.randn(13, 10, 11) * 200 - 600
    torch.testing.assert_close(predict(network, hu, slab=3), predict(network, hu, slab=15), rtol=1e-4, atol=1e-5)


def test_intensities_are_clipped_and_scaled() -> None:
    got = normalise(torch.tensor([-2000.0, -1100.0, -500.0, 100.0, 900.0]))
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
