"""Platt scaling: probabilities that mean what they say on validation studies, by the last layer alone.

The focal loss keeps probabilities near one half, and its class weights shift them, so they must be brought to scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, special
from torch import nn

SLOPES: Final = (1e-2, 1e4)
"""Least and greatest slope: beyond, logits differ by rounding alone, and scaled weights do not fit into float16."""


@dataclass(frozen=True, slots=True)
class PlattScaling:
    """Calibrated log odds of positive: ``slope * logit + offset``, the logit being positive less negative.

    References
    ----------
    Platt 1999, "Probabilistic outputs for support vector machines", section 2.
    """

    slope: float
    offset: float

    def fold_into(self, output: nn.Linear) -> None:
        """Give the layer that yields the logits (negative, positive) the scale, so that nothing else has to know of it.

        The offset goes to the logit of negative: that of positive, the one that is usually explained, keeps its
        proportion to its relevance. Of the logit of negative, relevance does not explain the offset.

        Parameters
        ----------
        output : nn.Linear
            Changed in place.
        """
        with torch.no_grad():
            output.weight.mul_(self.slope)
            output.bias.mul_(self.slope)
            output.bias[0] -= self.offset


def platt_scaling(labels: npt.ArrayLike, logits: npt.ArrayLike) -> PlattScaling | None:
    """Find the scaling that makes the labels most likely.

    Platt's targets, ``(positives + 1) / (positives + 2)`` and ``1 / (negatives + 2)`` instead of 1 and 0, keep it
    finite where the classes are told apart without error.

    Parameters
    ----------
    labels : array_like of int, shape (n,)
        0 or 1.
    logits : array_like of float, shape (n,)
        Positive less negative.

    Returns
    -------
    PlattScaling, optional
        None where a class is absent, or the logits mislead or tell nothing: the slope is outside :data:`SLOPES`.
    """
    truth, values = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    spread = float(values.std()) if len(values) else 0.0
    if not positives or not negatives or spread <= 1e-6 * float(np.abs(values).max()):
        return None
    middle = float(values.mean())
    standard = (values - middle) / spread  # as fitted, whatever the scale of the logits
    target = np.where(truth == 1, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))

    def loss(line: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        odds = line[0] * standard + line[1]
        error = special.expit(odds) - target
        gradient = np.array([np.mean(error * standard), np.mean(error)])
        return float(np.mean(np.logaddexp(0.0, odds) - target * odds)), gradient

    steep, shift = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x.tolist()
    slope = steep / spread
    return PlattScaling(slope, shift - slope * middle) if SLOPES[0] <= slope <= SLOPES[1] else None
