"""A cohort of synthetic diseases in real bodies: lesions inserted into chest CTs without disease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from app.cohort.images import load_study, write_image, write_masks
from app.cohort.lung_masks import draw_lungs
from app.cohort.table import CohortStudy, stem
from app.outcome import UsageError
from app.phantom.cohort import Patient, write_patients
from app.phantom.disease import ALL, Kind, draw_co_rads, draw_kind, fall_ill, involvement_percent
from app.phantom.mimics import insert_dependent_density, insert_effusion, insert_mimics
from app.phantom.scanner import scanned
from models.hounsfield import whole
from models.morphology import Spacing, bounding_box
from operators.orientation import standard_volume
from operators.volume import CTVolume, FloatArray, LabelArray

DEPENDENT, EFFUSION, MOST_MIMICS = 0.5, 0.15, 12
"""How often the lungs are denser at the back, and have effusion, and how many other findings there are at most."""


def write_diseased(
    folder: Path,
    bodies: Sequence[Path],
    studies: int,
    seed: int = 0,
    *,
    varied: bool = False,
    kinds: Sequence[Kind] = ALL,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a cohort of studies made from few CTs: ``cohort.csv``, CT and two masks for each as NIfTI, ``truth.csv``.

    The bodies take turns; all studies of one are one patient, who is never divided among splits. Half of the studies
    of each are positive. All have findings, too, that are no lesions of COVID-19 (:mod:`app.phantom.mimics`).

    Parameters
    ----------
    folder : Path
        Must be absent or empty; made where absent.
    bodies : sequence of Path
        Folders of DICOM or NIfTI files: chest CTs without disease. Messages and tables repeat their names.
    studies : int
        How many to make.
    seed : int
        Another seed, other diseases.
    varied : bool
        Of each study, vary kernel, slice thickness and noise; its disease stays the same.
    kinds : sequence of str
        Which there are, of both labels.
    tell : callable
        Receives a line for each study.

    Raises
    ------
    UsageError
        If a body cannot be used, or the folder is not empty or cannot be written.
    """
    if len({stem(path) for path in bodies}) < len(bodies):
        raise UsageError("two bodies have the same name, which would be the name of their patient")
    for path in bodies:
        if not path.exists():
            raise UsageError(f"the body {path} does not exist")
    lungs: dict[Path, LabelArray] = {}

    def write(number: int) -> Patient:
        turn, place = divmod(number, len(bodies))
        path, volume = bodies[place], _body(bodies[place])
        if path not in lungs:
            lungs[path] = draw_lungs(volume, path.name)
            tell(f"body {path.name}: lungs drawn")
        scanner = np.random.default_rng((seed, number, 1)) if varied else None
        rng = np.random.default_rng((seed, number))
        kind = draw_kind(turn % 2, rng, kinds)
        return _write(folder, number, turn % 2, stem(path), volume, lungs[path], kind, rng, scanner)

    write_patients(folder, studies, write, tell)


def _write(
    folder: Path,
    number: int,
    label: int,
    patient: str,
    volume: CTVolume,
    lungs: LabelArray,
    kind: Kind,
    rng: np.random.Generator,
    scanner: np.random.Generator | None,
) -> Patient:
    hu, left_over = volume.hu.astype(np.float32), lungs.copy()
    box = bounding_box(lungs > 0)
    hu[box], left_over[box] = _with_other_findings(hu[box], lungs[box], volume.grid.spacing, rng)
    lesions = np.zeros_like(lungs)
    hu[box], lesions[box] = fall_ill(hu[box], left_over[box], volume.grid.spacing, kind, rng)
    noise = 0.0
    if scanner is not None:
        hu, noise = scanned(hu, volume.grid.spacing, scanner)
    name = f"s{number:03d}"
    path = folder / "studies" / f"{name}.nii.gz"
    write_image(path, whole(hu), volume.grid)
    masks = write_masks(folder, name, left_over, lesions, volume.grid)
    involvement = involvement_percent(left_over, lesions)
    study = CohortStudy(patient, path, label, draw_co_rads(kind, involvement, rng), None, None, *masks)
    return Patient(study, kind, involvement, round(noise, 1))


def _body(path: Path) -> CTVolume:
    """Read a body in the standard arrangement."""
    return standard_volume(load_study(CohortStudy("", path, 0)))


def _with_other_findings(
    hu: FloatArray, lungs: LabelArray, spacing: Spacing, rng: np.random.Generator
) -> tuple[FloatArray, LabelArray]:
    if rng.random() < DEPENDENT:
        hu = insert_dependent_density(hu, lungs, spacing, rng)
    hu = insert_mimics(hu, lungs, spacing, int(rng.integers(0, MOST_MIMICS + 1)), rng)
    if rng.random() < EFFUSION:
        return insert_effusion(hu, lungs, spacing, rng)
    return hu, lungs
