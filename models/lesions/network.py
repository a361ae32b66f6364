"""3D U-Net for the lesion types (paper, section 4.1; Cicek et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor

from models.unet import UNet

WIDTHS = ((32, 64), (64, 128), (128, 256), (256, 512))
CLASSES = 5
"""Background, ground-glass opacity, consolidation, crazy paving, combined pattern."""
UNKNOWN_TYPE = CLASSES
"""Label of a lesion whose type nobody has stated, as in many data sets. It can be learned from, but is never found."""
PATCH = (16, 80, 80)
"""Usual block in voxels (z, y, x)."""
SPACING = (3.0, 2.0, 2.0)
"""Usual working resolution in mm along z, y, x."""


class LesionNetwork(UNet):
    """3D U-Net of four levels with 32 features on the first and 16.3 M parameters.

    Parameters
    ----------
    spacing : sequence of float
        Working resolution in mm along z, y, x.
    patch : sequence of int
        Block in voxels (z, y, x), multiples of 8, in training and in inference alike: the instance norms depend on it.
    """

    def __init__(self, spacing: Sequence[float] = SPACING, patch: Sequence[int] = PATCH) -> None:
        super().__init__(3, WIDTHS, CLASSES)
        z, y, x = map(float, spacing)
        self.spacing = (z, y, x)
        depth, rows, columns = map(int, patch)
        self.patch = (depth, rows, columns)


@torch.inference_mode()
def predict(network: LesionNetwork, image: Tensor) -> Tensor:
    """Return the probability of each class in each voxel.

    Parameters
    ----------
    network : LesionNetwork
        In evaluation mode.
    image : Tensor, shape (z, y, x)
        From :func:`models.lung_region.lung_region`, at the network's spacing, cropped to the box around the lungs.

    Returns
    -------
    Tensor of float32, shape (5, z, y, x)
    """
    inferer = SlidingWindowInferer(
        network.patch, sw_batch_size=1, overlap=0.25, mode="gaussian", padding_mode="constant"
    )
    logits = torch.as_tensor(inferer(image[None, None], network)).float()
    return torch.softmax(logits, dim=1)[0]
