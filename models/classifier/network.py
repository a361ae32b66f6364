"""The classifier: gated encoder, spatial pyramid pooling, NetVLAD over the slices of a study.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4 (figure 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.01
PYRAMID = (5, 3, 2)
ENCODER_FEATURES = 64
DESCRIPTOR_FEATURES = 512
CLUSTERS = 64
CLASSES = 2
IN_PLANE = 256
"""Usual size in pixels of the larger side of the slices."""
HU_RANGE = (-1000.0, 400.0)
"""Hounsfield units that become intensities 0 and 1."""


class Branch(nn.Module):
    """One convolutional branch of the encoder: conv 16 @ 5x5, conv 32 @ 3x3, conv 64 @ 3x3.

    Same padding, stride 1; ReLU after the first, leaky ReLU after the others; max-pooling by 2 after the first
    and the second. 23,552 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding="same")
        self.conv2 = nn.Conv2d(16, 32, 3, padding="same")
        self.conv3 = nn.Conv2d(32, ENCODER_FEATURES, 3, padding="same")

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, 1, H, W) to (n, 64, H // 4, W // 4)."""
        features = F.max_pool2d(F.relu(self.conv1(image)), 2)
        features = F.max_pool2d(F.leaky_relu(self.conv2(features), LEAKY_SLOPE), 2)
        return F.leaky_relu(self.conv3(features), LEAKY_SLOPE)


class GatedEncoder(nn.Module):
    """Global branch (CT) gated by the side branch (lesion mask): ReLU of the element-wise product.

    Paper, section 4.2. This is what the representation learning hands to the classifier; 47,104 parameters.

    Parameters
    ----------
    side_branch : bool
        False leaves the side branch and its gate out, as in the paper's ablation: ReLU of the global branch.
    """

    def __init__(self, side_branch: bool = True) -> None:
        super().__init__()
        self.global_branch = Branch()
        self.side_branch = Branch() if side_branch else None

    def forward(self, slices: Tensor) -> Tensor:
        """Map slices (n, 2, H, W) in [0, 1], CT and lesion mask, to gated features (n, 64, H // 4, W // 4)."""
        features: Tensor = self.global_branch(slices[:, :1])
        return F.relu(features if self.side_branch is None else features * self.side_branch(slices[:, 1:]))


class SpatialPyramidPooling(nn.Module):
    """Adaptive max-pooling to several grids, flattened and concatenated (He et al. 2015)."""

    def __init__(self, grids: Sequence[int] = PYRAMID) -> None:
        super().__init__()
        self.grids = tuple(grids)

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c * cells), cells being the sum of the squared grid sizes (38)."""
        return torch.cat([F.adaptive_max_pool2d(features, grid).flatten(1) for grid in self.grids], dim=1)


class NetVLAD(nn.Module):
    """Aggregate a set of descriptors of any size (Arandjelovic et al. 2016).

    Each descriptor is softly assigned to clusters; the assigned residuals to each centroid are summed,
    normalised within each cluster, and normalised as a whole. The order of the descriptors does not matter.
    """

    def __init__(self, features: int = DESCRIPTOR_FEATURES, clusters: int = CLUSTERS) -> None:
        super().__init__()
        self.assignment = nn.Linear(features, clusters)
        self.centroids = nn.Parameter(torch.randn(clusters, features) / features**0.5)

    def assign(self, descriptors: Tensor) -> Tensor:
        """Soft assignment of descriptors (n, features): (n, clusters), each row summing to 1."""
        return F.softmax(self.assignment(descriptors), dim=-1)

    def residuals(self, descriptors: Tensor, assignment: Tensor) -> Tensor:
        """Sum of assigned residuals ``A^T X - diag(A^T 1) C``: (clusters, features)."""
        return assignment.T @ descriptors - assignment.sum(0)[:, None] * self.centroids

    def forward(self, descriptors: Tensor) -> Tensor:
        """Map a set (n, features) to one normalised vector (clusters * features,)."""
        residuals = self.residuals(descriptors, self.assign(descriptors))
        return F.normalize(F.normalize(residuals, dim=1).flatten(), dim=0)


class Classifier(nn.Module):
    """Classify the set of slices of one study as COVID-19 negative or positive; 1,423,938 parameters.

    The weights are shared over the slices, any slice size of at least 4 x 4 and any number of slices will do,
    and neither their order nor their chunking matters. A batch of studies is a loop over studies: their
    descriptors are independent, and only :meth:`aggregate` sees a whole study.

    Parameters
    ----------
    in_plane : int
        Size in pixels of the larger side of the slices that it learns from, and is to see.
    side_branch : bool
        As of :class:`GatedEncoder`.
    """

    exact: ClassVar[bool] = True
    heavy: ClassVar[Mapping[str, tuple[tuple[int, ...], ...]]] = {"encode": ((2, 2, 32, 32),)}

    def __init__(self, in_plane: int = IN_PLANE, side_branch: bool = True) -> None:
        super().__init__()
        self.in_plane = int(in_plane)
        self.encoder = GatedEncoder(side_branch)
        self.pyramid = SpatialPyramidPooling()
        self.descriptor = nn.Linear(ENCODER_FEATURES * sum(grid**2 for grid in PYRAMID), DESCRIPTOR_FEATURES)
        self.aggregation = NetVLAD()
        self.output = nn.Linear(DESCRIPTOR_FEATURES * CLUSTERS, CLASSES)

    def encode(self, slices: Tensor) -> Tensor:
        """Map slices (n, 2, H, W) in [0, 1] to gated features (n, 64, H // 4, W // 4)."""
        return torch.as_tensor(self.encoder(slices))

    def describe(self, slices: Tensor, *, chunk: int | None = None) -> Tensor:
        """Describe each slice by itself.

        Parameters
        ----------
        slices : Tensor, shape (n, 2, H, W)
            CT and lesion mask, in [0, 1].
        chunk : int, optional
            Slices processed at a time, to bound memory; all by default.

        Returns
        -------
        Tensor, shape (n, 512)
        """
        parts = torch.split(slices, chunk or len(slices))
        return torch.cat([F.relu(self.descriptor(self.pyramid(self.encode(part)))) for part in parts])

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Map the descriptors (n, 512) of one study to its logits (2,): negative, positive."""
        logits: Tensor = self.output(self.aggregation(descriptors))
        return logits

    def forward(self, slices: Tensor) -> Tensor:
        """Map the slices (n, 2, H, W) of one study to its logits (2,): negative, positive."""
        descriptors = self.describe(slices)
        with torch.autocast(slices.device.type, enabled=False):  # norms and sums over a study need full precision
            return self.aggregate(descriptors.to(self.output.weight.dtype))
