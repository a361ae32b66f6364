"""How much the results of a study change with the quality of its CT, and how well the lungs are found all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.cohort.images import bare_volume, load_study
from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy, names_of
from app.evaluation.networks import Networks
from app.evaluation.overlap import dice, outside_ml, percent, surface_dice
from app.evaluation.quality import QUALITIES
from app.evaluation.segmentation import TOLERANCE_MM, lungs_of
from app.outcome import UsageError
from models.morphology import BoolArray, Spacing
from operators.classification import classify
from operators.involvement import segment_involvement
from operators.lesion_segmentation import segment_lesions
from operators.orientation import standard_arrangement, standard_volume
from operators.refusal import InputRefused
from operators.resampling import resample
from operators.volume import CTVolume, FloatArray

MEASURES = {
    "lungs_dice": "lungs, Dice",
    "lungs_surface_dice": f"lungs, surface Dice at {TOLERANCE_MM:g} mm",
    "lungs_outside_ml": f"largest piece farther than {TOLERANCE_MM:g} mm from the lungs, ml",
    "lesions_percent": "lesions by the 3D U-Net, percent of the lungs",
    "involvement_percent": "involvement by 2DS, percent of the lungs",
    "probability": "probability of COVID-19",
}
"""Name and description of every measure."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured of a study at one quality; ``refused`` is the reason code where the system refuses it.

    No other study of the patient has its name.
    """

    patient: str
    study: str
    quality: str
    measures: Mapping[str, float]
    refused: str = ""


def try_qualities(
    studies: Sequence[CohortStudy], networks: Networks, seed: int = 0, tell: Callable[[str], None] = lambda line: None
) -> list[Trial]:
    """Measure every study with a mask of the lungs at every quality.

    Parameters
    ----------
    studies : sequence of CohortStudy
    networks : Networks
        With that of the lungs.
    seed : int
        Of the noise.
    tell : callable
        Receives a line for each trial.

    Raises
    ------
    UsageError
        If no study has a mask of the lungs, or an image cannot be read.
    """
    known = [study for study in studies if study.lungs]
    if not known:
        raise UsageError("no study of the cohort has a mask of the lungs to judge by")
    trials = []
    for number, (study, name) in enumerate(zip(known, names_of(known), strict=True), start=1):
        for trial in _tried(study, name, networks, seed):
            trials.append(trial)
            said = ", ".join(f"{measure} {value:.3f}" for measure, value in trial.measures.items())
            tell(f"study {number} of {len(known)}, {trial.quality}: {said or trial.refused}")
    return trials


def _tried(study: CohortStudy, name: str, networks: Networks, seed: int) -> Iterator[Trial]:
    """Measure a study at every quality."""
    try:
        volume = load_study(study)
    except StudyRefused as refusal:
        yield from (Trial(study.patient, name, quality, {}, refusal.code) for quality in QUALITIES)
        return
    upright = standard_volume(volume)
    lungs = standard_arrangement(volume.grid).apply(lungs_of(study, volume.grid)) > 0
    for quality, change in QUALITIES.items():
        hu, spacing = change(upright.hu.astype(np.float32), upright.grid.spacing, np.random.default_rng(seed))
        try:
            measures = _measure(bare_volume(hu, spacing), lungs, upright.grid.spacing, networks)
        except InputRefused as refusal:
            yield Trial(study.patient, name, quality, {}, str(refusal.code))
        else:
            yield Trial(study.patient, name, quality, measures)


def _measure(volume: CTVolume, truth: BoolArray, spacing: Spacing, networks: Networks) -> dict[str, float]:
    """Run the networks on a CT; its lungs are judged on the grid of the truth, which has the same extent."""
    lungs = networks.find_lungs(volume)
    found = _on(truth.shape, lungs.mask)
    measures = {
        "lungs_dice": dice(truth, found),
        "lungs_surface_dice": surface_dice(truth, found, spacing, TOLERANCE_MM),
        "lungs_outside_ml": outside_ml(truth, found, spacing, TOLERANCE_MM),
    }
    if networks.lesions is not None:
        lesions = segment_lesions(volume, lungs, networks.lesions)
        measures["lesions_percent"] = percent(lesions.mask, lungs.mask)
    if networks.involvement is not None:
        measures["involvement_percent"] = percent(
            segment_involvement(volume, lungs, networks.involvement).mask, lungs.mask
        )
    if networks.lesions is not None and networks.classifier is not None:
        measures["probability"] = classify(volume, lungs, lesions, networks.classifier, 0.5).probability
    return measures


def _on(shape: tuple[int, ...], mask: BoolArray) -> BoolArray:
    if mask.shape == shape:
        return mask
    depth, rows, columns = shape
    share: FloatArray = resample(mask.astype(np.float32), (depth, rows, columns))
    return np.asarray(share >= 0.5)
