"""3D U-Net for the lesion types (paper, section 4.1; Cicek et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

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
"""Usual patch to learn from, in voxels (z, y, x)."""
DEEPER = 1.5
"""A block in use spans the plane and has so many times the slices of a patch: fewer voxels are computed twice
(docs/reference_weights.md, "Larger blocks in use")."""
SPACING = (3.0, 2.0, 2.0)
"""Usual working resolution in mm along z, y, x."""


class LesionNetwork(UNet):
    """3D U-Net of four levels with 32 features on the first and 16.3 M parameters.

    Without the instance normalisation of the paper: it takes the attenuation of a block away, which tells lesions from
    lung, and their types from each other (docs/reference_weights.md, "3D U-Net without instance normalisation").

    Parameters
    ----------
    spacing : sequence of float
        Working resolution in mm along z, y, x.
    patch : sequence of int
        What it learns from, in voxels (z, y, x), multiples of 8. The blocks in use follow from it.
    """

    exact: ClassVar[bool] = False
    heavy: ClassVar[Mapping[str, tuple[tuple[int, ...], ...]]] = {"forward": ((1, 1, 16, 16, 16),)}

    def __init__(self, spacing: Sequence[float] = SPACING, patch: Sequence[int] = PATCH) -> None:
        super().__init__(3, WIDTHS, CLASSES, normalised=False)
        z, y, x = map(float, spacing)
        self.spacing = (z, y, x)
        depth, rows, columns = map(int, patch)
        self.patch = (depth, rows, columns)

    def block(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) of a block in use, for an image of a shape."""
        rows, columns = (-(-size // self.factor) * self.factor for size in shape[1:])
        return round(DEEPER * self.patch[0] / self.factor) * self.factor, rows, columns


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
        network.block(image.shape), sw_batch_size=1, overlap=0.25, mode="gaussian", padding_mode="constant"
    )
    logits = torch.as_tensor(inferer(image[None, None], network)).float()
    return torch.softmax(logits, dim=1)[0]
