"""Rules of layer-wise relevance propagation, as plain forward operations on tensors.

Each rule takes what a layer computed and the relevance of its output, and returns the relevance of its input.
No autograd and no stabiliser: a quotient is divided exactly, and 0 where its denominator is 0, since an output
without contributions has nothing to hand back. Activations pass relevance on unchanged and need no rule.

Only the maximal input of a pooling receives relevance. So what depends on the output of a convolution is computed
for the winners of the pooling that follows it, and not for every pixel.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.4; Bach et al. 2015; Montavon et al. 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 2.0
BETA = -1.0
STRIP = 8
"""Neighbouring pixels that the rule of the first layer computes as channels of one."""


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


def pyramid_winners(features: Tensor, grids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pool to a spatial pyramid and remember the winners, which take all relevance; the first of equal inputs wins.

    Parameters
    ----------
    features : Tensor, shape (n, c, h, w)
        What is pooled.
    grids : sequence of int
        Cells along each axis, per level.

    Returns
    -------
    values : Tensor, shape (n, c * cells)
        Output of the pooling, level by level.
    places : Tensor of int64, shape (n, c, cells)
        Indices of the winners within the h * w plane, the levels one after the other.
    """
    levels = [F.adaptive_max_pool2d(features, grid, return_indices=True) for grid in grids]
    values = torch.cat([value.flatten(1) for value, _ in levels], dim=1)
    return values, torch.cat([places.flatten(2) for _, places in levels], dim=2)


def pyramid(relevance: Tensor, grids: Sequence[int], channels: int) -> Tensor:
    """Hand the relevance of a pyramid's output (n, c * cells) to its winners (n, c, cells), as they are ordered."""
    levels = relevance.split([channels * grid**2 for grid in grids], dim=1)  # type: ignore[no-untyped-call]
    return torch.cat([level.unflatten(1, (channels, -1)) for level in levels], dim=2)


class Parts(NamedTuple):
    """Positive part ``r+_j`` and negative part ``r-_j`` of pre-activations or, alike, of what is handed to each."""

    positive: Tensor
    negative: Tensor


class AlphaBeta:
    """LRP alpha-beta through a convolution and the max-pooling by 2 of its output.

    ``R_i = sum_j (2 r+_ij / r+_j - r-_ij / r-_j) R_j`` with ``r_ij = x_i w_ij``. ``r+_j`` sums the positive
    contributions and a positive bias, ``r-_j`` the negative ones and a negative bias.

    Parameters
    ----------
    weight, bias : Tensor, shapes (c', c, k, k) and (c',)
        Parameters of a convolution with stride 1, same padding and odd k, whose input is never negative.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = _channels_last(torch.cat([weight.clamp(min=0), weight.clamp(max=0)]))
        self._bias = torch.cat([bias.clamp(min=0), bias.clamp(max=0)])
        self._padding = weight.shape[-1] // 2

    def parts(self, x: Tensor) -> Parts:
        """Split the output of the convolution of ``x`` (n, c, h, w) before the activation: its two parts sum to it."""
        return Parts(*F.conv2d(x, self._weight, self._bias, padding=self._padding).chunk(2, dim=1))

    def __call__(self, x: Tensor, split: Parts, winners: Tensor, relevance: Tensor) -> Tensor:
        """Hand the relevance back.

        Parameters
        ----------
        x : Tensor, shape (n, c, h, w)
            Input of the convolution.
        split : Parts
            What :meth:`parts` says of it.
        winners : Tensor of int64, shape (n, c', h // 2, w // 2)
            Indices that the pooling returned: the maximal input of each window within its h * w plane.
        relevance : Tensor, shape (n, c', h // 2, w // 2)
            Relevance of the output of the pooling.

        Returns
        -------
        Tensor, shape (n, c, h, w)
        """
        at_winners = Parts(*(winning(part, winners) for part in split))
        quotients = torch.cat(alpha_beta_quotients(at_winners, relevance), dim=1)
        everywhere = _unpooled(quotients, torch.cat([winners, winners], dim=1), x)
        return F.conv_transpose2d(everywhere, self._weight, padding=self._padding).mul_(x)


class AlphaBetaAt:
    """LRP alpha-beta through a convolution of whose output only some places have relevance.

    The rule is that of :class:`AlphaBeta`, for inputs of any sign. Each place is computed by itself, which is less
    work than a convolution as long as a pooling to few cells has left few of them.

    Parameters
    ----------
    weight, bias : Tensor, shapes (c', c, k, k) and (c',)
        Parameters of a convolution with stride 1, same padding and odd k.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._size = k = weight.shape[-1]
        self._weight = weight.permute(0, 2, 3, 1).reshape(len(weight), 1, k * k, -1)
        self._bias = Parts(bias.clamp(min=0)[:, None], bias.clamp(max=0)[:, None])

    def __call__(self, x: Tensor, places: Tensor, relevance: Tensor) -> Tensor:
        """Hand the relevance back.

        Parameters
        ----------
        x : Tensor, shape (n, c, h, w)
            Input of the convolution.
        places : Tensor of int64, shape (n, c', m)
            Indices within the h * w plane of an output channel; one may be there several times.
        relevance : Tensor, shape (n, c', m)
            Relevance at these places; elsewhere it is 0.

        Returns
        -------
        Tensor, shape (n, c, h, w)
        """
        (n, c, h, w), k, half = x.shape, self._size, self._size // 2
        pixels = F.pad(x, (half,) * 4).permute(0, 2, 3, 1)
        high, wide = pixels.shape[1:3]
        rows = pixels.reshape(-1, c)
        corners = torch.arange(n, device=x.device)[:, None, None] * high * wide + places // w * wide + places % w
        steps = torch.arange(k, device=x.device)
        windows = corners[..., None] + (steps[:, None] * wide + steps).flatten()

        contributions = rows.index_select(0, windows.flatten()).view(*windows.shape, c).mul_(self._weight)
        positive = contributions.clamp(min=0)
        negative = contributions.sub_(positive)
        split = Parts(positive.sum((3, 4)) + self._bias.positive, negative.sum((3, 4)) + self._bias.negative)
        quotients = alpha_beta_quotients(split, relevance)
        handed = positive.mul_(quotients.positive[..., None, None])
        handed.addcmul_(negative, quotients.negative[..., None, None])
        received = torch.zeros_like(rows).index_add_(0, windows.flatten(), handed.view(-1, c))
        return received.view(n, high, wide, c)[:, half : half + h, half : half + w].permute(0, 3, 1, 2)


def alpha_beta_quotients(split: Parts, relevance: Tensor) -> Parts:
    """Divide relevance among the contributions: ``2 R_j / r+_j`` and ``-R_j / r-_j`` for each unit of the two signs.

    An output that lacks one of the two parts is distributed over the other with factor 1.
    """
    no_positive, no_negative = split.positive == 0, split.negative == 0
    positive = relevance * torch.where(no_negative, 1.0, ALPHA) / split.positive
    negative = relevance * torch.where(no_positive, 1.0, BETA) / split.negative
    return Parts(torch.where(no_positive, 0.0, positive), torch.where(no_negative, 0.0, negative))


class ZBox:
    """LRP z^B through the first convolution and its max-pooling by 2, for pixels in [0, 1] (Montavon et al. 2019).

    ``z_ij = x_i w_ij - l w+_ij - h w-_ij`` with l = 0 and h = 1, so each contribution is >= 0. The padding is no
    pixel and contributes nothing; the bias is left out. So relevance is conserved, except that of an output to
    which no pixel contributes. In single precision that holds where the contributions do not vanish beside the sum of
    ``|w-|``, from which they are computed.

    Parameters
    ----------
    weight : Tensor, shape (c', 1, k, k)
        Weight of a convolution with stride 1, same padding and odd k.
    size : sequence of int
        Rows and columns of the images.
    """

    def __init__(self, weight: Tensor, size: Sequence[int]) -> None:
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        # The sum of w- over the window differs only where the window reaches into the padding.
        self._sums = F.conv2d(weight.new_ones(1, 1, *size), _channels_last(negative), padding=weight.shape[-1] // 2)
        self._transposed = StripConvolution(torch.cat([positive, -negative], dim=1))

    def __call__(self, x: Tensor, pooled: Tensor, winners: Tensor, relevance: Tensor) -> Tensor:
        """Hand the relevance back.

        Parameters
        ----------
        x : Tensor, shape (n, 1, h, w)
            The images, in [0, 1].
        pooled : Tensor, shape (n, c', h // 2, w // 2)
            Maximal output of the convolution in each window of the pooling, without bias and activation.
        winners : Tensor of int64, shape (n, c', h // 2, w // 2)
            Their indices within the h * w plane.
        relevance : Tensor, shape (n, c', h // 2, w // 2)
            Relevance of the output of the pooling.

        Returns
        -------
        Tensor, shape (n, 1, h, w)
        """
        contributions = pooled - winning(self._sums.expand(len(x), -1, -1, -1), winners)
        handed = _unpooled(quotient(relevance, contributions), winners, x)
        # x w - w- = x w+ + (1 - x)(-w-): a sum of terms that are not negative.
        present, absent = self._transposed(handed).chunk(2, dim=1)
        return x * present + (1.0 - x) * absent


class StripConvolution:
    """Transposed convolution to few channels, with stride 1 and same padding.

    A strip of pixels of a row is computed as channels of one pixel of a convolution with a stride: with one or two
    channels most of a vector unit would be idle.

    Parameters
    ----------
    weight : Tensor, shape (c', c, k, k)
        As for ``torch.nn.functional.conv_transpose2d``; odd k.
    """

    def __init__(self, weight: Tensor) -> None:
        mirrored = weight.flip(2, 3).transpose(0, 1)
        strips = [F.pad(mirrored, (place, STRIP - 1 - place)) for place in range(STRIP)]
        self._weight = _channels_last(torch.cat(strips))
        self._padding = weight.shape[-1] // 2

    def __call__(self, x: Tensor) -> Tensor:
        """Map (n, c', h, w) to (n, c, h, w)."""
        n, _, h, w = x.shape
        if w % STRIP:
            x = F.pad(x, (0, -w % STRIP))
        strips = F.conv2d(x, self._weight, padding=self._padding, stride=(1, STRIP)).permute(0, 2, 3, 1)
        return strips.reshape(n, h, x.shape[3], -1)[:, :, :w].permute(0, 3, 1, 2)


def winning(x: Tensor, winners: Tensor) -> Tensor:
    """Take the values of ``x`` (n, c, h, w) at the winners (n, c, h', w') of a pooling, indices within its planes."""
    n, c, high, wide = winners.shape
    taken = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, winners.permute(0, 2, 3, 1).flatten(1, 2))
    return taken.view(n, high, wide, c).permute(0, 3, 1, 2)


def _unpooled(x: Tensor, winners: Tensor, like: Tensor) -> Tensor:
    """Put the values of ``x`` (n, c, h', w') at the winners of a pooling by 2 of planes of the size of ``like``."""
    return F.max_unpool2d(x, winners, [2, 2], output_size=like.shape[2:])


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)
