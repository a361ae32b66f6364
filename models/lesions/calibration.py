"""How sure of background the lesion network must be: chosen for the Dice coefficient, kept in its last bias.

It learns from patches that lie at lesions, and for probabilities rather than Dice: so the cut at one half may be far
from the best in whole lungs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEP, LARGEST = 0.1, 3.0
"""Step and largest size of the shift that is looked for."""


def lesion_odds(logits: Tensor) -> Tensor:
    """Return the log odds of all lesion classes together, (n,), for logits (n, classes), background first."""
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def best_shift(odds: Tensor, lesion: Tensor) -> float:
    """Return by how much to raise the log odds of lesion, so that the cut at even odds has the largest Dice.

    Parameters
    ----------
    odds : Tensor, shape (n,)
        Log odds of lesion of voxels in the lungs.
    lesion : Tensor of bool, shape (n,)
        What they are.

    Returns
    -------
    float
        In steps of :data:`STEP`; of equally good ones the smallest. 0 without any lesion, and where the best would be
        as large as :data:`LARGEST`: such odds do not tell lesions from lung.
    """
    if not lesion.any():
        return 0.0
    steps = round(LARGEST / STEP)
    shifts = torch.arange(-steps, steps + 1, dtype=torch.float64) * STEP
    found, right = (_at_least(-shifts, values) for values in (odds, odds[lesion]))
    dice = 2.0 * right.double() / (found + int(lesion.sum()))
    best = shifts[dice >= dice.max() - 1e-12]
    shift = round(float(best[best.abs().argmin()]), 6)
    return shift if abs(shift) < LARGEST else 0.0


def shift_background(head: nn.Module, shift: float) -> None:
    """Raise the log odds of lesion everywhere: lower the bias of the first channel of a convolution."""
    assert isinstance(head.bias, Tensor)  # noqa: S101 - that of a U-Net
    with torch.no_grad():
        head.bias[0] -= shift


def _at_least(limits: Tensor, values: Tensor) -> Tensor:
    """Count the values that are not below each limit."""
    ranked = values.double().sort().values
    return len(ranked) - torch.searchsorted(ranked, limits)
