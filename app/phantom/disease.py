"""Which disease the patients of a synthetic cohort have, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log, prod
from typing import Literal, get_args

import numpy as np

from app.phantom.insertion import Pattern, insert_lesions
from app.phantom.patterns import aspiration, bronchiolitis, bronchopneumonia, covid_like, lobar_pneumonia, oedema
from models.morphology import Spacing
from operators.volume import FloatArray, LabelArray

Kind = Literal["healthy", "lobar", "bronchopneumonia", "bronchiolitis", "aspiration", "oedema", "covid"]
KINDS: Mapping[int, Sequence[tuple[Kind, float]]] = {
    0: (
        ("healthy", 0.2),
        ("lobar", 0.2),
        ("bronchopneumonia", 0.16),
        ("bronchiolitis", 0.12),
        ("aspiration", 0.2),
        ("oedema", 0.12),
    ),
    1: (("covid", 1.0),),
}
"""By label, how often each kind is drawn."""
ALL: tuple[Kind, ...] = get_args(Kind)
EXTENT = (0.003, 0.4)
"""Least and largest share of the lungs that is affected, the same for both labels: how large a disease is must not tell
what it is."""
_PATTERNS: Mapping[Kind, Callable[[float, float, np.random.Generator], Pattern]] = {
    "lobar": lobar_pneumonia,
    "bronchopneumonia": bronchopneumonia,
    "bronchiolitis": bronchiolitis,
    "aspiration": aspiration,
    "oedema": oedema,
    "covid": covid_like,
}


def draw_kind(label: int, rng: np.random.Generator, among: Sequence[Kind] = ALL) -> Kind:
    """Draw the kind of a negative (0) or positive (1) patient.

    Parameters
    ----------
    label : int
    rng : numpy Generator
    among : sequence of str
        Kinds to draw from, as often in proportion to each other as of all; see :func:`both_labels`.
    """
    kinds, chances = zip(*((kind, chance) for kind, chance in KINDS[label] if kind in among), strict=True)
    drawn: Kind = kinds[int(rng.choice(len(kinds), p=np.array(chances) / sum(chances)))]
    return drawn


def both_labels(kinds: Sequence[Kind]) -> bool:
    """Tell whether both negative and positive patients can be drawn from some kinds."""
    return all(any(kind in kinds for kind, _ in of_label) for of_label in KINDS.values())


def fall_ill(
    hu: FloatArray, lungs: LabelArray, spacing: Spacing, kind: Kind, rng: np.random.Generator
) -> tuple[FloatArray, LabelArray]:
    """Insert the lesions of a kind of patient; as :func:`~app.phantom.insertion.insert_lesions`."""
    if kind == "healthy":
        return hu, np.zeros_like(lungs)
    least, most = EXTENT
    extent = float(np.exp(rng.uniform(log(least), log(most))))
    lungs_ml = float((lungs > 0).sum()) * prod(spacing) / 1000.0
    return insert_lesions(hu, lungs, spacing, _PATTERNS[kind](extent, lungs_ml, rng), rng)


def involvement_percent(lungs: LabelArray, lesions: LabelArray) -> float:
    """Return how much of the lungs is affected, in percent."""
    return 100.0 * float((lesions > 0).sum()) / float((lungs > 0).sum())


def draw_co_rads(kind: Kind, involvement: float, rng: np.random.Generator) -> int:
    """Suspicion as a radiologist might state it: by pattern and extent, one class off now and then."""
    extent = 2 + (involvement > 0.6) + (involvement > 1.5) + (involvement > 5.0)
    usual = {
        "healthy": 1,
        "lobar": 2,
        "bronchopneumonia": 2,
        "bronchiolitis": 2,
        "aspiration": 3,
        "oedema": 3,
        "covid": extent,
    }[kind]
    return int(np.clip(usual + int(rng.choice((-1, 0, 1), p=(0.15, 0.7, 0.15))), 1, 5))
