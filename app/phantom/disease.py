"""Which disease the patients of a synthetic cohort have, and how it looks."""

from __future__ import annotations

from typing import Literal

import numpy as np

from app.phantom.insertion import Pattern, insert_lesions
from app.phantom.patterns import covid_like, other_pneumonia
from models.morphology import Spacing
from operators.volume import FloatArray, LabelArray

Kind = Literal["healthy", "pneumonia", "covid", "faint"]
KINDS: dict[int, tuple[tuple[Kind, float], ...]] = {
    0: (("healthy", 0.5), ("pneumonia", 0.5)),
    1: (("covid", 0.88), ("faint", 0.12)),
}
"""By label, how often each kind is drawn."""
_FAINT = Pattern(count=(1, 2), radius=(4.0, 7.0), weights=(1.0, 0.0, 0.0, 0.0))
"""Lesions that a segmentation misses."""


def draw_kind(label: int, rng: np.random.Generator) -> Kind:
    """Draw the kind of a negative (0) or positive (1) patient."""
    kinds, shares = zip(*KINDS[label], strict=True)
    kind: Kind = kinds[int(rng.choice(len(kinds), p=shares))]
    return kind


def fall_ill(
    hu: FloatArray, lungs: LabelArray, spacing: Spacing, kind: Kind, rng: np.random.Generator
) -> tuple[FloatArray, LabelArray]:
    """Insert the lesions of a kind of patient; as :func:`~app.phantom.insertion.insert_lesions`."""
    if kind == "healthy":
        return hu, np.zeros_like(lungs)
    pattern = {"pneumonia": other_pneumonia, "covid": covid_like}.get(kind, lambda _: _FAINT)(rng)
    return insert_lesions(hu, lungs, spacing, pattern, rng)


def involvement_percent(lungs: LabelArray, lesions: LabelArray) -> float:
    """Return how much of the lungs is affected, in percent."""
    return 100.0 * float((lesions > 0).sum()) / float((lungs > 0).sum())


def draw_co_rads(kind: Kind, involvement: float, rng: np.random.Generator) -> int:
    """Suspicion as a radiologist might state it: by pattern and extent, one class off now and then."""
    usual = {"healthy": 1, "faint": 1, "pneumonia": 3, "covid": 3 + (involvement > 1.0) + (involvement > 4.0)}[kind]
    return int(np.clip(usual + int(rng.choice((-1, 0, 1), p=(0.15, 0.7, 0.15))), 1, 5))
