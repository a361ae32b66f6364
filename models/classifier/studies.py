"""Prepared studies on disk: what the classifier sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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

    def __len__(self) -> int:
        """Count the slices."""
        with safe_open(self.path, framework="pt") as file:
            return int(file.get_slice(CT).get_shape()[0])

    def slices(self, chosen: Sequence[int] | None = None) -> Tensor:
        """Read slices, float32 (n, 3, H, W) in [0, 1]: CT, lesion mask, lung mask; the classifier sees two.

        Parameters
        ----------
        chosen : sequence of int, optional
            Which; all by default.
        """
        with safe_open(self.path, framework="pt") as file:
            ct, labels = (_read(file.get_slice(name), chosen) for name in (CT, LABELS))
        masks = [(labels & bit > 0).float() for bit in (LESION, LUNG)]
        return torch.stack([ct.float(), *masks], dim=1)


def _read(array: Any, chosen: Sequence[int] | None) -> Tensor:
    read: Tensor = array[:] if chosen is None else torch.stack([array[index] for index in chosen])
    return read
