"""Judging the heatmaps of studies beside those of other methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from app.evaluation.explanation_cases import Case
from models.classifier.network import Classifier
from models.relevance import baselines, quality
from models.relevance.explain import explain
from operators.volume import FloatArray

LRP = ("LRP, CT", "LRP, lesion mask")
METHODS = (
    *LRP,
    "LRP, sum of both",
    "Grad-CAM",
    "integrated gradients, CT",
    "integrated gradients, lesion mask",
    "lesion mask itself",
    "random in the lungs",
)
"""In the order of the tables."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Score:
    """What one heatmap of one study is worth.

    Parameters
    ----------
    name, data, mask : str
        As of the :class:`~app.evaluation.explanation_cases.Case`.
    method : str
        One of :data:`METHODS`.
    area, area_in_lungs : float
        Share of the image, and of the lungs, that the lesions take up: what a heatmap without knowledge scores.
    mass, mass_in_lungs, rank, pointing : float
        Of the whole heatmap; of where it is judged (the last three).
    curve : list of float, or None
        Probability of COVID-19 as its most relevant pixels are deleted; only with the complete mask.
    deletion : float or None
        Area under that curve; None without a curve, or where the study is no more positive than healthy lungs.
    """

    name: str
    data: str
    mask: str
    method: str
    area: float
    area_in_lungs: float
    mass: float
    mass_in_lungs: float
    rank: float
    pointing: float
    curve: list[float] | None
    deletion: float | None


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


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A case with its heatmaps (slices, rows, columns) by method."""

    case: Case
    heatmaps: dict[str, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All that was found; an example of each kind of data and mask."""

    scores: list[Score]
    cascades: list[Cascade]
    examples: list[Example]


def evaluate(network: Classifier, cases: Iterable[Case], tell: Tell) -> Evaluation:
    """Judge the heatmaps of every case; each study with a complete mask is also randomised, with a seed of its own."""
    found = Evaluation([], [], [])
    for case in cases:
        tell(f"{case.name}, {case.mask} mask, {len(case.inputs)} slices: explaining")
        example = Example(case, explanations(network, case))
        tell(f"{case.name}, {case.mask} mask: scoring")
        found.scores.extend(judge(network, example))
        if case.mask == "complete":
            tell(f"{case.name}: randomising")
            found.cascades.append(cascade(network, example, seed=len(found.cascades)))
        if (case.data, case.mask) not in {(each.case.data, each.case.mask) for each in found.examples}:
            found.examples.append(example)
    return found


def explanations(network: Classifier, case: Case) -> dict[str, FloatArray]:
    """Explain the class COVID-19 of a study by every method."""
    ct, lesions = _relevance(network, case)
    cam = baselines.grad_cam(network, case.inputs)
    gradients = baselines.integrated_gradients(network, case.inputs, _healthy(case))
    noise = np.where(case.lungs, np.random.default_rng(0).random(case.lungs.shape), 0.0)
    found = (ct, lesions, ct + lesions, cam, gradients[:, 0], gradients[:, 1], case.inputs[:, 1], noise)
    return dict(zip(METHODS, found, strict=True))


def _relevance(network: Classifier, case: Case) -> tuple[FloatArray, FloatArray]:
    relevance = explain(network, torch.from_numpy(case.inputs))
    return relevance.ct.numpy(), relevance.lesions.numpy()


def _healthy(case: Case) -> FloatArray:
    return quality.without_lesions(case.inputs, case.lungs, case.lesions)


def judge(network: Classifier, example: Example) -> list[Score]:
    """Score every heatmap of a study."""
    case = example.case
    where, healthy = case.judged, _healthy(case)
    target = case.target[where]
    scores = []
    for method, heatmap in example.heatmaps.items():
        curve = None
        if case.mask == "complete":  # else it would delete the lesions that the mask holds, and judge the others
            curve = quality.deletion(network, case.inputs, healthy, case.lungs, heatmap)
        scores.append(
            Score(
                name=case.name,
                data=case.data,
                mask=case.mask,
                method=method,
                area=float(case.target.mean()),
                area_in_lungs=float(target.mean()),
                mass=quality.mass(heatmap, case.target),
                mass_in_lungs=quality.mass(heatmap[where], target),
                rank=quality.rank(heatmap[where], target),
                pointing=quality.pointing(np.where(where, heatmap, -np.inf), case.target),
                curve=curve,
                deletion=None if curve is None else quality.area_under(curve),
            )
        )
    return scores


def cascade(network: Classifier, example: Example, seed: int) -> Cascade:
    """Randomise the network layer by layer and compare the heatmaps of both channels with the true ones."""
    case = example.case
    result = Cascade(case.data, [], {name: [] for name in LRP}, {name: [] for name in LRP})
    for layer, network_so_far in quality.randomised(network, seed):
        result.layers.append(layer)
        for name, heatmap in zip(LRP, _relevance(network_so_far, case), strict=True):
            true, other = example.heatmaps[name][case.lungs], heatmap[case.lungs]
            result.signed[name].append(quality.similarity(true, other))
            result.absolute[name].append(quality.similarity(np.abs(true), np.abs(other)))
    return result
