"""The segmentation networks as MONAI's sliding window runs them, which is what our blocks are measured against.

A window is as large as what the network has learned from, and a quarter of it overlaps the next. The lung network looks
at the whole CT; the lesion network at the box around the lungs, as always. 2DS is run so in any case.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor
from torch.nn import functional as F

from models.lesions.network import LesionNetwork
from models.lungs.network import HALO, DeepMedic, normalise
from operators import lesion_segmentation, lung_segmentation

OVERLAP = 0.25
LUNG_WINDOW = (24, 48, 48)
"""Voxels of a patch from which the lung network has learned (``models/lungs/training.yaml``)."""


def use_sliding_windows() -> None:
    """Have the operators of this process predict so."""
    operators: list[Any] = [lung_segmentation, lesion_segmentation]
    for operator, function in zip(operators, (find_lungs, find_lesions), strict=True):
        operator.predict = function


@torch.inference_mode()
def find_lungs(network: DeepMedic, hu: Tensor, within: object = None) -> Tensor:
    """Return the probability of lung, as :func:`models.lungs.network.predict` does, but for the context of a window.

    What lies around it is taken to be as its border.
    """
    z, y, x = HALO

    def decide(window: Tensor) -> Tensor:
        return network(F.pad(window, (x, x, y, y, z, z), mode="replicate")).float().sigmoid()

    return _inferer(LUNG_WINDOW)(normalise(hu)[None, None], decide)[0, 0]


@torch.inference_mode()
def find_lesions(network: LesionNetwork, image: Tensor) -> Tensor:
    """Return the probability of each class, as :func:`models.lesions.network.predict` does."""
    return torch.softmax(_inferer(network.patch)(image[None, None], network).float(), dim=1)[0]


def _inferer(window: tuple[int, int, int]) -> Any:
    return SlidingWindowInferer(window, sw_batch_size=1, overlap=OVERLAP, mode="gaussian", padding_mode="replicate")
