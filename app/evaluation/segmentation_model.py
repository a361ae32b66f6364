"""The segmentation networks of a models folder, as something that can be judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy
from app.evaluation.networks import Networks
from app.evaluation.segmentation import Masks, Nothing, Segment, lungs_of
from app.outcome import UsageError
from operators.findings import Lungs
from operators.involvement import segment_involvement
from operators.lesion_segmentation import segment_lesions
from operators.refusal import InputRefused
from operators.volume import CTVolume, Grid


def from_models(folder: Path, networks: Networks) -> Segment:
    """Take masks from the networks of a models folder, as the application does.

    What is returned raises :class:`~app.cohort.refusal.StudyRefused` where no lungs are found.

    Parameters
    ----------
    folder : Path
        Where they come from.
    networks : Networks
        Without that of the lungs, lesions are looked for in the lungs of the cohort.

    Raises
    ------
    UsageError
        If there is none that finds lesions.
    """
    if networks.lesions is None and networks.involvement is None:
        raise UsageError(f"{folder} holds neither a model lesions nor a model involvement")

    def find_lungs(study: CohortStudy, volume: CTVolume) -> Lungs:
        if networks.lungs is None:
            return Lungs(lungs_of(study, volume.grid), volume.grid)
        try:
            return networks.find_lungs(volume)
        except InputRefused as refusal:
            raise StudyRefused(study, refusal) from refusal

    def segment(study: CohortStudy, volume: CTVolume) -> Masks:
        lungs = find_lungs(study, volume)
        unet, two_ds = networks.lesions, networks.involvement
        lesions = None if unet is None else segment_lesions(volume, lungs, unet).labels
        affected = None if two_ds is None else segment_involvement(volume, lungs, two_ds).mask
        return Masks(lungs.labels, lesions, affected, given=networks.lungs is None)

    return segment


def nothing_of(networks: Networks) -> Nothing:
    """Give empty masks of what networks look for."""

    def nothing(grid: Grid) -> Masks:
        empty = np.zeros(grid.shape, np.uint8)
        lesions = None if networks.lesions is None else empty
        return Masks(empty, lesions, None if networks.involvement is None else empty > 0)

    return nothing
