"""DeepMedic for lung segmentation (paper, section 4.1; Kamnitsas et al. 2017), fully convolutional."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hounsfield import AIR_HU, rescale
from models.morphology import BoolArray, bounding_box

COARSE = 3
"""Subsampling factor of the second pathway along every axis."""
HALO = (18, 33, 33)
"""Context in voxels (z, y, x) that convolutions, and the interpolation of coarse features, consume on each side."""
SPACING = (3.0, 2.0, 2.0)
"""Usual working resolution in mm along z, y, x."""
HU_RANGE = (-1100.0, 100.0)
"""Hounsfield units are clipped to this range and rescaled to [0, 1]."""
SLAB = 24
"""Most slices that the fine pathway sees at a time."""
REACHING = 0.25
"""Probability from which lung reaches out of a box."""
_FINE_HALO = (5, 10, 10)
_CROP = tuple(halo - fine for halo, fine in zip(HALO, _FINE_HALO, strict=True))
"""What is left of the halo around that of the fine pathway."""
Box = tuple[slice, slice, slice]


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

    exact: ClassVar[bool] = True
    """bfloat16 changes 0.02 % of a lung mask, which turns over what the lesion network is in doubt about."""
    heavy: ClassVar[Mapping[str, tuple[tuple[int, ...], ...]]] = {
        "survey": ((1, 1, 39, 69, 69),),
        "decide": ((1, 1, 13, 23, 23), (1, 48, 3, 3, 3)),
    }

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
        z, y, x_ = (slice(crop, -crop) for crop in _CROP)
        return self.decide(x[:, :, z, y, x_], self.survey(x))

    def survey(self, x: Tensor) -> Tensor:
        """Return the features of the coarse pathway, one voxel of it more on each side than the interior has.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, z + 36, y + 66, x + 66)
            As for :meth:`forward`.

        Returns
        -------
        Tensor, shape (batch, 48, z / 3 + 2, y / 3 + 2, x / 3 + 2)
        """
        return torch.as_tensor(self.coarse(F.avg_pool3d(_channels_last(x), COARSE)))

    def decide(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Return the logit of lung from what the fine pathway sees and the coarse features.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, z + 10, y + 20, x + 20)
            The block with the halo of the fine pathway.
        coarse : Tensor, shape (batch, 48, z / 3 + 2, y / 3 + 2, x / 3 + 2)
            From :meth:`survey`.

        Returns
        -------
        Tensor, shape (batch, 1, z, y, x)
        """
        coarse = F.interpolate(coarse, scale_factor=float(COARSE), mode="trilinear", align_corners=False)
        coarse = coarse[:, :, COARSE:-COARSE, COARSE:-COARSE, COARSE:-COARSE]
        return torch.as_tensor(self.head(torch.cat([self.fine(_channels_last(x)), coarse], dim=1)))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def normalise(hu: Tensor) -> Tensor:
    """Clip Hounsfield units to :data:`HU_RANGE` and rescale to [0, 1]."""
    return rescale(hu, HU_RANGE)


@torch.inference_mode()
def predict(network: DeepMedic, hu: Tensor, within: BoolArray | None = None, slab: int = SLAB) -> Tensor:
    """Return the probability of lung in a volume.

    The coarse pathway sees the box around all that is to be looked at once, the fine one a box in each slab. Inside
    its box, the result is that of one block as large as the volume. Where lung reaches out of a box, all is looked at.

    Parameters
    ----------
    network : DeepMedic
        In evaluation mode.
    hu : Tensor, shape (z, y, x)
        Hounsfield units at the working resolution. Above and below the volume, its first and last slice are taken to
        go on; beside it is air.
    within : ndarray of bool, shape (z, y, x), optional
        Where lung lies, or begins at least. Beside the box around it in a slab, the probability is 0.
    slab : int
        Most slices in one block, a multiple of 3; bounds the memory.

    Returns
    -------
    Tensor of float32, shape (z, y, x)
    """
    depth, rows, columns = hu.shape
    size = [-(-n // COARSE) * COARSE for n in hu.shape]
    after = [halo + whole - n for halo, whole, n in zip(HALO, size, hu.shape, strict=True)]
    beyond, beside = (0, 0, 0, 0, HALO[0], after[0]), (HALO[2], after[2], HALO[1], after[1])
    padded = normalise(F.pad(F.pad(hu[None, None], beyond, mode="replicate"), beside, value=AIR_HU))
    probability = torch.zeros(size)
    looked_at = np.ones(hu.shape, bool) if within is None else within
    if looked_at.any():
        whole = _aligned_box(looked_at)
        z, y, x = (slice(s.start, s.stop + 2 * halo) for s, halo in zip(whole, HALO, strict=True))
        coarse = network.survey(padded[:, :, z, y, x])
        for box in _boxes(looked_at, whole[0], slab):
            seen, surveyed = _seen(box), _surveyed(box, whole)
            found = network.decide(padded[(..., *seen)], coarse[(..., *surveyed)])[0, 0].float().sigmoid()
            if within is not None and _reaches_out(found, box, size):
                return predict(network, hu, slab=slab)
            probability[box] = found
    return probability[:depth, :rows, :columns]


def _aligned_box(mask: BoolArray) -> Box:
    """Return the bounding box of a mask, widened to whole coarse voxels."""
    z, y, x = (slice(s.start // COARSE * COARSE, -(-s.stop // COARSE) * COARSE) for s in bounding_box(mask))
    return z, y, x


def _boxes(mask: BoolArray, depth: slice, slab: int) -> Iterator[Box]:
    """Cut ``depth`` into slabs of about the same number of slices, and yield the box around the mask in each."""
    slabs = -(-(depth.stop - depth.start) // slab)
    edges = np.linspace(depth.start // COARSE, depth.stop // COARSE, slabs + 1).round().astype(int) * COARSE
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if mask[start:stop].any():
            _, y, x = _aligned_box(mask[start:stop])
            yield slice(start, stop), y, x


def _reaches_out(found: Tensor, box: Box, size: Sequence[int]) -> bool:
    """Say whether there may be lung at a side of a box that is no side of the volume."""
    for axis in (1, 2):
        if box[axis].start > 0 and float(found.select(axis, 0).max()) >= REACHING:
            return True
        if box[axis].stop < size[axis] and float(found.select(axis, -1).max()) >= REACHING:
            return True
    return False


def _seen(box: Box) -> Box:
    """Return where in the padded volume the fine pathway looks for a box."""
    z, y, x = (
        slice(s.start + crop, s.stop + crop + 2 * halo) for s, crop, halo in zip(box, _CROP, _FINE_HALO, strict=True)
    )
    return z, y, x


def _surveyed(box: Box, whole: Box) -> Box:
    """Return where in the coarse features of the box ``whole`` those of ``box`` are."""
    z, y, x = (
        slice((s.start - w.start) // COARSE, (s.stop - w.start) // COARSE + 2) for s, w in zip(box, whole, strict=True)
    )
    return z, y, x
