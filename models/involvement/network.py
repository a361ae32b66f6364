"""2DS: a 2D U-Net that marks affected lung in axial slices (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor

from models.unet import UNet

WIDTHS = ((16, 16), (32, 32), (64, 64), (128, 128), (256, 256))
PATCH = (192, 192)
"""Usual rows and columns of a patch."""
PIXEL_MM = 1.5
"""Usual working resolution in the axial plane."""


class InvolvementNetwork(UNet):
    """2D U-Net of five levels with 16 features on the first.

    Parameters
    ----------
    pixel_mm : float
        Working resolution in the axial plane.
    patch : sequence of int
        What it learns from and is used on, in pixels (rows, columns), multiples of 16.

    Raises
    ------
    ValueError
        If it cannot be used on such patches.
    """

    exact: ClassVar[bool] = False
    heavy: ClassVar[Mapping[str, tuple[tuple[int, ...], ...]]] = {"forward": ((1, 1, 32, 32),)}

    def __init__(self, pixel_mm: float = PIXEL_MM, patch: Sequence[int] = PATCH) -> None:
        super().__init__(2, WIDTHS, classes=1, normalised=True)
        self.pixel_mm = float(pixel_mm)
        rows, columns = map(int, patch)
        if any(size < self.factor or size % self.factor for size in (rows, columns)) or rows == columns == self.factor:
            raise ValueError(f"patches of {rows} x {columns} pixels: multiples of {self.factor} are needed, one larger")
        self.patch = (rows, columns)


@torch.inference_mode()
def predict(network: InvolvementNetwork, image: Tensor, batch: int = 16) -> Tensor:
    """Return the probability of affected lung in each pixel.

    Parameters
    ----------
    network : InvolvementNetwork
        In evaluation mode.
    image : Tensor, shape (slices, rows, columns)
        From :func:`models.lung_region.lung_region`, at the network's pixel size, cropped to the box around the lungs.
    batch : int
        Patches at a time.

    Returns
    -------
    Tensor of float32, shape (slices, rows, columns)
    """
    inferer = SlidingWindowInferer(network.patch, sw_batch_size=batch, overlap=0.25, mode="gaussian")
    slices = [
        torch.sigmoid(torch.as_tensor(inferer(part[:, None], network)).float())[:, 0]
        for part in torch.split(image, batch)
    ]
    return torch.cat(slices)
