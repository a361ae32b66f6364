"""Annotated slices without Hounsfield units, as some public data sets are."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.cohort.images import axial_grid, write_image, write_masks
from app.cohort.table import CohortStudy, new_cohort, write_table
from app.outcome import UsageError
from models.hounsfield import whole
from models.lesions.network import UNKNOWN_TYPE
from operators.lung_segmentation import label_sides

PIXEL_MM = 1.5
"""What pixels are taken for, for an archive does not say."""
THIN_MM, THICK_MM = 1.25, 8.0
"""Least and greatest distance between slices that is believed."""
CHANGE_MM = 150.0
"""Distance over which the lungs change altogether, if they went on as from one slice to the next: 100 to 200 mm in four
chest CTs whose slices are known, at any distance between them."""
LUNG_HU, TISSUE_HU = -860.0, 40.0
"""What the medians of healthy lung and of chest wall are taken for."""
HEALTHY_MEDIAN = 0.45
"""Quantile of the intensities of all lung that is nearest to the median of healthy lung in the annotated slices of Ma
et al. (Zenodo 3757476): by 22 HU in the median over slices."""
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


def turned_over(slices: AnnotatedSlices, studies: Collection[int]) -> AnnotatedSlices:
    """Turn the rows of some studies to the back, where they lie to the front: public archives mix both.

    Raises
    ------
    UsageError
        If there is no such study.
    """
    missing = sorted(set(studies) - set(slices.study.tolist()))
    if missing:
        raise UsageError(f"there is no study {missing[0]} among the slices")
    over = np.isin(slices.study, list(studies))[:, None, None]
    ct, lungs, infection = (np.where(over, a[:, ::-1], a) for a in (slices.ct, slices.lungs, slices.infection))
    return replace(slices, ct=ct, lungs=lungs, infection=infection)


def write_slices_cohort(folder: Path, slices: AnnotatedSlices, tell: Callable[[str], None] = lambda line: None) -> None:
    """Write annotated slices as a cohort: a volume and two masks for each study, all positive.

    Lesions are of unknown type. Intensities are brought to a scale like HU, slice by slice; pixels are taken for
    :data:`PIXEL_MM`, and how far slices lie apart is told by how much the lungs change between them.

    Parameters
    ----------
    folder : Path
        Must be absent or empty; made where absent.
    slices : AnnotatedSlices
        In each study from feet to head, rows to the back, columns to the patient's left.
    tell : callable
        Receives a line for each study.

    Raises
    ------
    UsageError
        If the folder is not empty or cannot be written.
    """
    with new_cohort(folder):
        studies = []
        for number in np.unique(slices.study).tolist():
            own = slices.study == number
            studies.append(_write_study(folder, f"study{number:03d}", slices, own))
            tell(f"study {number}: {own.sum()} slices")
        write_table(folder, studies)


def _write_study(folder: Path, name: str, slices: AnnotatedSlices, own: npt.NDArray[np.bool_]) -> CohortStudy:
    lungs, infection = slices.lungs[own], slices.infection[own]
    parts = [to_hounsfield(*each) for each in zip(slices.ct[own], lungs, strict=True)]
    hu = whole(np.stack(parts))
    grid = axial_grid(hu.shape, (slice_gap(lungs), PIXEL_MM, PIXEL_MM))
    path = folder / "studies" / f"{name}.nii.gz"
    write_image(path, hu, grid)
    masks = write_masks(folder, name, label_sides(lungs, grid), (UNKNOWN_TYPE * infection).astype(np.uint8), grid)
    return CohortStudy(name, path, 1, None, None, None, *masks)


def _unpacked(packed: npt.NDArray[np.uint8], ct: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    if len(packed) != -(-ct.size // 8):
        raise ValueError("the mask is of another size")
    return np.unpackbits(packed)[: ct.size].reshape(ct.shape).astype(bool)


def to_hounsfield(ct: npt.NDArray[np.uint8], lungs: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Bring one equalised slice to a scale like HU: healthy lung and chest wall keep their usual medians.

    What is infected is not known to whoever is to find it: the median of healthy lung is taken for
    :data:`HEALTHY_MEDIAN` of all lung.
    """
    lung = ct[lungs]
    wall = ct[(ct > 0) & ~lungs]
    low = float(np.quantile(lung, HEALTHY_MEDIAN)) if lung.size else 60.0
    high = float(np.median(wall)) if wall.size else 200.0
    scale = (TISSUE_HU - LUNG_HU) / max(high - low, 30.0)
    return (LUNG_HU + (ct.astype(np.float32) - low) * scale).astype(np.float32)


def slice_gap(lungs: npt.NDArray[np.bool_]) -> float:
    """Estimate the distance between slices in mm, from one minus the Dice of the lungs in neighbouring ones.

    Thick slices that are taken for thin ones make flat lungs, in which a 3D network learns what is nowhere else.
    Slices through the middle of the lungs alone, which hardly change, are taken for nearer than they are.

    Parameters
    ----------
    lungs : ndarray of bool, shape (slices, rows, columns)
        Pixels of any size; of slices in order.
    """
    area = lungs.sum((1, 2))
    both, either = 2.0 * (lungs[1:] & lungs[:-1]).sum((1, 2)), area[1:] + area[:-1]
    change = 1.0 - both[either > 0] / either[either > 0]
    return float(np.clip(CHANGE_MM * np.median(change), THIN_MM, THICK_MM)) if change.size else THIN_MM
