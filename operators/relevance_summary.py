"""What the heatmaps show, in numbers."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.ndimage import binary_fill_holes

from operators.findings import Classification, Explanation
from operators.remarks import Remark, RemarkCode
from operators.volume import FloatArray


class ChannelRelevance(BaseModel):
    """Relevance of one input channel, in units of the logit.

    Parameters
    ----------
    total : float
        Sum over all pixels.
    residual : float
        The logit times the gate share, minus that sum. Layers with a bias or a centroid keep or add a part on the
        way back (paper, section 4.4); the ledger tells which.
    reliable : bool
        Whether the residual is within the limit that was set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    total: float
    residual: float
    reliable: bool


class RelevanceSummary(BaseModel):
    """Summary of both heatmaps.

    Parameters
    ----------
    explained : str
        The class whose logit was distributed.
    logit : float
        That logit.
    ct, lesions : ChannelRelevance
        The CT channel and the lesion-mask channel.
    lung_share : float
        Part of the absolute relevance of both channels inside the lungs, 0 to 1.
    ledger : dict of str to float
        Sum of the relevance at each stage on its way back, as in :class:`models.relevance.explain.Relevance`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    explained: Literal["negative", "positive"]
    logit: float
    ct: ChannelRelevance
    lesions: ChannelRelevance
    lung_share: float
    ledger: dict[str, float]


def summarise_relevance(classification: Classification, explanation: Explanation) -> RelevanceSummary:
    """Summarise an explanation of a classification, both on the classifier's grid."""
    ct, lesions = (_channel(explanation, heatmap) for heatmap in (explanation.ct, explanation.lesions))
    return RelevanceSummary(
        explained="positive" if explanation.target == 1 else "negative",
        logit=explanation.logit,
        ct=ct,
        lesions=lesions,
        lung_share=lung_share(classification, explanation),
        ledger=explanation.ledger,
    )


def _channel(explanation: Explanation, heatmap: FloatArray) -> ChannelRelevance:
    total = float(heatmap.sum(dtype=np.float64))
    return ChannelRelevance(total=total, residual=explanation.explained - total, reliable=explanation.reliable(heatmap))


def check_explanation(explanation: Explanation) -> list[Remark]:
    """Remark on heatmaps that leave too much of the logit unexplained."""
    heatmaps = {"CT": explanation.ct, "lesion mask": explanation.lesions}
    channels = [name for name, heatmap in heatmaps.items() if not explanation.reliable(heatmap)]
    if not channels:
        return []
    message = f"Do not rely on the relevance of the {' and of the '.join(channels)}: its sum is too far from the logit."
    return [Remark(RemarkCode.EXPLANATION_UNRELIABLE, message)]


def lung_share(classification: Classification, explanation: Explanation) -> float:
    """Tell which part of the absolute relevance of both channels lies inside the lungs, 0 to 1.

    The lungs are where the masked CT channel is not 0, with enclosed air at or below -1000 HU filled in. Without
    any relevance the share is 0.
    """
    lung = binary_fill_holes(classification.inputs[:, 0] > 0)  # in 3D: in a slice, the dome of the diaphragm is a hole
    magnitude = np.abs(explanation.ct) + np.abs(explanation.lesions)
    total = float(magnitude.sum(dtype=np.float64))
    return float(magnitude[lung].sum(dtype=np.float64)) / total if total else 0.0
