"""Lesion patterns of diseases.

COVID-19 and its look-alikes as in the expert consensus of the RSNA (Simpson et al. 2020, Radiology: Cardiothoracic
Imaging 2(2):e200152), for a share of the lungs that is chosen before: how much is affected tells nothing of the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np

from app.phantom.insertion import Pattern

ONE_SIDED = 1 / 3
"""Share of the patients with COVID-19 who have few lesions, in one lung: in 6 of the 18 groups of annotated slices of
Ma et al. (Zenodo 3757476) at least 98 % of what is infected lies in one lung."""
MOST_LESIONS = 4
"""Lesions overlap and end at the pleura, so up to so many times as many are needed as the shares say."""


def covid_like(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """Peripheral ground glass, with or without the later patterns (paper, section 1): bilateral and multifocal, mostly.

    In :data:`ONE_SIDED` of the patients there are one to three lesions in one lung, as in lobar pneumonia.
    """
    one_sided = bool(rng.random() < ONE_SIDED)
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(1, 4) if one_sided else rng.integers(4, 17)),
        weights=rng.dirichlet((4.0, 0.8, 1.5, 1.5)).tolist(),
        subpleural=float(rng.uniform(0.7, 1.0)),
        sides=(int(rng.integers(1, 3)),) if one_sided else (1, 2),
    )


def lobar_pneumonia(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """One to three dense lesions in one lung, at the pleura or not: what bacterial pneumonia mostly looks like."""
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(1, 4)),
        weights=(0.1, 0.8, 0.0, 0.1),
        subpleural=float(rng.uniform(0.0, 1.0)),
        sides=(int(rng.integers(1, 3)),),
    )


def bronchopneumonia(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """Many dense patches around the bronchi, in both lungs."""
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(6, 17)),
        weights=(0.25, 0.65, 0.0, 0.1),
        subpleural=float(rng.uniform(0.0, 0.2)),
        deep=float(rng.uniform(8.0, 15.0)),
    )


def bronchiolitis(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """Very many small dense foci in one lung or both, which flow together where much is affected.

    As of infected small airways: centrilobular nodules are atypical of COVID-19 (Simpson et al. 2020).
    """
    one_sided = bool(rng.random() < ONE_SIDED)
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(24, 61)),
        weights=(0.25, 0.65, 0.0, 0.1),
        subpleural=float(rng.uniform(0.0, 0.5)),
        sides=(int(rng.integers(1, 3)),) if one_sided else (1, 2),
    )


def aspiration(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """Many dense patches in both lungs, at the pleura as often as lesions of COVID-19: what they consist of tells."""
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(4, 17)),
        weights=(0.15, 0.7, 0.0, 0.15),
        subpleural=float(rng.uniform(0.4, 1.0)),
    )


def oedema(extent: float, lungs_ml: float, rng: np.random.Generator) -> Pattern:
    """Perihilar ground glass with thickened septa, in both lungs, away from the pleura."""
    return _pattern(
        extent,
        lungs_ml,
        int(rng.integers(3, 9)),
        weights=(0.65, 0.05, 0.3, 0.0),
        subpleural=0.0,
        deep=float(rng.uniform(15.0, 22.0)),
    )


def _pattern(
    extent: float,
    lungs_ml: float,
    lesions: int,
    *,
    weights: Sequence[float],
    subpleural: float,
    deep: float = 0.0,
    sides: tuple[int, ...] = (1, 2),
) -> Pattern:
    """Return a pattern of about so many lesions that affect a share of the lungs."""
    radius = (3.0 * 1000.0 * extent * lungs_ml / (4.0 * pi * lesions)) ** (1 / 3)
    most = MOST_LESIONS * lesions
    a, b, c, d = weights
    return Pattern((most, most), (0.6 * radius, 1.4 * radius), (a, b, c, d), subpleural, deep, sides, extent)
