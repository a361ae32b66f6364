"""The segmentation networks of a models folder, as something that can be judged."""

from __future__ import annotations

from pathlib import Path

from app.cohort.table import CohortStudy
from app.evaluation.segmentation import Masks, Segment
from app.outcome import UsageError
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.record import ModelUnavailable
from models.store import load_network
from models.threads import use_granted_cores
from operators.lesion_segmentation import segment_lesions
from operators.lung_segmentation import segment_lungs
from operators.refusal import InputRefused
from operators.volume import CTVolume


def from_models(folder: Path) -> Segment:
    """Take masks from the lung and lesion networks of a models folder, as the application does.

    Raises
    ------
    UsageError
        If a model is missing or altered, or, when asked, finds no lungs.
    """
    try:
        lungs_network, _ = load_network(folder / "lungs", DeepMedic)
        lesions_network, _ = load_network(folder / "lesions", LesionNetwork)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    use_granted_cores()

    def segment(study: CohortStudy, volume: CTVolume) -> Masks:
        try:
            lungs = segment_lungs(volume, lungs_network)
        except InputRefused as refusal:
            raise UsageError(f"study {study.path.name}: {refusal.code}: {refusal.message}") from refusal
        return Masks(lungs.labels, segment_lesions(volume, lungs, lesions_network).labels)

    return segment
