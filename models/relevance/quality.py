"""How good a heatmap is, against lesions that are known.

Relevance mass and rank accuracy: Arras et al., Information Fusion 81 (2022), doi:10.1016/j.inffus.2021.11.008. Pointing
game: Zhang et al., IJCV 126 (2018), doi:10.1007/s11263-017-1059-x. Deletion: Petsiuk et al., BMVC 2018. Randomisation:
Adebayo et al., NeurIPS 2018. All but the last judge what speaks for the class: relevance against it ranks last.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn

from models.classifier.network import Classifier, NetVLAD

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Of the lungs, deleted step by step."""
LEAST_FALL = 0.01
"""Probability that a study must lose with its lungs for its deletion curve to say anything."""


def mass(heatmap: FloatArray, region: BoolArray) -> float:
    """Share of the positive relevance that lies in a region, 0 to 1; 0 where there is none."""
    positive = np.maximum(heatmap, 0.0)
    total = float(positive.sum(dtype=np.float64))
    return float(positive[region].sum(dtype=np.float64)) / total if total else 0.0


def rank(heatmap: FloatArray, region: BoolArray) -> float:
    """Share of the K most relevant pixels that lie in a region of K pixels, 0 to 1.

    Pixels of equal relevance count with the share of them that lies in the region.
    """
    count = int(region.sum())
    if not count:
        raise ValueError("the region is empty")
    values = heatmap.ravel()
    limit = np.partition(values, values.size - count)[values.size - count]
    above, equal = heatmap > limit, heatmap == limit
    places = count - int(above.sum())
    return (int((above & region).sum()) + places * float(region[equal].mean())) / count


def pointing(heatmap: FloatArray, region: BoolArray) -> float:
    """Share of the slices with some of the region whose most relevant pixel lies in it, 0 to 1.

    Parameters
    ----------
    heatmap, region : ndarray, shape (slices, rows, columns)
        Of several highest pixels each counts its share. A slice without positive relevance points nowhere.
    """
    slices = np.flatnonzero(region.any(axis=(1, 2)))
    if not slices.size:
        raise ValueError("the region is empty")
    highest = heatmap.max(axis=(1, 2))
    return float(np.mean([region[z][heatmap[z] == highest[z]].mean() if highest[z] > 0 else 0.0 for z in slices]))


@torch.inference_mode()
def deletion(
    network: Classifier, inputs: FloatArray, healthy: FloatArray, lungs: BoolArray, heatmap: FloatArray
) -> list[float]:
    """Probability of COVID-19 while the most relevant pixels of the lungs are deleted from both channels.

    Parameters
    ----------
    network : Classifier
        On the CPU.
    inputs, healthy : ndarray of float32, shape (slices, 2, rows, columns)
        The study, and what takes the place of what is deleted.
    lungs : ndarray of bool, shape (slices, rows, columns)
        Where pixels are deleted.
    heatmap : ndarray, shape (slices, rows, columns)
        The greatest values are deleted first, equal ones in random order.

    Returns
    -------
    list of float
        For each of :data:`FRACTIONS`.
    """
    places = np.random.default_rng(0).permutation(np.flatnonzero(lungs))
    places = places[np.argsort(-heatmap.ravel()[places], kind="stable")]
    curve = []
    for fraction in FRACTIONS:
        gone = np.zeros(lungs.size, bool)
        gone[places[: round(fraction * places.size)]] = True
        left = np.where(gone.reshape(lungs.shape)[:, None], healthy, inputs)
        logits = network.aggregate(network.describe(torch.from_numpy(left), chunk=4))
        curve.append(float(logits.double().softmax(0)[1]))
    return curve


def area_under(curve: Sequence[float]) -> float | None:
    """Area under a deletion curve, scaled from its end (0) to its start (1): the lower, the better the heatmap.

    None where the curve does not end below its start: there is nothing to take away.
    """
    start, end = curve[0], curve[-1]
    if start - end < LEAST_FALL:
        return None
    return float(np.trapezoid((np.array(curve) - end) / (start - end), FRACTIONS))


def without_lesions(inputs: FloatArray, lungs: BoolArray, lesions: BoolArray) -> FloatArray:
    """Return a study whose lungs look healthy: everywhere the median of its lungs outside lesions; no lesion mask."""
    healthy = np.zeros_like(inputs)
    healthy[:, 0][lungs] = np.median(inputs[:, 0][lungs & ~lesions])
    return healthy


def randomised(network: Classifier, seed: int = 0) -> Iterator[tuple[str, Classifier]]:
    """Randomise a classifier layer by layer from its output on; yields the layer's name and the network so far."""
    network, encoder = copy.deepcopy(network), ("global_branch", "side_branch")
    steps: dict[str, list[nn.Module]] = {
        "output": [network.output],
        "aggregation": [network.aggregation],
        "descriptor": [network.descriptor],
    }
    for name in ("conv3", "conv2", "conv1"):
        steps[name] = [getattr(getattr(network.encoder, branch), name) for branch in encoder]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layers in steps.items():
            for layer in layers:
                _reset(layer)
            yield name, network


@torch.no_grad()
def _reset(layer: nn.Module) -> None:
    if isinstance(layer, NetVLAD):
        layer.centroids.copy_(torch.randn_like(layer.centroids) / layer.centroids.shape[1] ** 0.5)
        layer = layer.assignment
    assert isinstance(layer, nn.Linear | nn.Conv2d)  # noqa: S101  # tells the type
    layer.reset_parameters()


def similarity(first: FloatArray, second: FloatArray) -> float:
    """Rank correlation (Spearman) of two heatmaps, -1 to 1; 0 where one is the same everywhere."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)
