"""3D U-Net for the lesion types (paper, section 4.1; Cicek et al. 2016)."""

from __future__ import annotations

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor

from models.unet import UNet

WIDTHS = ((32, 64), (64, 128), (128, 256), (256, 512))
CLASSES = 5
"""Background, ground-glass opacity, consolidation, crazy paving, combined pattern."""
PATCH = (24, 96, 96)
"""Block in voxels (z, y, x), in training and in inference alike: the instance norms depend on it."""
SPACING = (3.0, 1.5, 1.5)
"""Working resolution in mm along z, y, x."""
HU_RANGE = (-1000.0, 400.0)
"""Hounsfield units are clipped to this range and rescaled to [0, 1]."""


def lesion_network() -> UNet:
    """Return the network with random weights: four levels, 32 features on the first, 16.3 M parameters."""
    return UNet(3, WIDTHS, CLASSES)


def normalise(hu: Tensor) -> Tensor:
    """Clip Hounsfield units to :data:`HU_RANGE` and rescale to [0, 1]."""
    low, high = HU_RANGE
    return (hu.clamp(low, high) - low) / (high - low)


@torch.inference_mode()
def predict(network: UNet, hu: Tensor) -> Tensor:
    """Return the probability of each class in each voxel.

    Parameters
    ----------
    network : UNet
        In evaluation mode.
    hu : Tensor, shape (z, y, x)
        Hounsfield units at :data:`SPACING`, cropped to the bounding box of the lungs.

    Returns
    -------
    Tensor of float32, shape (5, z, y, x)
    """
    inferer = SlidingWindowInferer(PATCH, sw_batch_size=1, overlap=0.25, mode="gaussian", padding_mode="constant")
    logits = torch.as_tensor(inferer(normalise(hu)[None, None], network)).float()
    return torch.softmax(logits, dim=1)[0]
