"""Prepared volumes on disk, read in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from models.hounsfield import AIR_HU

Size = tuple[int, int, int]
HU, LUNGS, COVERAGE, LESIONS, POINTS = "hu", "lungs", "coverage", "lesions", "points_"


@dataclass(frozen=True, slots=True)
class Volume:
    """A prepared volume: a safetensors file of arrays (z, y, x) on one grid.

    ``hu`` (int16) and, where they are known, ``lungs`` (uint8: 1 left, 2 right), ``coverage`` (uint8: how much of a
    voxel is lung, 255 being all) and ``lesions`` (uint8: the type); axes run to the head, to the back and to the left.
    ``points_KIND`` (int32; n, 3) are voxels to centre patches on.
    """

    path: Path

    def box(self, name: str, start: Sequence[int], size: Size) -> npt.NDArray[np.generic]:
        """Read a part of an array.

        Above and below it, its first and last slice go on, as bodies do; beside it is air, and no lung.
        """
        with safe_open(self.path, framework="np") as file:
            whole = file.get_slice(name)
            shape = whole.get_shape()
            slices = np.clip(start[0] + np.arange(size[0]), 0, shape[0] - 1)
            first = int(slices[0])
            inside = tuple(
                slice(min(max(s, 0), n), max(min(s + length, n), 0))
                for s, length, n in zip(start[1:], size[1:], shape[1:], strict=True)
            )
            fill = AIR_HU if name == HU else 0
            if any(each.start >= each.stop for each in inside):
                return np.full(size, fill, np.int16 if name == HU else np.uint8)
            part = whole[(slice(first, int(slices[-1]) + 1), *inside)]
        margins = [
            (max(-s, 0), length - max(-s, 0) - (each.stop - each.start))
            for s, length, each in zip(start[1:], size[1:], inside, strict=True)
        ]
        return np.pad(part[slices - first], [(0, 0), *margins], constant_values=fill)

    def whole(self, name: str) -> npt.NDArray[np.generic]:
        """Read an array."""
        with safe_open(self.path, framework="np") as file:
            return np.asarray(file.get_tensor(name))

    def points(self, kind: str) -> npt.NDArray[np.int32]:
        """Read the voxels of a kind, (n, 3)."""
        with safe_open(self.path, framework="np") as file:
            return np.asarray(file.get_tensor(POINTS + kind), dtype=np.int32)
