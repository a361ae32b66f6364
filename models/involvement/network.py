"""2DS: a 2D U-Net that marks affected lung in axial slices (paper, section 4.1)."""

from __future__ import annotations

import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer
from scipy import ndimage
from torch import Tensor

from models.hounsfield import rescale
from models.morphology import BoolArray
from models.unet import UNet

WIDTHS = ((16, 16), (32, 32), (64, 64), (128, 128), (256, 256))
PATCH = (128, 128)
"""Rows and columns of a patch."""
PIXEL_MM = 1.5
"""Usual working resolution in the axial plane."""
MARGIN_MM = 15.0
"""What lies farther from the lungs within a slice is blanked: the network sees lung and pleura, not the body."""
HU_RANGE = (-1000.0, 400.0)
"""Hounsfield units are clipped to this range and rescaled to [0, 1]."""


class InvolvementNetwork(UNet):
    """2D U-Net of five levels with 16 features on the first.

    Parameters
    ----------
    pixel_mm : float
        Working resolution in the axial plane.
    """

    def __init__(self, pixel_mm: float = PIXEL_MM) -> None:
        super().__init__(2, WIDTHS, classes=1)
        self.pixel_mm = float(pixel_mm)


def normalise(hu: Tensor, near_lungs: Tensor) -> Tensor:
    """Clip Hounsfield units to :data:`HU_RANGE`, rescale to [0, 1], and blank what is not near the lungs."""
    return rescale(hu, HU_RANGE) * near_lungs


def near_lungs(lung: BoolArray, pixel_mm: float) -> BoolArray:
    """Mark what lies within :data:`MARGIN_MM` of lung in the same slice; ``lung`` (slices, rows, columns)."""
    far = MARGIN_MM / pixel_mm
    return np.stack([ndimage.distance_transform_edt(~plane) <= far if plane.any() else plane for plane in lung])


@torch.inference_mode()
def predict(network: InvolvementNetwork, image: Tensor, batch: int = 16) -> Tensor:
    """Return the probability of affected lung in each pixel.

    Parameters
    ----------
    network : InvolvementNetwork
        In evaluation mode.
    image : Tensor, shape (slices, rows, columns)
        From :func:`normalise`, at the network's pixel size, cropped to the bounding box of the lungs.
    batch : int
        Patches at a time.

    Returns
    -------
    Tensor of float32, shape (slices, rows, columns)
    """
    inferer = SlidingWindowInferer(PATCH, sw_batch_size=batch, overlap=0.25, mode="gaussian")
    slices = [
        torch.sigmoid(torch.as_tensor(inferer(part[:, None], network)).float())[:, 0]
        for part in torch.split(image, batch)
    ]
    return torch.cat(slices)
