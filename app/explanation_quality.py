"""Judging the heatmaps of one study beside those of other methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from app.explanation_cases import Case
from models.classifier.network import Classifier
from models.relevance import baselines, quality
from models.relevance.explain import explain
from models.relevance.quality import Heatmap

LRP = ("LRP, CT", "LRP, lesion mask")
METHODS = (
    *LRP,
    "LRP, sum of both",
    "Grad-CAM",
    "integrated gradients, CT",
    "integrated gradients, lesion mask",
    "lesion mask itself",
    "random",
)
"""In the order of the tables."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one heatmap of one study is worth.

    Parameters
    ----------
    data, mask : str
        As of the :class:`~app.explanation_cases.Case`.
    method : str
        One of :data:`METHODS`.
    area, area_in_lungs : float
        Share of the image, and of the lungs, that the lesions take up: what a heatmap without knowledge scores.
    mass, mass_in_lungs, rank, pointing : float
        Of the whole heatmap; of the heatmap clipped to the lungs (the last three).
    curve : list of float
        Probability of COVID-19 as its most relevant pixels are deleted.
    deletion : float
        Area under that curve.
    """

    data: str
    mask: str
    method: str
    area: float
    area_in_lungs: float
    mass: float
    mass_in_lungs: float
    rank: float
    pointing: float
    curve: list[float]
    deletion: float


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A study with its scores, and its heatmaps (slices, rows, columns) by method."""

    case: Case
    scores: list[Score]
    heatmaps: dict[str, Heatmap]


def judge(network: Classifier, case: Case, tell: Callable[[str], None]) -> Judged:
    """Explain the class COVID-19 of a study by every method and score the heatmaps."""
    healthy = quality.without_lesions(case.inputs, case.lungs, case.lesions)
    heatmaps = explanations(network, case, healthy, tell)
    scores = []
    for method, heatmap in heatmaps.items():
        tell(f"  scoring {method}")
        shown = np.where(case.lungs, heatmap, 0.0)
        curve = quality.deletion(network, case.inputs, healthy, case.lungs, heatmap)
        scores.append(
            Score(
                data=case.data,
                mask=case.mask,
                method=method,
                area=float(case.target.mean()),
                area_in_lungs=float(case.target.sum() / case.lungs.sum()),
                mass=quality.mass(heatmap, case.target),
                mass_in_lungs=quality.mass(shown, case.target),
                rank=quality.rank(shown, case.target),
                pointing=quality.pointing(shown, case.target),
                curve=curve,
                deletion=quality.area_under(curve),
            )
        )
    return Judged(case, scores, heatmaps)


def explanations(network: Classifier, case: Case, healthy: Heatmap, tell: Callable[[str], None]) -> dict[str, Heatmap]:
    """Explain a study by every method."""
    tell("  relevance")
    ct, lesions = _relevance(network, case)
    tell("  Grad-CAM")
    cam = baselines.grad_cam(network, case.inputs)
    tell("  integrated gradients")
    gradients = baselines.integrated_gradients(network, case.inputs, healthy)
    noise = np.random.default_rng(0).random(case.lungs.shape)
    found = (ct, lesions, ct + lesions, cam, gradients[:, 0], gradients[:, 1], case.inputs[:, 1], noise)
    return dict(zip(METHODS, found, strict=True))


def _relevance(network: Classifier, case: Case) -> tuple[Heatmap, Heatmap]:
    relevance = explain(network, torch.from_numpy(case.inputs))
    return relevance.ct.numpy(), relevance.lesions.numpy()


@dataclass(frozen=True, slots=True)
class Cascade:
    """Similarity of the heatmaps to their own after each step of randomisation, by channel.

    Parameters
    ----------
    data : str
        As of the case.
    layers : list of str
        From the output to the first convolution; each keeps its random weights.
    signed, absolute : dict of str to list of float
        Rank correlation over the lungs, of the relevance and of its absolute value.
    """

    data: str
    layers: list[str]
    signed: dict[str, list[float]]
    absolute: dict[str, list[float]]


def cascade(network: Classifier, judged: Judged) -> Cascade:
    """Randomise the network layer by layer and compare the heatmaps of both channels with the true ones."""
    case = judged.case
    result = Cascade(case.data, [], {name: [] for name in LRP}, {name: [] for name in LRP})
    for layer, network_so_far in quality.randomised(network):
        result.layers.append(layer)
        for name, heatmap in zip(LRP, _relevance(network_so_far, case), strict=True):
            true = judged.heatmaps[name]
            result.signed[name].append(quality.similarity(true, heatmap, case.lungs))
            result.absolute[name].append(quality.similarity(np.abs(true), np.abs(heatmap), case.lungs))
    return result
