"""Relevance of both input channels of the classifier for the logit of one class.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier.network import LEAKY_SLOPE, Branch, Classifier
from models.relevance import rules

CHANNELS = ("ct", "lesions")


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
        ``descriptors``, ``pyramid`` (output of the pooling), ``gate``, then for each channel ``ct.conv3``,
        ``ct.conv2`` (at the input of these layers) and ``ct``. What is missing from one stage to the next stayed
        with biases and centroids; each channel starts from its share of ``gate``.
    """

    ct: Tensor
    lesions: Tensor
    logit: float
    ledger: dict[str, float]


@torch.inference_mode()
def explain(
    network: Classifier, inputs: Tensor, target: int = 1, *, gate_share: float = 1.0, chunk: int = 8
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
        If the inputs leave [0, 1]: the rule of the first layer holds only there.
    FloatingPointError
        If a relevance is not finite.
    """
    if not (float(inputs.min()) >= 0 and float(inputs.max()) <= 1):
        raise ValueError("inputs must lie in [0, 1]")
    descriptors = network.describe(inputs, chunk=chunk)
    logit = float(network.aggregate(descriptors)[target])
    aggregated, relevance = _through_aggregation(network, descriptors, target)
    ledger = {"logit": logit, "aggregation": aggregated, "descriptors": _total(relevance)}
    heatmaps = torch.empty_like(inputs)
    parts = (torch.split(tensor, chunk) for tensor in (inputs, relevance, heatmaps))
    for slices, received, heatmap in zip(*parts, strict=True):
        for stage, value in _through_slices(network, slices, received, gate_share):
            ledger[stage] = ledger.get(stage, 0.0) + _total(value)
            if stage in CHANNELS:
                heatmap[:, CHANNELS.index(stage)] = value[:, 0]
    if not heatmaps.isfinite().all():
        raise FloatingPointError("a relevance is not finite")
    return Relevance(heatmaps[:, 0], heatmaps[:, 1], logit, ledger)


def _total(relevance: Tensor) -> float:
    return float(relevance.sum(dtype=torch.float64))


def _through_aggregation(network: Classifier, descriptors: Tensor, target: int) -> tuple[float, Tensor]:
    """From the logit to the descriptors (n, 512); also the sum at NetVLAD's output."""
    layer = network.aggregation
    assignment = layer.assign(descriptors)
    residuals = layer.residuals(descriptors, assignment)
    # LRP-0 from a logit whose relevance is the logit itself: the quotient R_j / z_j is 1, also for a logit of 0.
    relevance = (layer(descriptors) * network.output.weight[target]).view_as(residuals)
    return _total(relevance), rules.netvlad(descriptors, assignment, residuals, relevance)


def _through_slices(
    network: Classifier, slices: Tensor, relevance: Tensor, share: float
) -> Iterator[tuple[str, Tensor]]:
    """From the descriptors (n, 512) of some slices to their pixels, stage by stage."""
    encoder, descriptor = network.encoder, network.descriptor
    branches = (encoder.global_branch, encoder.side_branch)
    traces = [_trace(branch, slices[:, i : i + 1]) for i, branch in enumerate(branches)]
    gated = F.relu(traces[0].features * traces[1].features)
    relevance = rules.linear(network.pyramid(gated), descriptor.weight, descriptor.bias, relevance)
    yield "pyramid", relevance
    relevance = rules.pyramid(gated, network.pyramid.grids, relevance)
    yield "gate", relevance
    relevance = rules.gate(gated, relevance, share)
    for channel, branch, trace in zip(CHANNELS, branches, traces, strict=True):
        yield from _through_branch(channel, branch, trace, relevance)


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a branch computes on its way: the input of each convolution, and the winners of each pooling."""

    image: Tensor
    pooled1: Tensor
    winners1: Tensor
    pooled2: Tensor
    winners2: Tensor
    features: Tensor


def _trace(branch: Branch, image: Tensor) -> _Trace:
    pooled1, winners1 = F.max_pool2d(F.relu(branch.conv1(image)), 2, return_indices=True)
    activated2 = F.leaky_relu(branch.conv2(pooled1), LEAKY_SLOPE)
    pooled2, winners2 = F.max_pool2d(activated2, 2, return_indices=True)
    features = F.leaky_relu(branch.conv3(pooled2), LEAKY_SLOPE)
    return _Trace(image, pooled1, winners1, pooled2, winners2, features)


def _parameters(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    return layer.weight, cast(Tensor, layer.bias)


def _through_branch(channel: str, branch: Branch, trace: _Trace, relevance: Tensor) -> Iterator[tuple[str, Tensor]]:
    """From the features of a branch to its image; activations pass relevance on."""
    relevance = rules.alpha_beta(trace.pooled2, *_parameters(branch.conv3), relevance)
    yield f"{channel}.conv3", relevance
    shape = (*trace.winners2.shape[:2], *trace.pooled1.shape[2:])
    relevance = rules.max_pool(shape, trace.winners2, relevance)
    relevance = rules.alpha_beta(trace.pooled1, *_parameters(branch.conv2), relevance)
    yield f"{channel}.conv2", relevance
    shape = (*trace.winners1.shape[:2], *trace.image.shape[2:])
    relevance = rules.max_pool(shape, trace.winners1, relevance)
    yield channel, rules.z_box(trace.image, branch.conv1.weight, relevance)
