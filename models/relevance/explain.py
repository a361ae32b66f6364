"""Relevance of both input channels of the classifier for the logit of one class.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier.network import ENCODER_FEATURES, LEAKY_SLOPE, Branch, Classifier
from models.relevance import rules

CHANNELS = ("ct", "lesions")
CHUNK = 2
"""Slices explained at a time: what these need fits into the caches of a processor."""


@dataclass(frozen=True, slots=True)
class Relevance:
    """Relevance of every input pixel.

    Parameters
    ----------
    ct, lesions : Tensor, shape (slices, H, W)
        Signed relevance of the CT channel and of the lesion-mask channel, in units of the logit.
    logit : float
        What was distributed.
    ledger : dict of str to float
        Sum of the relevance at each stage on its way back: ``logit``, ``aggregation`` (output of NetVLAD),
        ``descriptors``, ``pyramid`` (output of the pooling), ``gate`` (what it hands to each of the branches), then
        for each channel ``ct.conv3``, ``ct.conv2`` (at the input of these layers) and ``ct``. What is missing from
        one stage to the next stayed with biases and centroids.
    """

    ct: Tensor
    lesions: Tensor
    logit: float
    ledger: dict[str, float]


@torch.inference_mode()
def explain(
    network: Classifier, inputs: Tensor, target: int = 1, *, gate_share: float = 1.0, chunk: int = CHUNK
) -> Relevance:
    """Distribute the logit of a class over the pixels of both input channels.

    Once the soft assignment is fixed the slices are independent, so they are explained in chunks: this bounds
    the memory and does not change the result.

    Parameters
    ----------
    network : Classifier
        On any device, in float32 or float64.
    inputs : Tensor, shape (slices, 2, H, W)
        What was classified, in [0, 1], on the network's device and in its type.
    target : int
        The class to explain: 0 negative, 1 positive.
    gate_share : float
        Share of its relevance that the gate hands to each branch: 1 as in the paper, 0.5 to split it.
    chunk : int
        Slices explained at a time.

    Returns
    -------
    Relevance

    Raises
    ------
    ValueError
        If the network has no side branch, there is no such class or share, no slice of at least 4 x 4, or the inputs
        leave [0, 1]: the rule of the first layer holds only there.
    FloatingPointError
        If a relevance is not finite.
    """
    encoder = network.encoder
    if encoder.side_branch is None:
        raise ValueError("without a side branch there is nothing to explain on the mask")
    if target not in (0, 1) or not 0.5 <= gate_share <= 1.0:
        raise ValueError("the class is 0 or 1, the gate share from 0.5 to 1")
    if inputs.ndim != 4 or inputs.shape[1] != len(CHANNELS) or not len(inputs) or min(inputs.shape[2:]) < 4:
        raise ValueError("inputs must be slices (n, 2, H, W) of at least 4 x 4")
    if not (float(inputs.min()) >= 0 and float(inputs.max()) <= 1):
        raise ValueError("inputs must lie in [0, 1]")
    inputs = inputs.contiguous(memory_format=torch.channels_last)  # which convolutions with few channels take to
    pooled, places = _pool(network, inputs, chunk)
    ledger, relevance = _through_linear_part(network, pooled, target)
    relevance = rules.gate(pooled, relevance, gate_share)
    ledger["gate"] = _total(relevance)
    relevance = rules.pyramid(relevance, network.pyramid.grids, ENCODER_FEATURES)
    heatmaps = torch.empty_like(inputs)
    branches = [BranchRules(branch, inputs.shape[2:]) for branch in (encoder.global_branch, encoder.side_branch)]
    parts = (torch.split(tensor, chunk) for tensor in (inputs, places, relevance, heatmaps))
    for images, winners, received, heatmap in zip(*parts, strict=True):
        for i, (channel, branch) in enumerate(zip(CHANNELS, branches, strict=True)):
            for stage, value in branch(images[:, i : i + 1], winners, received):
                ledger[channel + stage] = ledger.get(channel + stage, 0.0) + _total(value)
            heatmap[:, i] = value[:, 0]
    if not (heatmaps.isfinite().all() and all(math.isfinite(total) for total in ledger.values())):
        raise FloatingPointError("a relevance is not finite")
    return Relevance(heatmaps[:, 0], heatmaps[:, 1], ledger["logit"], ledger)


def _total(relevance: Tensor) -> float:
    return float(relevance.sum(dtype=torch.float64))


def _pool(network: Classifier, inputs: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Run all slices through encoder and pyramid pooling; returns what :func:`rules.pyramid_winners` does."""
    values, places = [], []
    for slices in torch.split(inputs, chunk):
        pooled, winners = rules.pyramid_winners(network.encode(slices), network.pyramid.grids)
        values.append(pooled)
        places.append(winners)
    return torch.cat(values), torch.cat(places)


def _through_linear_part(network: Classifier, pooled: Tensor, target: int) -> tuple[dict[str, float], Tensor]:
    """From the logit to the output of the pyramid pooling (n, channels * cells); also the ledger so far."""
    descriptors = F.relu(network.descriptor(pooled))
    layer = network.aggregation
    assignment = layer.assign(descriptors)
    residuals = layer.residuals(descriptors, assignment)
    aggregated = layer(descriptors)
    # LRP-0 from a logit whose relevance is the logit itself: the quotient R_j / z_j is 1, also for a logit of 0.
    relevance = aggregated * network.output.weight[target]
    ledger = {"logit": float(network.output(aggregated)[target]), "aggregation": _total(relevance)}
    relevance = rules.netvlad(descriptors, assignment, residuals, relevance.view_as(residuals))
    ledger["descriptors"] = _total(relevance)
    relevance = rules.linear(pooled, network.descriptor.weight, network.descriptor.bias, relevance)
    ledger["pyramid"] = _total(relevance)
    return ledger, relevance


class BranchRules:
    """The rules of one branch of the encoder, for images of one size."""

    def __init__(self, branch: Branch, size: Sequence[int]) -> None:
        (self._weight, self._bias), second, third = map(_parameters, (branch.conv1, branch.conv2, branch.conv3))
        self._rule1 = rules.ZBox(self._weight, size)
        self._rule2 = rules.AlphaBeta(*second)
        self._rule3 = rules.AlphaBetaAt(*third)

    def __call__(self, image: Tensor, places: Tensor, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
        """From the places of the features (n, 64, m) that have relevance to the image (n, 1, H, W), stage by stage.

        The branch runs forward again up to the input of its last convolution. Its activations pass relevance on.
        They are monotonic, so that pooling before them gives what pooling after them does, with less to compute.
        """
        pooled1, winners1 = F.max_pool2d(F.conv2d(image, self._weight, padding="same"), 2, return_indices=True)
        features1 = F.relu(pooled1 + self._bias[:, None, None])
        split = self._rule2.parts(features1)
        pooled2, winners2 = F.max_pool2d(split.positive + split.negative, 2, return_indices=True)
        relevance = self._rule3(F.leaky_relu(pooled2, LEAKY_SLOPE), places, relevance)
        yield ".conv3", relevance
        relevance = self._rule2(features1, split, winners2, relevance)
        yield ".conv2", relevance
        yield "", self._rule1(image, pooled1, winners1, relevance)


def _parameters(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    return layer.weight, cast(Tensor, layer.bias)
