"""Which disease the patients of a synthetic cohort have, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from app.phantom.insertion import Pattern, insert_lesions
from app.phantom.patterns import covid_like, lobar_pneumonia, other_pneumonia, severe_covid
from models.morphology import Spacing
from operators.volume import FloatArray, LabelArray

Kind = Literal["healthy", "pneumonia", "lobar", "covid", "severe", "faint"]
Shares = Mapping[int, Sequence[tuple[Kind, float]]]
"""By label, how often each kind is drawn."""
_FAINT = Pattern(count=(1, 2), radius=(4.0, 7.0), weights=(1.0, 0.0, 0.0, 0.0))
"""Lesions that a segmentation misses."""
_PATTERNS: Mapping[Kind, Callable[[np.random.Generator], Pattern]] = {
    "pneumonia": other_pneumonia,
    "lobar": lobar_pneumonia,
    "covid": covid_like,
    "severe": severe_covid,
    "faint": lambda _: _FAINT,
}


def draw_kind(label: int, shares: Shares, rng: np.random.Generator) -> Kind:
    """Draw the kind of a negative (0) or positive (1) patient."""
    kinds, chances = zip(*shares[label], strict=True)
    kind: Kind = kinds[int(rng.choice(len(kinds), p=chances))]
    return kind


def fall_ill(
    hu: FloatArray, lungs: LabelArray, spacing: Spacing, kind: Kind, rng: np.random.Generator
) -> tuple[FloatArray, LabelArray]:
    """Insert the lesions of a kind of patient; as :func:`~app.phantom.insertion.insert_lesions`."""
    if kind == "healthy":
        return hu, np.zeros_like(lungs)
    return insert_lesions(hu, lungs, spacing, _PATTERNS[kind](rng), rng)


def involvement_percent(lungs: LabelArray, lesions: LabelArray) -> float:
    """Return how much of the lungs is affected, in percent."""
    return 100.0 * float((lesions > 0).sum()) / float((lungs > 0).sum())


def draw_co_rads(kind: Kind, involvement: float, rng: np.random.Generator) -> int:
    """Suspicion as a radiologist might state it: by pattern and extent, one class off now and then."""
    extent = 3 + (involvement > 1.0) + (involvement > 4.0)
    usual = {"healthy": 1, "faint": 1, "pneumonia": 3, "lobar": 2, "covid": extent, "severe": 5}[kind]
    return int(np.clip(usual + int(rng.choice((-1, 0, 1), p=(0.15, 0.7, 0.15))), 1, 5))
