"""A 3D network like DeCoVNet: stem, residual stage and progressive classifier.

Source: Wang et al. 2020, "A weakly-supervised framework for COVID-19 classification and lesion localization from
chest CT", IEEE Transactions on Medical Imaging 39(8). Widths and kernels are those of the code that the authors
published. Three things differ: group normalisation (Wu and He 2018) instead of batch normalisation, because a batch
is one study; the classifier pools by fixed factors, not to fixed grids, so that a kernel covers the same length in
studies of all sizes; and one linear layer at the end, because two in a row are one.
"""

from __future__ import annotations

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 2
GROUP_CHANNELS = 8
"""Channels that are normalised together."""

_Size = tuple[int, int, int]
_HALVED: _Size = (1, 2, 2)
"""Stride that halves the slices in their plane and keeps their number."""


def _convolution(channels: int, features: int, kernel: _Size, strides: _Size = (1, 1, 1)) -> nn.Sequential:
    """Convolution that keeps the size but for the strides, and group normalisation."""
    layer: nn.Sequential = Convolution(
        spatial_dims=3,
        in_channels=channels,
        out_channels=features,
        kernel_size=kernel,
        strides=strides,
        act=None,
        norm=("group", {"num_groups": features // GROUP_CHANNELS}),
        bias=False,
    )
    return layer


class _Bottleneck(nn.Module):
    """Residual block: convolutions 3 x 1 x 1, 1 x 3 x 3 and 1 x 1 x 1 beside a projection 1 x 1 x 1."""

    def __init__(self, channels: int, inner: int, features: int, strides: _Size = (1, 1, 1)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, inner, (3, 1, 1)),
            nn.ReLU(inplace=True),
            _convolution(inner, inner, (1, 3, 3), strides),
            nn.ReLU(inplace=True),
            _convolution(inner, features, (1, 1, 1)),
        )
        self.projection = _convolution(channels, features, (1, 1, 1), strides)

    def forward(self, volume: Tensor) -> Tensor:
        """Map (1, channels, z, y, x) to (1, features, z, y / stride, x / stride)."""
        return F.relu(self.body(volume) + self.projection(volume))


def _pool(factors: _Size) -> nn.Module:
    """Max-pooling that keeps the rest at the end, so that one slice stays one slice."""
    return nn.MaxPool3d(factors, ceil_mode=True)


class DeCoVNet(nn.Module):
    """Classify the volume of one study as COVID-19 negative or positive; 345,922 parameters.

    Of a study the CT and the lung mask are used. Any number of slices and any slice size will do, and nothing is
    kept but the parameters: it does not matter what was seen before. The order of the slices does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(2, 16, (5, 7, 7), _HALVED),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=_HALVED, padding=(0, 1, 1)),
        )
        self.residual = nn.Sequential(
            _Bottleneck(16, 16, 64),
            _pool((2, 1, 1)),
            _Bottleneck(64, 32, 128, _HALVED),
        )
        self.progressive = nn.Sequential(
            _pool((2, 1, 1)),
            nn.Conv3d(128, 64, 3, padding="same"),
            nn.ReLU(inplace=True),
            _pool((4, 2, 2)),
            nn.Conv3d(64, 32, 3, padding="same"),
            nn.ReLU(inplace=True),
            _pool((4, 2, 2)),
            nn.Conv3d(32, 32, 3, padding="same"),
            nn.ReLU(inplace=True),
        )
        self.output = nn.Linear(32, CLASSES)

    def forward(self, study: Tensor) -> Tensor:
        """Classify one study.

        Parameters
        ----------
        study : Tensor, shape (n, 3, H, W)
            Slices from feet to head: CT (0 outside the lungs), lesion mask and lung mask, in [0, 1].

        Returns
        -------
        Tensor, shape (2,)
            Logits: negative, positive.
        """
        volume = torch.stack([study[:, 0], study[:, 2]])[None]
        features: Tensor = self.progressive(self.residual(self.stem(volume)))
        logits: Tensor = self.output(features[0].amax((1, 2, 3)))
        return logits
