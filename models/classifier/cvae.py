"""Representation learning: the conditional variational autoencoder whose encoder starts the classifier.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.2 (figure 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier.losses import gaussian_kl, gaussian_reconstruction
from models.classifier.network import CLASSES, ENCODER_FEATURES, LEAKY_SLOPE, GatedEncoder

PriorInputs = Literal["y", "xy", "standard_normal"]
EMBEDDING = 64
LATENT = 16
REDUCTION = 8
"""The encoder and its last pooling divide rows and columns by this."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Diagonal Gaussians: mean and log standard deviation, each (n, 16)."""

    mean: Tensor
    log_sigma: Tensor

    def sample(self) -> Tensor:
        """Draw ``mean + sigma * eps`` with standard normal eps, differentiable in both parameters."""
        return self.mean + self.log_sigma.exp() * torch.randn_like(self.mean)


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the autoencoder makes of a batch: the CT image (n, 1, size, size) and the two distributions of z."""

    image: Tensor
    conditional: Gaussian
    prior: Gaussian

    def loss(self, image: Tensor, sigma: float = 1.0) -> Tensor:
        """Negative variational lower bound per image, less its constant, averaged: a scalar.

        Parameters
        ----------
        image : Tensor, shape (n, 1, size, size)
            The CT channel.
        sigma : float
            Fixed standard deviation of the generative distribution, in units of the image.
        """
        q, p = self.conditional, self.prior
        divergence = gaussian_kl(q.mean.float(), q.log_sigma.float(), p.mean.float(), p.log_sigma.float())
        return (gaussian_reconstruction(self.image.float(), image.float(), sigma) + divergence).mean()


class Decoder(nn.Module):
    """Transposed convolutions from z to the CT image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.ConvTranspose2d(LATENT, 32, 3)
        self.conv2 = nn.ConvTranspose2d(32, 16, 3)
        self.conv3 = nn.ConvTranspose2d(16, 1, 2)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (n, 16) to images (n, 1, size, size)."""
        features = F.leaky_relu(self.conv1(z[:, :, None, None]), LEAKY_SLOPE)
        features = F.interpolate(features, scale_factor=2, mode="bilinear")
        features = F.leaky_relu(self.conv2(features), LEAKY_SLOPE)
        features = F.interpolate(features, scale_factor=2, mode="bilinear")
        features = F.leaky_relu(self.conv3(features), LEAKY_SLOPE)
        return F.interpolate(features, size=(self.size, self.size), mode="bilinear")


class CVAE(nn.Module):
    """Conditional variational autoencoder over single slices of a fixed size.

    Parameters
    ----------
    size : int
        Rows and columns of the slices; a multiple of 8.
    prior : {"y", "xy", "standard_normal"}
        What the prior p(z | .) sees. The paper writes (x, y) for both distributions; with shared inputs the
        divergence can fall to zero without anything being learned, so the default is the label alone.
    side_branch : bool
        As of :class:`~models.classifier.network.GatedEncoder`.
    """

    def __init__(self, size: int = 128, prior: PriorInputs = "y", side_branch: bool = True) -> None:
        super().__init__()
        if size < REDUCTION or size % REDUCTION:
            raise ValueError(f"size must be a positive multiple of {REDUCTION}")
        self.prior_inputs: PriorInputs = prior
        self.encoder = GatedEncoder(side_branch)
        self.project = nn.Linear(ENCODER_FEATURES * (size // REDUCTION) ** 2, EMBEDDING)
        self.embed_label = nn.Linear(CLASSES, EMBEDDING)
        self.merge = nn.Linear(2 * EMBEDDING, EMBEDDING)
        self.context = nn.Linear(EMBEDDING, EMBEDDING)
        self.conditional = nn.Linear(EMBEDDING, 2 * LATENT)
        self.prior = None if prior == "standard_normal" else nn.Linear(EMBEDDING, 2 * LATENT)
        self.decoder = Decoder(size)

    def encode(self, slices: Tensor, labels: Tensor) -> tuple[Gaussian, Gaussian]:
        """Conditional and prior distribution of z, for slices (n, 2, size, size) and integer labels (n,)."""
        label = self.embed_label(F.one_hot(labels, CLASSES).to(slices.dtype))
        visual = F.relu(self.project(F.max_pool2d(self.encoder(slices), 2).flatten(1)))
        merged = F.relu(self.merge(torch.cat([visual, label], dim=1)))
        gated = torch.sigmoid(self.context(merged)) * merged
        conditional = Gaussian(*self.conditional(gated).chunk(2, dim=1))
        return conditional, self._prior_of(conditional, label if self.prior_inputs == "y" else gated)

    def label_prior(self, labels: Tensor) -> Gaussian:
        """Prior of z for integer labels (n,), where it sees the label alone."""
        assert self.prior is not None  # noqa: S101 - such is this prior
        label = self.embed_label(F.one_hot(labels, CLASSES).to(self.embed_label.weight.dtype))
        return Gaussian(*self.prior(label).chunk(2, dim=1))

    def _prior_of(self, conditional: Gaussian, inputs: Tensor) -> Gaussian:
        if self.prior is None:
            zero = torch.zeros_like(conditional.mean)
            return Gaussian(zero, zero)
        return Gaussian(*self.prior(inputs).chunk(2, dim=1))

    def forward(self, slices: Tensor, labels: Tensor) -> Reconstruction:
        """Reconstruct the CT channel of slices (n, 2, size, size) with labels (n,) through a sample of z."""
        conditional, prior = self.encode(slices, labels)
        return Reconstruction(self.decoder(conditional.sample()), conditional, prior)
