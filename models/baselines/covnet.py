"""COVNet: a 2D ResNet-50 shared by the slices of a study, and the maximum over them.

Source: Li et al. 2020, "Using artificial intelligence to detect COVID-19 and community-acquired pneumonia based on
pulmonary CT", Radiology 296(2). Three things differ: two classes instead of three; random weights at the start
instead of those learned from photographs, so that the first layer sees one channel; and group normalisation (Wu and
He 2018) instead of batch normalisation, because a batch is one study, of one slice only perhaps.
"""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import resnet50
from torch import Tensor, nn

CLASSES = 2
DESCRIPTOR_FEATURES = 2048
GROUPS = 32
"""Groups of channels of each normalisation, as Wu and He have them."""


def _replace_batch_normalisation(network: nn.Module) -> None:
    """Put group normalisation in the place of every batch normalisation."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))


def _backbone() -> nn.Module:
    """Make the ResNet-50 up to its global average pooling: (n, 1, H, W) to (n, 2048)."""
    network: nn.Module = resnet50(
        pretrained=False,
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    # MONAI 1.6.1 hands its argument `norm` to the first layer only (Project-MONAI/MONAI, pull request 9028).
    _replace_batch_normalisation(network)
    return network


class COVNet(nn.Module):
    """Classify the set of slices of one study as COVID-19 negative or positive; 23,505,858 parameters.

    Of a study only the CT is used. Every slice is normalised by itself, in training as in evaluation, and nothing is
    kept but the parameters: neither order, chunking nor repetition of slices matters, nor what was seen before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.output = nn.Linear(DESCRIPTOR_FEATURES, CLASSES)

    def describe(self, slices: Tensor, *, chunk: int | None = None) -> Tensor:
        """Describe each slice by itself.

        Parameters
        ----------
        slices : Tensor, shape (n, 3, H, W)
            CT (0 outside the lungs), lesion mask and lung mask, in [0, 1].
        chunk : int, optional
            Slices processed at a time, to bound memory; all by default.

        Returns
        -------
        Tensor, shape (n, 2048)
        """
        parts = torch.split(slices[:, :1], chunk or len(slices))
        return torch.cat([self.backbone(part) for part in parts])

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Map the descriptors (n, 2048) of one study to its logits (2,): negative, positive."""
        logits: Tensor = self.output(descriptors.amax(0))
        return logits

    def forward(self, study: Tensor) -> Tensor:
        """Map the slices (n, 3, H, W) of one study to its logits (2,): negative, positive."""
        return self.aggregate(self.describe(study))
