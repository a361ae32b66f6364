"""What the nodes find: masks, classification and explanation, all on a stated grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from operators.volume import BoolArray, FloatArray, Grid, LabelArray


class Lung(IntEnum):
    """Labels of the lung mask; left and right are the patient's."""

    LEFT = 1
    RIGHT = 2


class LesionType(IntEnum):
    """Labels of the lesion mask (paper, section 3: main patterns)."""

    GROUND_GLASS = 1
    CONSOLIDATION = 2
    CRAZY_PAVING = 3
    COMBINED = 4


def _checked_labels(labels: LabelArray, grid: Grid, highest: int) -> None:
    if labels.dtype != np.uint8 or labels.shape != grid.shape:
        raise ValueError("labels must be uint8 and of the shape of the grid")
    if labels.size and int(labels.max()) > highest:
        raise ValueError("a label is out of range")
    labels.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Lungs:
    """Lung mask on the grid of the CT: 0 elsewhere, else a :class:`Lung`."""

    labels: LabelArray
    grid: Grid

    def __post_init__(self) -> None:
        _checked_labels(self.labels, self.grid, max(Lung))

    @property
    def mask(self) -> BoolArray:
        """Both lungs."""
        return self.labels > 0


@dataclass(frozen=True, slots=True, eq=False)
class Lesions:
    """Multi-class lesion mask on the grid of the CT: 0 elsewhere, else a :class:`LesionType`."""

    labels: LabelArray
    grid: Grid

    def __post_init__(self) -> None:
        _checked_labels(self.labels, self.grid, max(LesionType))

    @property
    def mask(self) -> BoolArray:
        """Binary union of all types."""
        return self.labels > 0


@dataclass(frozen=True, slots=True, eq=False)
class Involvement:
    """Affected lung by the binary 2D model (2DS), on the grid of the CT."""

    mask: BoolArray
    grid: Grid

    def __post_init__(self) -> None:
        if self.mask.dtype != np.bool_ or self.mask.shape != self.grid.shape:
            raise ValueError("mask must be boolean and of the shape of the grid")
        self.mask.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """Classification of the whole volume as COVID-19 negative or positive.

    Parameters
    ----------
    inputs : ndarray of float32, shape (slices, 2, rows, columns)
        What the network saw, in [0, 1]: the lungs (CT outside the lungs is 0) and the lesion union.
    grid : Grid
        Geometry of ``inputs``: 3 mm slices, in-plane resampled over the extent of the CT.
    logits : tuple of float
        Negative, positive; before softmax.
    probability : float
        Softmax probability of COVID-19 positive, 0 to 1.
    threshold : float
        The study is called positive at or above this probability.
    """

    inputs: FloatArray
    grid: Grid
    logits: tuple[float, float]
    probability: float
    threshold: float

    def __post_init__(self) -> None:
        slices, rows, columns = self.grid.shape
        if self.inputs.shape != (slices, 2, rows, columns):
            raise ValueError("inputs must have two channels on the grid")
        if not 0.0 <= self.probability <= 1.0 or not 0.0 < self.threshold < 1.0:
            raise ValueError("probability and threshold must lie in [0, 1]")
        self.inputs.setflags(write=False)

    @property
    def positive(self) -> bool:
        """The decision."""
        return self.probability >= self.threshold


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Layer-wise relevance of both input channels for the logit of one class.

    Parameters
    ----------
    ct, lesions : ndarray of float32, shape (slices, rows, columns)
        Signed relevance of each pixel of the CT channel and of the lesion-mask channel, in units of the logit.
    grid : Grid
        The classifier's grid.
    target : int
        The class explained: 0 negative, 1 positive.
    logit : float
        The logit that was propagated back.
    ledger : dict of str to float
        Sum of the relevance at each stage on its way back, from the logit to both channels; the stages are those
        of :class:`models.relevance.explain.Relevance`.
    gate_share : float
        Share of its relevance that the gate handed to each channel: 1 as in the paper.
    residual_limit : float
        What the sum of a heatmap may lack or exceed, as a share of what it explains, before it is unreliable. A
        heatmap that explains nothing lacks 1; one that sums to the opposite lacks 2.
    """

    ct: FloatArray
    lesions: FloatArray
    grid: Grid
    target: int
    logit: float
    ledger: dict[str, float] = field(default_factory=dict)
    gate_share: float = 1.0
    residual_limit: float = 0.75

    def __post_init__(self) -> None:
        if self.ct.shape != self.grid.shape or self.lesions.shape != self.grid.shape:
            raise ValueError("heatmaps must have the shape of the grid")
        self.ct.setflags(write=False)
        self.lesions.setflags(write=False)

    @property
    def explained(self) -> float:
        """Relevance that each channel would carry if no layer kept any: the logit times the gate share."""
        return self.gate_share * self.logit

    def reliable(self, heatmap: FloatArray) -> bool:
        """Tell whether the residual of one of the heatmaps is within the limit."""
        residual = self.explained - float(heatmap.sum(dtype=np.float64))
        return abs(residual) < self.residual_limit * abs(self.explained)
