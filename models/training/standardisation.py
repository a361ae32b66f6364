"""The first weights of networks without normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TINY = 1e-4
"""Standard deviation below which a channel is taken to be constant."""


@torch.no_grad()
def standardise(network: nn.Module, images: Tensor) -> None:
    """Scale and shift each 3D convolution but the last so that its channels have mean 0 and variance 1.

    In place, in one pass, as the network is used (no dropout). Without normalisation layers, this is what lets a deep
    network learn from the start (Mishkin and Matas 2016, arXiv:1511.06422; Salimans and Kingma 2016, arXiv:1602.07868).
    A channel that is constant keeps its scale.

    Parameters
    ----------
    network : nn.Module
        Passes through its convolutions once, in order.
    images : Tensor, shape (batch, 1, z, y, x)
        What they are standardised over.
    """

    def rescaled(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv3d) and layer.bias is not None  # noqa: S101, PT018 - it is hooked to no other
        over = (0, 2, 3, 4)
        spread = output.std(over)
        spread = torch.where(spread > _TINY, spread, 1.0)
        mean, deviation = (value[:, None, None, None] for value in (output.mean(over), spread))
        layer.weight /= deviation[..., None]
        layer.bias.copy_((layer.bias - mean.flatten()) / deviation.flatten())
        return (output - mean) / deviation

    *layers, _ = (module for module in network.modules() if isinstance(module, nn.Conv3d))
    handles = [layer.register_forward_hook(rescaled) for layer in layers]
    training = network.training
    network.eval()(images)
    network.train(training)
    for handle in handles:
        handle.remove()
