"""Lesion patterns of diseases."""

from __future__ import annotations

import numpy as np

from app.phantom.insertion import Pattern


def covid_like(rng: np.random.Generator) -> Pattern:
    """Bilateral, multifocal, peripheral ground glass, with or without the later patterns (paper, section 1)."""
    weights = rng.dirichlet((4.0, 0.8, 1.5, 1.5))
    return Pattern(
        count=(4, 16),
        radius=(6.0, float(rng.uniform(15.0, 40.0))),
        weights=tuple(weights.tolist()),
        subpleural=float(rng.uniform(0.7, 1.0)),
    )


def other_pneumonia(rng: np.random.Generator) -> Pattern:
    """Few, dense, one-sided and often central lesions: what bacterial pneumonia mostly looks like."""
    return Pattern(
        count=(1, 3),
        radius=(12.0, float(rng.uniform(25.0, 55.0))),
        weights=(0.15, 0.75, 0.0, 0.1),
        subpleural=float(rng.uniform(0.0, 0.5)),
        sides=(int(rng.integers(1, 3)),),
    )


def severe_covid(rng: np.random.Generator) -> Pattern:
    """As :func:`covid_like`, but many and large: a tenth to a half of the lungs."""
    weights = rng.dirichlet((3.0, 1.5, 1.5, 2.0))
    return Pattern(
        count=(12, 30),
        radius=(12.0, float(rng.uniform(35.0, 70.0))),
        weights=tuple(weights.tolist()),
        subpleural=float(rng.uniform(0.5, 1.0)),
    )


def lobar_pneumonia(rng: np.random.Generator) -> Pattern:
    """One or two consolidations of the size of a lobe."""
    return Pattern(
        count=(1, 2),
        radius=(45.0, 80.0),
        weights=(0.05, 0.9, 0.0, 0.05),
        subpleural=0.5,
        sides=(int(rng.integers(1, 3)),),
    )
