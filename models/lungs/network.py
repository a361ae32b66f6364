"""DeepMedic for lung segmentation (paper, section 4.1; Kamnitsas et al. 2017), fully convolutional."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hounsfield import AIR_HU, rescale

COARSE = 3
"""Subsampling factor of the second pathway along every axis."""
HALO = (18, 33, 33)
"""Context in voxels (z, y, x) that convolutions, and the interpolation of coarse features, consume on each side."""
SPACING = (3.0, 2.0, 2.0)
"""Usual working resolution in mm along z, y, x."""
HU_RANGE = (-1100.0, 100.0)
"""Hounsfield units are clipped to this range and rescaled to [0, 1]."""
_FINE_HALO = (5, 10, 10)


def _pathway() -> nn.Sequential:
    """Five 3x3x1 convolutions in the axial plane, then five 3x3x3, all valid.

    Without normalisation: statistics of a patch would take its attenuation away, which tells lung from other tissue.
    """
    layers: list[nn.Module] = []
    channels = 1
    for width, kernel in [(32, (1, 3, 3))] * 5 + [(48, (3, 3, 3))] * 5:
        layers += [nn.Conv3d(channels, width, kernel), nn.PReLU(width)]
        channels = width
    return nn.Sequential(*layers)


class DeepMedic(nn.Module):
    """Two pathways, one at full and one at a third of the resolution, and a 1x1x1 head.

    The coarse pathway sees the mean of 3 x 3 x 3 voxels, so that noise does not alias; its features are interpolated,
    so that borders have no steps of its voxels.

    Parameters
    ----------
    spacing : sequence of float
        Working resolution in mm along z, y, x.
    dropout : float
        Of the features of the head, in training.
    """

    def __init__(self, spacing: Sequence[float] = SPACING, dropout: float = 0.5) -> None:
        super().__init__()
        z, y, x = map(float, spacing)
        self.spacing = (z, y, x)
        self.fine = _pathway()
        self.coarse = _pathway()
        self.head = nn.Sequential(
            nn.Conv3d(96, 150, 1),
            nn.PReLU(150),
            nn.Dropout3d(dropout),
            nn.Conv3d(150, 150, 1),
            nn.PReLU(150),
            nn.Dropout3d(dropout),
            nn.Conv3d(150, 1, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module.out_channels > 1:
                nn.init.kaiming_normal_(module.weight, a=0.25)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # several times faster on CPUs and on tensor cores

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of lung for the interior of a block.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, z + 36, y + 66, x + 66)
            Intensities in [0, 1] with a :data:`HALO` on each side; z, y, x multiples of 3.

        Returns
        -------
        Tensor, shape (batch, 1, z, y, x)
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)
        crop = [h - f for h, f in zip(HALO, _FINE_HALO, strict=True)]
        z, y, x_ = (slice(c, size - c) for c, size in zip(crop, x.shape[2:], strict=True))
        fine = self.fine(x[:, :, z, y, x_])
        coarse = self.coarse(F.avg_pool3d(x, COARSE))
        coarse = F.interpolate(coarse, scale_factor=float(COARSE), mode="trilinear", align_corners=False)
        coarse = coarse[:, :, COARSE:-COARSE, COARSE:-COARSE, COARSE:-COARSE]
        return torch.as_tensor(self.head(torch.cat([fine, coarse], dim=1)))


def normalise(hu: Tensor) -> Tensor:
    """Clip Hounsfield units to :data:`HU_RANGE` and rescale to [0, 1]."""
    return rescale(hu, HU_RANGE)


@torch.inference_mode()
def predict(network: DeepMedic, hu: Tensor, slab: int = 24) -> Tensor:
    """Return the probability of lung for a whole volume, block by block.

    Parameters
    ----------
    network : DeepMedic
        In evaluation mode.
    hu : Tensor, shape (z, y, x)
        Hounsfield units at the working resolution. Above and below the volume, its first and last slice are taken to
        go on; beside it is air.
    slab : int
        Slices in one block, a multiple of 3; bounds the memory, does not change the result.

    Returns
    -------
    Tensor of float32, shape (z, y, x)
    """
    depth, rows, columns = hu.shape
    fill = [-size % COARSE for size in (rows, columns)]
    filled = -(-depth // slab) * slab
    beside = (HALO[2], HALO[2] + fill[1], HALO[1], HALO[1] + fill[0])
    beyond = (0, 0, 0, 0, HALO[0], HALO[0] + filled - depth)
    padded = normalise(F.pad(F.pad(hu[None, None], beyond, mode="replicate"), beside, value=AIR_HU))
    blocks = [torch.sigmoid(network(padded[:, :, z : z + slab + 2 * HALO[0]]).float()) for z in range(0, filled, slab)]
    return torch.cat(blocks, dim=2)[0, 0, :depth, :rows, :columns]
