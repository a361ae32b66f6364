"""How well lungs and lesions are found, study by study and with intervals over patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.cohort.images import grid_of, load_mask, load_study
from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy, names_of
from app.evaluation.intervals import Estimate, bootstrap, patient_weights
from app.evaluation.overlap import dice, percent, surface_dice, volume_ml
from app.evaluation.roc import FloatArray
from app.outcome import UsageError
from models.lesions.network import UNKNOWN_TYPE
from models.morphology import BoolArray
from operators.findings import LesionType, Lung
from operators.volume import CTVolume, Grid, LabelArray

TOLERANCE_MM = 3.0
"""Of the surface Dice; pieces of a mask that lie farther from the lungs are outside of them."""
MEASURES = {
    "lungs_dice": "lungs, Dice",
    "lungs_surface_dice": f"lungs, surface Dice at {TOLERANCE_MM:g} mm",
    "lungs_error_ml": "lungs, volume too large by (ml)",
    "lesions_dice": "lesions of all types, Dice",
    "lesions_surface_dice": f"lesions of all types, surface Dice at {TOLERANCE_MM:g} mm",
    "lesions_error_ml": "lesions, volume too large by (ml)",
    **{f"{kind.name.lower()}_dice": f"{kind.name.lower().replace('_', ' ')}, Dice" for kind in LesionType},
    "affected_dice": "affected lung by 2DS, Dice",
    "lesions_error_percent": "lesions, share of the lungs too high by (percentage points)",
    "involvement_error": "involvement by 2DS too high by (percentage points)",
}
"""Name and description of every measure; NaN where it is undefined, as the Dice of lesions that are not there."""


class Masks(NamedTuple):
    """Lungs, lesions and affected lung of a study on the grid of its CT; None for what nobody has looked for.

    ``given`` says that the lungs are the true ones, so that nothing is to be said of them.
    """

    lungs: LabelArray
    lesions: LabelArray | None
    affected: BoolArray | None = None
    given: bool = False


Segment = Callable[[CohortStudy, CTVolume], Masks]
Nothing = Callable[[Grid], Masks]
"""Gives the masks of a study in which nothing is found."""
Look = Callable[[int, CTVolume, Masks, Masks], None]
"""Receives the number of the study, its CT, the true masks and those that are judged."""


@dataclass(frozen=True, slots=True)
class StudyScore:
    """All measures of one study; ``refused`` is the reason code where the system refuses it."""

    patient: str
    study: str
    measures: Mapping[str, float]
    refused: str = ""


def score_cohort(
    studies: Sequence[CohortStudy],
    segment: Segment,
    tell: Callable[[str], None] = lambda line: None,
    look: Look = lambda number, volume, truth, found: None,
    nothing: Nothing | None = None,
) -> list[StudyScore]:
    """Score the studies of a cohort whose masks are known, one after the other.

    Parameters
    ----------
    studies : sequence of CohortStudy
        Those with both masks are scored.
    segment : callable
        Gives the masks to be judged.
    tell : callable
        Receives a line for each study.
    look : callable
        Called for each study whose CT can be loaded before it is scored.
    nothing : callable, optional
        Of the system that is judged: what a study counts as that it refuses. Without it, that is an error.

    Raises
    ------
    UsageError
        If no study has both masks, or an image cannot be read.
    """
    known = [study for study in studies if study.lungs and study.lesions]
    if not known:
        raise UsageError("no study of the cohort has masks of lungs and lesions to judge by")
    scores = []
    for number, (study, name) in enumerate(zip(known, names_of(known), strict=True), start=1):
        score = _score(study, name, segment, nothing, partial(look, number))
        scores.append(score)
        dices = {part: score.measures[f"{part}_dice"] for part in ("lungs", "lesions", "affected")}
        said = ", ".join(f"{part} {value:.3f}" for part, value in dices.items() if not np.isnan(value))
        tell(f"study {number} of {len(known)}: {score.refused and f'{score.refused}, '}Dice of {said}")
    return scores


def _score(
    study: CohortStudy,
    name: str,
    segment: Segment,
    nothing: Nothing | None,
    look: Callable[[CTVolume, Masks, Masks], None],
) -> StudyScore:
    volume: CTVolume | None = None
    try:
        volume = load_study(study)
        grid, found, refused = volume.grid, segment(study, volume), ""
    except StudyRefused as refusal:
        if nothing is None:
            raise
        grid = _grid_of_lungs(study) if volume is None else volume.grid
        found, refused = nothing(grid), refusal.code
    truth = _truth(study, grid)
    if volume is not None:
        look(volume, truth, found)
    return StudyScore(study.patient, name, measure(truth, found, grid.spacing), refused)


def measure(truth: Masks, found: Masks, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Return all :data:`MEASURES` of one study, whose true lesions are known."""
    assert truth.lesions is not None  # noqa: S101 - as documented
    values = dict.fromkeys(MEASURES, nan)
    ill = truth.lesions > 0
    if not found.given:
        values |= _overlap("lungs", truth.lungs, found.lungs, spacing)
    if found.affected is not None:
        values["affected_dice"] = dice(ill, found.affected)
        values["involvement_error"] = _share(found.affected, found.lungs) - _share(ill, truth.lungs)
    if found.lesions is None:
        return values
    values |= _overlap("lesions", truth.lesions, found.lesions, spacing)
    values["lesions_error_percent"] = _share(found.lesions > 0, found.lungs) - _share(ill, truth.lungs)
    if ill.any() and not (truth.lesions == UNKNOWN_TYPE).any():  # of healthy lungs nobody has stated types
        for kind in LesionType:
            values[f"{kind.name.lower()}_dice"] = dice(truth.lesions == kind, found.lesions == kind)
    return values


def _share(part: BoolArray, lungs: LabelArray) -> float:
    """Return how much of the lungs is affected, in percent; of no lungs nothing."""
    return percent(part, lungs > 0) if lungs.any() else 0.0


def _overlap(name: str, truth: LabelArray, found: LabelArray, spacing: tuple[float, float, float]) -> dict[str, float]:
    return {
        f"{name}_dice": dice(truth > 0, found > 0),
        f"{name}_surface_dice": surface_dice(truth > 0, found > 0, spacing, TOLERANCE_MM),
        f"{name}_error_ml": volume_ml(found > 0, spacing) - volume_ml(truth > 0, spacing),
    }


def summarise_scores(scores: Sequence[StudyScore], *, replicates: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """Return the mean of every measure over the studies in which it is defined, with intervals over patients."""
    patients = [score.patient for score in scores]
    weights = patient_weights(patients, np.zeros(len(scores)), replicates, seed)
    return {name: _mean(np.array([score.measures[name] for score in scores]), weights) for name in MEASURES}


def _mean(values: FloatArray, weights: FloatArray) -> Estimate:
    defined = ~np.isnan(values)
    kept = np.where(defined, values, 0.0)

    def mean(counts: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.asarray(counts @ kept / (counts @ defined))

    return bootstrap(mean, weights)


def from_folder(folder: Path, studies: Sequence[CohortStudy]) -> Segment:
    """Take the masks of studies from ``STUDY_lungs.nii.gz`` and ``STUDY_lesions.nii.gz`` in a folder.

    Raises
    ------
    UsageError
        If two studies have the same name.
    """
    names = Counter(study.name for study in studies)
    if names and names.most_common(1)[0][1] > 1:
        several = names.most_common(1)[0][0]
        raise UsageError(f"several studies are named {several}, whose masks cannot be told apart: rename them")

    def segment(study: CohortStudy, volume: CTVolume) -> Masks:
        paths = [folder / f"{study.name}_{part}.nii.gz" for part in ("lungs", "lesions")]
        absent = next((path for path in paths if not path.is_file()), None)
        if absent is not None:
            raise UsageError(f"{folder} holds no {absent.name}")
        return Masks(load_mask(paths[0], volume.grid, max(Lung)), load_mask(paths[1], volume.grid, max(LesionType)))

    return segment


def _truth(study: CohortStudy, grid: Grid) -> Masks:
    lesions = study.lesions
    assert lesions is not None  # noqa: S101 - only such studies are scored
    return Masks(lungs_of(study, grid), load_mask(lesions, grid, UNKNOWN_TYPE))


def _grid_of_lungs(study: CohortStudy) -> Grid:
    lungs = study.lungs
    assert lungs is not None  # noqa: S101 - only such studies are scored
    return grid_of(lungs)


def lungs_of(study: CohortStudy, grid: Grid) -> LabelArray:
    """Load the lungs of a study whose mask is known."""
    assert study.lungs is not None  # noqa: S101 - as documented
    return load_mask(study.lungs, grid, max(Lung))


def lines(scores: Sequence[StudyScore]) -> Iterator[tuple[str, str, str, float | None, str]]:
    """Return patient, study, measure, value (None where it is undefined) and reason code of everything measured."""
    for score in scores:
        for name, value in score.measures.items():
            yield score.patient, score.study, name, None if np.isnan(value) else value, score.refused
