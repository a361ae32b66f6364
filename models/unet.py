"""The U-Net family: the 3D lesion network and the 2D involvement network differ in widths and in normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Instance normalisation that keeps channels-last memory, with a factor and an offset for each channel.

    For one instance it is batch normalisation by the statistics of the batch, whose gradient PyTorch computes more than
    ten times faster on CPUs than that of group normalisation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each instance; shape (batch, channels, [z,] y, x)."""
        if len(x) == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)
        return F.group_norm(x, len(self.weight), self.weight, self.bias)


class Conv3d(nn.Conv3d):
    """3D convolution whose gradient is right on two slices, too.

    There the bfloat16 gradient of the weights is that of memory left over from elsewhere, on CPUs with AVX512-BF16
    (PyTorch 2.13), so two slices are learned from in float32.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - as that of its parent
        if x.shape[2] != 2 or x.is_cuda or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


class _DoubleConv(nn.Sequential):
    """Two times: convolution 3 ("same"), instance normalisation where it is wanted, leaky ReLU."""

    def __init__(self, dimensions: Literal[2, 3], normalised: bool, channels: int, first: int, second: int) -> None:
        conv = nn.Conv2d if dimensions == 2 else Conv3d
        layers: list[nn.Module] = []
        for before, after in ((channels, first), (first, second)):
            layers.append(conv(before, after, 3, padding=1, bias=not normalised))
            if normalised:
                layers.append(InstanceNorm(after))
            layers.append(nn.LeakyReLU(0.01, inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net with max pooling, linear up-sampling and skip connections (Cicek et al. 2016).

    Parameters
    ----------
    dimensions : 2 or 3
    widths : sequence of (int, int)
        Features after the first and the second convolution of each level, finest first.
    classes : int
        Output channels.
    normalised : bool
        Whether instance normalisation follows each convolution but the last. Without it, what a voxel is taken for does
        not hang on what else is in the image.
    """

    def __init__(
        self, dimensions: Literal[2, 3], widths: Sequence[tuple[int, int]], classes: int, *, normalised: bool
    ) -> None:
        super().__init__()
        self._mode = "bilinear" if dimensions == 2 else "trilinear"
        self._format = torch.channels_last if dimensions == 2 else torch.channels_last_3d
        self._pool = F.max_pool2d if dimensions == 2 else F.max_pool3d
        self.factor = 2 ** (len(widths) - 1)
        """Every spatial size of the input must be a multiple of this."""
        channels = [1] + [second for _, second in widths]
        self.encoder = nn.ModuleList(
            _DoubleConv(dimensions, normalised, channels[level], *pair) for level, pair in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            _DoubleConv(dimensions, normalised, channels[level + 2] + skip, skip, skip)
            for level, (_, skip) in reversed(list(enumerate(widths[:-1])))
        )
        conv = nn.Conv2d if dimensions == 2 else Conv3d
        self.head = conv(widths[0][1], classes, 1)
        self.to(memory_format=self._format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, [z,] y, x)
            Intensities in [0, 1]; sizes multiples of :attr:`factor`.

        Returns
        -------
        Tensor, shape (batch, classes, [z,] y, x)
        """
        x = x.contiguous(memory_format=self._format)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self._pool(x, 2))
            skips.append(x)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            up = F.interpolate(x, scale_factor=2.0, mode=self._mode, align_corners=False)
            x = block(torch.cat([up, skip], dim=1))
        return torch.as_tensor(self.head(x))
