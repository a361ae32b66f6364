"""Masks of the lungs for the studies of a cohort that have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.cohort.cache import unique_name
from app.cohort.images import load_study, write_image
from app.cohort.table import CohortStudy, write_table
from app.outcome import UsageError
from models.lungs.reference import reference_lungs
from operators.findings import Lungs
from operators.orientation import lungs_on, standard_volume
from operators.volume import CTVolume, LabelArray


def draw_lungs(volume: CTVolume, name: str) -> LabelArray:
    """Return the lungs of a volume in the standard arrangement, by thresholds and morphology.

    Raises
    ------
    UsageError
        If none are found; says the name.
    """
    try:
        return reference_lungs(volume.hu.astype(np.float32), volume.grid.spacing)
    except ValueError as error:
        raise UsageError(f"study {name}: {error}") from error


def add_lung_masks(
    folder: Path, studies: Sequence[CohortStudy], tell: Callable[[str], None] = lambda line: None
) -> tuple[CohortStudy, ...]:
    """Write a mask of the lungs for every study without one, and name it in the table.

    Parameters
    ----------
    folder : Path
        Of the cohort; the masks go to ``masks`` in it.
    studies : sequence of CohortStudy
        All of the table.
    tell : callable
        Receives a line for each mask.

    Returns
    -------
    tuple of CohortStudy
        All of them, each with a mask.

    Raises
    ------
    UsageError
        If a study cannot be read or has no lungs, or something cannot be written. What was made until then is kept.
    """
    result, names = list(studies), Counter(study.name for study in studies)
    for place, study in enumerate(studies):
        if study.lungs is not None:
            continue
        name = study.name if names[study.name] == 1 else unique_name(study)
        path = folder / "masks" / f"{name}_lungs.nii.gz"
        if path.exists():
            raise UsageError(f"{path} is there already, but not in the table")
        volume = load_study(study)
        upright = standard_volume(volume)
        labels = draw_lungs(upright, study.path.name)
        try:
            write_image(path, lungs_on(volume.grid, Lungs(labels, upright.grid)).labels, volume.grid)
            result[place] = replace(study, lungs=path)
            write_table(folder, result)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        tell(f"{path.name}: {(labels > 0).sum() * upright.grid.voxel_ml / 1000:.1f} L lung")
    return tuple(result)
