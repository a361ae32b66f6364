"""A cohort of synthetic patients with known truth, in the data set convention."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from app.cohort.table import CohortStudy, write_table
from app.outcome import UsageError
from app.phantom import Phantom, make_phantom, origin_of
from app.phantom.dicom import write_ct_series
from app.phantom.insertion import Pattern, insert_lesions
from app.phantom.patterns import covid_like, other_pneumonia
from operators.volume import LabelArray

TRUTH = "truth.csv"
Kind = Literal["healthy", "pneumonia", "covid", "faint"]
_FAINT = Pattern(count=(1, 2), radius=(4.0, 7.0), weights=(1.0, 0.0, 0.0, 0.0))
"""Lesions that a segmentation misses."""
_KINDS: dict[int, tuple[tuple[Kind, float], ...]] = {
    0: (("healthy", 0.5), ("pneumonia", 0.5)),
    1: (("covid", 0.88), ("faint", 0.12)),
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where studies come from: a confounder, because prevalence and image quality differ together.

    Parameters
    ----------
    name : str
        As in the table.
    manufacturer : str
        As in the DICOM headers.
    positive : float
        Share of positive patients.
    noise : float
        Additional noise in HU.
    """

    name: str
    manufacturer: str
    positive: float
    noise: float


SITES = (Site("A", "Phantom Quiet", 0.6, 0.0), Site("B", "Phantom Noisy", 0.4, 30.0))


def write_cohort(
    folder: Path,
    patients: int,
    seed: int = 0,
    spacing: tuple[float, float, float] = (3.0, 1.4, 1.4),
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a cohort: ``cohort.csv``, a DICOM series and two masks for each patient, and ``truth.csv``.

    Half of the patients come from each site. Negative ones are healthy or have another pneumonia; positive ones have
    lesions as in COVID-19, or a few faint ones that are easily missed.

    Parameters
    ----------
    folder : Path
        Must be absent or empty; made where absent.
    patients : int
        How many; at least 4, so that both classes are there at both sites.
    seed : int
        Another seed, other patients.
    spacing : tuple of float
        Voxel size along z, y, x in mm.
    tell : callable
        Receives a line for each patient.

    Raises
    ------
    UsageError
        If there are too few patients, or the folder is not empty or cannot be written.
    """
    if patients < 2 * len(SITES):
        raise UsageError(f"a cohort needs at least {2 * len(SITES)} patients")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"the folder {folder} is not empty; give another")
        studies, truths = [], []
        for number in range(patients):
            study, truth = _write_patient(folder, number, patients, seed, spacing)
            studies.append(study)
            truths.append(truth)
            tell(f"patient {number + 1} of {patients}: {truth[1]}, {float(truth[2]):.1f} % of the lungs affected")
        with (folder / TRUTH).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("patient", "kind", "involvement_percent", "noise_hu"))
            table.writerows(truths)
        write_table(folder, studies)  # last: the cohort is complete when its table is there
    except OSError as error:
        raise UsageError(f"cannot write the cohort to {folder}: {error.strerror}") from error


def _write_patient(
    folder: Path, number: int, patients: int, seed: int, spacing: tuple[float, float, float]
) -> tuple[CohortStudy, tuple[str, Kind, str, float]]:
    rng = np.random.default_rng((seed, number))
    site = SITES[number % len(SITES)]
    label = label_of(number, patients, seed)
    kinds, shares = zip(*_KINDS[label], strict=True)
    kind: Kind = kinds[int(rng.choice(len(kinds), p=shares))]
    name = f"p{number:03d}"
    phantom, lesions = _ill(make_phantom(int(rng.integers(2**31)), spacing, lesions=False), kind, rng)
    hu = phantom.hu + np.asarray(rng.normal(0.0, site.noise, phantom.hu.shape), dtype=np.float32)
    age = int(rng.integers(25, 90))
    series = folder / "studies" / name
    write_ct_series(
        series,
        np.maximum(np.rint(hu), np.float32(-1024.0)),
        spacing,
        origin=origin_of(phantom),
        study=f"{seed}.{number}",
        PatientAge=f"{age:03d}Y",
        PatientBirthDate=f"{2020 - age}0101",
        PatientSex="MF"[int(rng.integers(2))],
        Manufacturer=site.manufacturer,
    )
    masks = [_write_mask(folder / "masks" / f"{name}_lungs.nii.gz", phantom.lungs, phantom)]
    masks.append(_write_mask(folder / "masks" / f"{name}_lesions.nii.gz", lesions, phantom))
    involvement = 100.0 * float((lesions > 0).sum()) / float((phantom.lungs > 0).sum())
    study = CohortStudy(name, series, label, _co_rads(kind, involvement, rng), None, site.name, *masks)
    return study, (name, kind, f"{involvement:.4f}", site.noise)


def label_of(number: int, patients: int, seed: int) -> int:
    """Tell whether a patient is positive: as many at each site as its prevalence says, in any order."""
    here = number % len(SITES)
    members = range(here, patients, len(SITES))
    positives = max(1, min(len(members) - 1, round(SITES[here].positive * len(members))))
    ranks = np.random.default_rng((seed, here, patients)).permutation(len(members))
    return int(ranks[number // len(SITES)] < positives)


def _ill(healthy: Phantom, kind: Kind, rng: np.random.Generator) -> tuple[Phantom, LabelArray]:
    """Insert the lesions of a kind of patient."""
    if kind == "healthy":
        return healthy, np.zeros_like(healthy.lungs)
    pattern = {"pneumonia": other_pneumonia, "covid": covid_like}.get(kind, lambda _: _FAINT)(rng)
    hu, lesions = insert_lesions(healthy.hu, healthy.lungs, healthy.spacing, pattern, rng)
    return Phantom(hu, healthy.spacing, healthy.lungs, lesions), lesions


def _co_rads(kind: Kind, involvement: float, rng: np.random.Generator) -> int:
    """Suspicion as a radiologist might state it: by pattern and extent, one class off now and then."""
    usual = {"healthy": 1, "faint": 1, "pneumonia": 3, "covid": 3 + (involvement > 1.0) + (involvement > 4.0)}[kind]
    return int(np.clip(usual + int(rng.choice((-1, 0, 1), p=(0.15, 0.7, 0.15))), 1, 5))


def _write_mask(path: Path, labels: LabelArray, phantom: Phantom) -> Path:
    """Write a mask on the grid of the CT; SimpleITK's frame is DICOM's (LPS), NIfTI's is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(phantom.spacing[::-1])  # type: ignore[no-untyped-call]
    image.SetOrigin(origin_of(phantom))  # type: ignore[no-untyped-call]
    sitk.WriteImage(image, str(path))
    return path
