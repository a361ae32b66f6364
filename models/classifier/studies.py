"""Prepared studies on disk: what the classifier sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

CT, LABELS = "ct", "labels"
LUNG, LESION = 1, 2
"""Bits of the labels."""


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """A prepared study: a safetensors file.

    ``ct`` (float16; n, H, W) is masked by the lungs, in [0, 1]; ``labels`` (uint8) hold a bit for lung and one for
    lesion.

    Parameters
    ----------
    path : Path
    label : int
        0 negative, 1 positive.
    """

    path: Path
    label: int

    def slices(self) -> Tensor:
        """Read the slices, float32 (n, 3, H, W) in [0, 1]: CT, lesion mask, lung mask; the classifier sees two."""
        tensors = load_file(self.path)
        labels = tensors[LABELS]
        masks = [(labels & bit > 0).float() for bit in (LESION, LUNG)]
        return torch.stack([tensors[CT].float(), *masks], dim=1)
