"""Annotated slices without Hounsfield units, as some public data sets are."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.outcome import UsageError

LUNG_HU, TISSUE_HU = -860.0, 40.0
"""What the medians of healthy lung and of chest wall are taken for."""
_DAMAGED = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
"""What NumPy raises where an archive is damaged."""
_SMALLEST = 16
"""Rows and columns of a slice."""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedSlices:
    """Axial slices with lung and infection masks whose intensities are not Hounsfield units.

    Parameters
    ----------
    ct : ndarray of uint8, shape (n, rows, columns)
        Intensities after histogram equalisation; 0 away from the lungs.
    lungs, infection : ndarray of bool, shape as ``ct``
    study : ndarray of int, shape (n,)
        Of which study each slice is.
    """

    ct: npt.NDArray[np.uint8]
    lungs: npt.NDArray[np.bool_]
    infection: npt.NDArray[np.bool_]
    study: npt.NDArray[np.integer]


def read_slices(path: Path) -> AnnotatedSlices:
    """Read annotated slices from an NPZ file.

    Parameters
    ----------
    path : Path
        Holds ``ct`` (uint8; n, rows, columns), ``lungs`` and ``infection`` (packed bits of the same size), and, where
        there are several studies, ``volume_guess`` (n): of which study each slice is.

    Raises
    ------
    UsageError
        If the file cannot be read, or is not as documented.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            ct = data["ct"]
            lungs, infection = (_unpacked(data[name], ct) for name in ("lungs", "infection"))
            study = data["volume_guess"] if "volume_guess" in data else np.zeros(len(ct), np.uint8)
    except _DAMAGED as error:
        raise UsageError(f"{path} holds no annotated slices; see docs/evaluation.md") from error
    if ct.ndim != 3 or ct.dtype != np.uint8 or min(ct.shape[1:]) < _SMALLEST or study.shape != ct.shape[:1]:
        raise UsageError(f"the arrays in {path} are not as documented in docs/evaluation.md")
    return AnnotatedSlices(ct, lungs, infection & lungs, study)


def _unpacked(packed: npt.NDArray[np.uint8], ct: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    if len(packed) != -(-ct.size // 8):
        raise ValueError("the mask is of another size")
    return np.unpackbits(packed)[: ct.size].reshape(ct.shape).astype(bool)


def to_hounsfield(
    ct: npt.NDArray[np.uint8], lungs: npt.NDArray[np.bool_], infection: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Bring one equalised slice to a scale like HU: healthy lung and chest wall keep their usual medians."""
    healthy = ct[lungs & ~infection]
    wall = ct[(ct > 0) & ~lungs]
    low = float(np.median(healthy)) if healthy.size else 60.0
    high = float(np.median(wall)) if wall.size else 200.0
    scale = (TISSUE_HU - LUNG_HU) / max(high - low, 30.0)
    return (LUNG_HU + (ct.astype(np.float32) - low) * scale).astype(np.float32)
