"""The conditional variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.classifier.cvae import CVAE, PriorInputs, Reconstruction
from models.classifier.losses import gaussian_kl, gaussian_reconstruction
from models.classifier.network import Classifier

LABELS = torch.tensor([0, 1, 1])


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def slices() -> Tensor:
    return torch.rand(3, 2, 32, 32)


def log_density(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    return -(((x - mean) / log_sigma.exp()) ** 2 / 2 + log_sigma + math.log(2 * math.pi) / 2).sum(-1)


def test_kl_is_that_of_the_library_and_of_its_definition() -> None:
    mean_q, log_q, mean_p, log_p = (0.5 * torch.randn(4, 2, dtype=torch.float64) for _ in range(4))
    divergence = gaussian_kl(mean_q, log_q, mean_p, log_p)
    q = torch.distributions.Normal(mean_q, log_q.exp())
    p = torch.distributions.Normal(mean_p, log_p.exp())
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(q, p).sum(1), rtol=1e-12, atol=1e-12)
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    density = log_density(z, mean_q, log_q)
    integral = (density.exp() * (density - log_density(z, mean_p, log_p))).sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(divergence, integral, rtol=1e-6, atol=1e-6)
    assert (divergence > 0).all()
    assert not gaussian_kl(mean_q, log_q, mean_q, log_q).any()


def test_reconstruction_term_is_a_gaussian_s_up_to_its_constant() -> None:
    image, other = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    sigma = 0.3
    likelihood = log_density(image.flatten(1), other.flatten(1), torch.tensor(math.log(sigma), dtype=torch.float64))
    constant = 16 * math.log(sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(gaussian_reconstruction(other, image, sigma), -likelihood - constant)


def test_loss_is_the_sum_of_both_terms() -> None:
    with torch.no_grad():
        output: Reconstruction = CVAE(32)(slices(), LABELS)
    image = torch.rand(3, 1, 32, 32)
    q, p = output.conditional, output.prior
    total = 0.0
    for n in range(3):
        total += float(((output.image[n] - image[n]) ** 2).sum()) / (2 * 0.5**2)
        for i in range(16):
            ratio = math.exp(float(q.log_sigma[n, i] - p.log_sigma[n, i])) ** 2
            gap = float(q.mean[n, i] - p.mean[n, i]) / math.exp(float(p.log_sigma[n, i]))
            total += 0.5 * (ratio + gap**2 - 1 - math.log(ratio))
    assert float(output.loss(image, 0.5)) == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("prior", ["y", "xy", "standard_normal"])
def test_shapes_and_gradients(prior: PriorInputs) -> None:
    cvae, batch = CVAE(32, prior), slices()
    output = cvae(batch, LABELS)
    assert output.image.shape == (3, 1, 32, 32)
    assert output.conditional.mean.shape == output.prior.log_sigma.shape == (3, 16)
    output.loss(batch[:, :1]).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in cvae.parameters())
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in cvae.encoder.parameters())


def test_default_size_is_128() -> None:
    with torch.inference_mode():
        assert CVAE()(torch.rand(1, 2, 128, 128), LABELS[:1]).image.shape == (1, 1, 128, 128)


@pytest.mark.parametrize("size", [0, 4, 30])
def test_a_size_that_does_not_divide_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        CVAE(size)


@torch.inference_mode()
def test_what_each_prior_sees() -> None:
    batch, other = slices(), slices()
    for prior, sees_image, sees_label in (("y", False, True), ("xy", True, True), ("standard_normal", False, False)):
        cvae = CVAE(32, prior)  # type: ignore[arg-type]
        mean = cvae.encode(batch, LABELS)[1].mean
        assert torch.equal(mean, cvae.encode(other, LABELS)[1].mean) != sees_image
        assert torch.equal(mean, cvae.encode(batch, 1 - LABELS)[1].mean) != sees_label


@torch.inference_mode()
def test_the_conditional_sees_both_images_and_the_label() -> None:
    cvae, batch = CVAE(32), slices()
    mean = cvae.encode(batch, LABELS)[0].mean
    assert not torch.equal(mean, cvae.encode(batch, 1 - LABELS)[0].mean)
    for channel in range(2):
        changed = batch.clone()
        changed[:, channel] = 1 - changed[:, channel]
        assert not torch.equal(mean, cvae.encode(changed, LABELS)[0].mean)


@torch.inference_mode()
def test_z_changes_the_reconstruction_and_alone_decides_it() -> None:
    cvae = CVAE(32)
    z = torch.randn(1, 16)
    for direction in torch.eye(16):
        assert not torch.allclose(cvae.decoder(z), cvae.decoder(z + direction), rtol=1e-3, atol=1e-4)
    first, second = cvae(slices(), LABELS), cvae(slices(), LABELS)
    assert not torch.equal(first.image, second.image)


@torch.inference_mode()
def test_samples_have_the_stated_mean_and_deviation() -> None:
    conditional = CVAE(32).encode(slices(), LABELS)[0]
    samples = torch.stack([conditional.sample() for _ in range(4000)])
    sigma = conditional.log_sigma.exp()
    torch.testing.assert_close(samples.std(0) / sigma, torch.ones(3, 16), rtol=0, atol=0.06)
    torch.testing.assert_close((samples.mean(0) - conditional.mean) / sigma, torch.zeros(3, 16), rtol=0, atol=0.08)


@torch.inference_mode()
def test_only_the_two_branches_are_transferred() -> None:
    cvae, network = CVAE(32), Classifier()
    state = cvae.encoder.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 47_104
    assert {name.split(".")[0] for name in state} == {"global_branch", "side_branch"}
    batch = slices()
    assert not torch.equal(network.encoder(batch), cvae.encoder(batch))
    network.encoder.load_state_dict(state)
    assert torch.equal(network.encoder(batch), cvae.encoder(batch))
