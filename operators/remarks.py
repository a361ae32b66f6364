"""What was repaired in an input, or makes its results less certain: stated in every result, never silent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RemarkCode(StrEnum):
    """Stable codes of remarks; written to ``result.json`` and, in words, to the report."""

    DUPLICATES_DROPPED = "DUPLICATES_DROPPED"
    """Images were there twice, with equal pixels and rescale."""
    STRAY_IMAGES_DROPPED = "STRAY_IMAGES_DROPPED"
    """Localizers or pictures inside the series were passed over."""
    ACQUISITION_CHOSEN = "ACQUISITION_CHOSEN"
    """The series holds several acquisitions of the same place; one was taken."""
    SLICES_INTERPOLATED = "SLICES_INTERPOLATED"
    """Slices were missing and were interpolated."""
    GAPS_RESAMPLED = "GAPS_RESAMPLED"
    """The gaps between slices varied; the volume was resampled to uniform gaps."""
    FRAME_OF_REFERENCE_ADDED = "FRAME_OF_REFERENCE_ADDED"
    """The images name no frame of reference; the results name one that stands for the series."""
    SPARSE_SLICES = "SPARSE_SLICES"
    """There is tissue between the slices that no slice shows."""
    LUNGS_CUT_BELOW = "LUNGS_CUT_BELOW"
    """The lungs reach the lowest slice."""
    LUNGS_CUT_ABOVE = "LUNGS_CUT_ABOVE"
    """The lungs reach the highest slice."""
    LUNGS_CUT_BY_FIELD_OF_VIEW = "LUNGS_CUT_BY_FIELD_OF_VIEW"
    """The lungs reach the edge of the images."""
    ONE_LUNG = "ONE_LUNG"
    """Only one lung was found."""
    LUNG_IN_PIECES = "LUNG_IN_PIECES"
    """A lung was found in several large pieces."""
    LUNG_VOLUME = "LUNG_VOLUME"
    """The volume of the lungs is unusual for an adult."""
    LUNG_ATTENUATION = "LUNG_ATTENUATION"
    """The lungs are unusually dense or unusually light."""
    INVOLVEMENT_DISAGREES = "INVOLVEMENT_DISAGREES"
    """The two lesion networks differ on how much of the lungs is affected."""
    EXPLANATION_UNRELIABLE = "EXPLANATION_UNRELIABLE"
    """The sum of a heatmap is too far from the logit that it explains."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One remark.

    Parameters
    ----------
    code : RemarkCode
        Stable code.
    message : str
        One sentence for a person, without patient data.
    """

    code: RemarkCode
    message: str
