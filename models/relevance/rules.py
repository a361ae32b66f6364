"""Rules of layer-wise relevance propagation, as plain forward operations on tensors.

Each function takes a layer's input ``x`` and the relevance of its output, and returns the relevance of its input.
No autograd and no stabiliser: a quotient is divided exactly, and 0 where its denominator is 0, since an output
without contributions has nothing to hand back. Activations pass relevance on unchanged and need no rule.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.4; Bach et al. 2015; Montavon et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 2.0
BETA = -1.0


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide element-wise; 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def linear(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """LRP-0 through a linear layer: ``R_i = sum_j x_i w_ij / z_j R_j`` with the bias inside ``z_j``.

    Parameters
    ----------
    x : Tensor, shape (n, inputs)
        Input of the layer.
    weight, bias : Tensor, shapes (outputs, inputs) and (outputs,)
        Parameters of the layer.
    relevance : Tensor, shape (n, outputs)
        Relevance of its output.

    Returns
    -------
    Tensor, shape (n, inputs)
    """
    return x * (quotient(relevance, F.linear(x, weight, bias)) @ weight)


def netvlad(descriptors: Tensor, assignment: Tensor, residuals: Tensor, relevance: Tensor) -> Tensor:
    """Gradient x Input through NetVLAD with soft assignment and norms frozen: ``R_X = X * A (R_V / V)``.

    With these frozen ``V = A^T X - diag(A^T 1) C`` is linear in X; the centroid part keeps its share.

    Parameters
    ----------
    descriptors : Tensor, shape (n, features)
        X, the set of slice descriptors.
    assignment : Tensor, shape (n, clusters)
        A, the soft assignment.
    residuals : Tensor, shape (clusters, features)
        V, before both normalisations.
    relevance : Tensor, shape (clusters, features)
        Relevance of V; frozen norms pass relevance on unchanged.

    Returns
    -------
    Tensor, shape (n, features)
    """
    return descriptors * (assignment @ quotient(relevance, residuals))


def pyramid(x: Tensor, grids: Sequence[int], relevance: Tensor) -> Tensor:
    """Winner takes all through spatial pyramid pooling; the first of equal inputs wins, several wins add.

    Parameters
    ----------
    x : Tensor, shape (n, c, h, w)
        Input of the pooling.
    grids : sequence of int
        Cells along each axis, per level.
    relevance : Tensor, shape (n, c * cells)
        Relevance of the output, levels concatenated.

    Returns
    -------
    Tensor, shape (n, c, h, w)
    """
    received = torch.zeros_like(x).flatten(2)
    levels = relevance.split([x.shape[1] * grid**2 for grid in grids], dim=1)  # type: ignore[no-untyped-call]
    for grid, level in zip(grids, levels, strict=True):
        winners = F.adaptive_max_pool2d(x, grid, return_indices=True)[1].flatten(2)
        received.scatter_add_(2, winners, level.view_as(winners))
    return received.view_as(x)


def max_pool(x_shape: Sequence[int], winners: Tensor, relevance: Tensor) -> Tensor:
    """Winner takes all through max-pooling.

    Parameters
    ----------
    x_shape : sequence of int
        Shape of the pooling's input, (n, c, h, w).
    winners : Tensor of int64, shape (n, c, h', w')
        Indices that the pooling returned: the maximal input of each window within its h * w plane.
    relevance : Tensor, shape (n, c, h', w')
        Relevance of the pooling's output.

    Returns
    -------
    Tensor, shape (n, c, h, w)
    """
    received = relevance.new_zeros(*x_shape).flatten(2)
    received.scatter_add_(2, winners.flatten(2), relevance.flatten(2))
    return received.view(*x_shape)


def gate(gated: Tensor, relevance: Tensor, share: float = 1.0) -> Tensor:
    """Gradient x Input through the gate ``F = ReLU(F_global * F_side)``: what each of the two factors receives.

    The product is linear in each factor, so each receives all of it: relevance doubles here, as in the paper.

    Parameters
    ----------
    gated, relevance : Tensor
        F and its relevance, of one shape.
    share : float
        1 hands each factor the full relevance, 0.5 half of it (then both together conserve it).
    """
    return relevance.masked_fill(gated <= 0, 0.0) * share


def alpha_beta(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """LRP alpha-beta through a convolution: ``R_i = sum_j (2 r+_ij / r+_j - r-_ij / r-_j) R_j``.

    ``r_ij = x_i w_ij``; ``r+_j`` sums the positive contributions and a positive bias, ``r-_j`` the negative ones
    and a negative bias. An output that lacks one of the two parts is distributed over the other with factor 1.

    Parameters
    ----------
    x : Tensor, shape (n, c, h, w)
        Input of the layer, of any sign.
    weight, bias : Tensor, shapes (c', c, k, k) and (c',)
        Parameters of a convolution with stride 1, same padding and odd k.
    relevance : Tensor, shape (n, c', h, w)
        Relevance of its output.

    Returns
    -------
    Tensor, shape (n, c, h, w)
    """
    padding = weight.shape[-1] // 2
    like, unlike = weight.clamp(min=0), weight.clamp(max=0)
    split, positive_weight, negative_weight = x, like, unlike
    if bool((x < 0).any()):
        # The signs of x and w decide the part of a product: inputs split by sign meet weights split by sign.
        split = torch.cat([x.clamp(min=0), x.clamp(max=0)], dim=1)
        positive_weight, negative_weight = torch.cat([like, unlike], dim=1), torch.cat([unlike, like], dim=1)
    positive = F.conv2d(split, positive_weight, bias.clamp(min=0), padding=padding)
    negative = F.conv2d(split, negative_weight, bias.clamp(max=0), padding=padding)
    positive_factor = relevance * torch.where(negative == 0, 1.0, ALPHA)
    negative_factor = relevance * torch.where(positive == 0, 1.0, BETA)
    handed = F.conv_transpose2d(quotient(positive_factor, positive), positive_weight, padding=padding)
    handed += F.conv_transpose2d(quotient(negative_factor, negative), negative_weight, padding=padding)
    return _joined(split * handed, x)


def z_box(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """LRP z^B through the first convolution, for pixels in [0, 1] (Montavon et al. 2019).

    ``z_ij = x_i w_ij - l w+_ij - h w-_ij`` with l = 0 and h = 1, so each contribution is >= 0. The padding is no
    pixel and contributes nothing; the bias is left out. So relevance is conserved, except that of an output to
    which no pixel contributes.

    Parameters
    ----------
    x : Tensor, shape (n, c, h, w)
        The image, in [0, 1].
    weight : Tensor, shape (c', c, k, k)
        Weight of a convolution with stride 1, same padding and odd k.
    relevance : Tensor, shape (n, c', h, w)
        Relevance of its output.

    Returns
    -------
    Tensor, shape (n, c, h, w)
    """
    padding = weight.shape[-1] // 2
    # x w - w- = x w+ + (1 - x)(-w-): a sum of terms that are not negative, so nothing cancels.
    split = torch.cat([x, 1.0 - x], dim=1)
    split_weight = torch.cat([weight.clamp(min=0), -weight.clamp(max=0)], dim=1)
    contributions = F.conv2d(split, split_weight, padding=padding)
    handed = split * F.conv_transpose2d(quotient(relevance, contributions), split_weight, padding=padding)
    return _joined(handed, x)


def _joined(split: Tensor, x: Tensor) -> Tensor:
    """Add up the parts into which the channels of ``x`` were split."""
    return split.view(len(x), -1, *x.shape[1:]).sum(1)
