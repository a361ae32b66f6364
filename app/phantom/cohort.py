"""A cohort of synthetic patients with known truth, in the data set convention."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.cohort.images import axial_grid, write_masks
from app.cohort.table import CohortStudy, new_cohort, write_table
from app.outcome import UsageError
from app.phantom import make_phantom, origin_of, study_name
from app.phantom.dicom import write_ct_series
from app.phantom.disease import ALL, Kind, draw_co_rads, draw_kind, fall_ill, involvement_percent
from models.hounsfield import whole

TRUTH = "truth.csv"


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
    *,
    kinds: Sequence[Kind] = ALL,
) -> None:
    """Write a cohort: ``cohort.csv``, a DICOM series and two masks for each patient, and ``truth.csv``.

    Half of the patients come from each site. Negative ones are healthy or have another disease; positive ones have
    lesions as in COVID-19, as large or as small.

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
    kinds : sequence of str
        Which there are, of both labels.

    Raises
    ------
    UsageError
        If there are too few patients, or the folder is not empty or cannot be written.
    """
    if patients < 2 * len(SITES):
        raise UsageError(f"a cohort needs at least {2 * len(SITES)} patients")
    write_patients(
        folder, patients, lambda number: _write_patient(folder, number, patients, seed, spacing, kinds), tell
    )


@dataclass(frozen=True, slots=True)
class Patient:
    """What is written of a synthetic patient: the row of the table, and the truth."""

    study: CohortStudy
    kind: Kind
    involvement: float
    noise: float = 0.0


def write_patients(folder: Path, count: int, write: Callable[[int], Patient], tell: Callable[[str], None]) -> None:
    """Write the patients of a cohort, ``truth.csv`` and the table.

    Parameters
    ----------
    folder : Path
        Must be absent or empty; made where absent.
    count : int
        How many patients.
    write : callable
        Writes the images of a patient, given its number.
    tell : callable
        Receives a line for each patient.

    Raises
    ------
    UsageError
        If the folder is not empty or cannot be written.
    """
    with new_cohort(folder):
        patients = []
        for number in range(count):
            each = write(number)
            patients.append(each)
            tell(f"patient {number + 1} of {count}: {each.kind}, {each.involvement:.1f} % of the lungs affected")
        with (folder / TRUTH).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("study", "kind", "involvement_percent", "noise_hu"))
            table.writerows((e.study.name, e.kind, f"{e.involvement:.4f}", e.noise) for e in patients)
        write_table(folder, [each.study for each in patients])  # last: the cohort is complete when its table is there


def _write_patient(
    folder: Path,
    number: int,
    patients: int,
    seed: int,
    spacing: tuple[float, float, float],
    kinds: Sequence[Kind],
) -> Patient:
    rng = np.random.default_rng((seed, number))
    site = SITES[number % len(SITES)]
    label = label_of(number, patients, seed)
    kind = draw_kind(label, rng, kinds)
    name = f"p{number:03d}"
    person = int(rng.integers(2**31))
    phantom = make_phantom(person, spacing, False, lambda hu, lungs: fall_ill(hu, lungs, spacing, kind, rng))
    hu, lesions = phantom.hu, phantom.lesions
    hu = hu + np.asarray(rng.normal(0.0, site.noise, hu.shape), dtype=np.float32)
    age = int(rng.integers(25, 90))
    series = folder / "studies" / name
    write_ct_series(
        series,
        whole(hu).astype(np.float32),
        spacing,
        origin=origin_of(phantom),
        study=study_name(f"{seed}.{patients}.{number}", spacing),
        PatientAge=f"{age:03d}Y",
        PatientBirthDate=f"{2020 - age}0101",
        PatientSex="MF"[int(rng.integers(2))],
        Manufacturer=site.manufacturer,
    )
    grid = axial_grid(hu.shape, spacing, origin_of(phantom))
    masks = write_masks(folder, name, phantom.lungs, lesions, grid)
    involvement = involvement_percent(phantom.lungs, lesions)
    study = CohortStudy(name, series, label, draw_co_rads(kind, involvement, rng), None, site.name, *masks)
    return Patient(study, kind, involvement, site.noise)


def label_of(number: int, patients: int, seed: int) -> int:
    """Tell whether a patient is positive: as many at each site as its prevalence says, in any order."""
    here = number % len(SITES)
    members = range(here, patients, len(SITES))
    positives = max(1, min(len(members) - 1, round(SITES[here].positive * len(members))))
    ranks = np.random.default_rng((seed, here, patients)).permutation(len(members))
    return int(ranks[number // len(SITES)] < positives)
