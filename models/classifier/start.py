"""The first weights of the encoder and of the classifier.

With the usual random ones, what the gate lets through is the product of two small numbers, and outside the lesions one
of biases, which max-pooling then finds instead of them; slices hardly differ in their descriptors, every cluster takes
the same share of each, and NetVLAD is a mean that it does not learn to be more than. The last layer has more than
30,000 weights for each class: from random ones it learns slowly at rates at which the layers before it are stable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.classifier.network import CLASSES, NetVLAD

SECOND = 0.01
"""Share that the second nearest cluster is given of the first one's, in the mean (Arandjelovic et al. 2016)."""
_TINY = 1e-4
"""Standard deviation below which a unit is taken to be constant."""


@torch.no_grad()
def scale_convolutions(encoder: nn.Module, slices: Tensor) -> None:
    """Scale each convolution so that its outputs have a mean square of 1 where they are not 0; biases become 0.

    In place, in one pass (as Mishkin and Matas 2016, arXiv:1511.06422, but over what there is to see: most of a slice
    is no lung, and most of a lung no lesion). Without biases, nothing comes of nothing: outside the lesions the gate is
    closed. An output that is 0 everywhere keeps its scale.

    Parameters
    ----------
    encoder : nn.Module
        Passes through its 2D convolutions once.
    slices : Tensor, shape (n, 2, H, W)
        CT and lesion mask, in [0, 1].
    """

    def scaled(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - it is hooked to no other
        power = output.square().sum((0, 2, 3)) / (output != 0).sum((0, 2, 3)).clamp(min=1)
        scale = torch.where(power > _TINY**2, power, 1.0).rsqrt()
        layer.weight *= scale[:, None, None, None]
        return output * scale[:, None, None]

    layers = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        assert layer.bias is not None  # noqa: S101 - as in every encoder
        layer.bias.zero_()
    handles = [layer.register_forward_hook(scaled) for layer in layers]
    encoder(slices)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def standardise_linear(layer: nn.Linear, inputs: Tensor) -> None:
    """Scale and shift a layer, in place, so that each of its outputs has mean 0 and variance 1.

    An output that is constant keeps its scale.

    Parameters
    ----------
    layer : nn.Linear
    inputs : Tensor, shape (n, features)
        Over which; at least two.
    """
    outputs = layer(inputs)
    mean, deviation = outputs.mean(0), outputs.std(0)
    deviation = torch.where(deviation > _TINY, deviation, 1.0)
    layer.weight /= deviation[:, None]
    layer.bias.copy_((layer.bias - mean) / deviation)


@torch.no_grad()
def fit_clusters(aggregation: NetVLAD, descriptors: Tensor, seed: int) -> bool:
    """Set clusters to where descriptors are, in place (Arandjelovic et al. 2016).

    Centroids are those of k-means. The assignment is ``softmax(2 a C x - a |C|^2)``, the softmax of ``-a |x - C|^2``,
    with ``a`` such that the second nearest cluster is given :data:`SECOND` of what the nearest is.

    Parameters
    ----------
    aggregation : NetVLAD
    descriptors : Tensor, shape (n, features)
    seed : int
        Of k-means.

    Returns
    -------
    bool
        False, and nothing is changed, where there are fewer different descriptors than clusters.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - an optional dependency

    count = len(aggregation.centroids)
    points = torch.unique(descriptors.double(), dim=0)
    if len(points) < count:
        return False
    found = KMeans(count, n_init=1, random_state=seed).fit(points.numpy())
    centroids = torch.from_numpy(found.cluster_centers_)
    nearest = torch.cdist(points, centroids).square().topk(2, largest=False).values
    alpha = -math.log(SECOND) / float((nearest[:, 1] - nearest[:, 0]).mean())
    aggregation.centroids.copy_(centroids)
    aggregation.assignment.weight.copy_(2.0 * alpha * centroids)
    aggregation.assignment.bias.copy_(-alpha * centroids.square().sum(1))
    return True


@torch.no_grad()
def fit_output(output: nn.Linear, inputs: Tensor, labels: Tensor, penalty: float) -> bool:
    """Set a last layer, in place, to the logistic regression of labels on its inputs.

    It minimises the mean logistic loss plus ``penalty / 2`` times the squared norm of its weights, on inputs less their
    mean, in units of their root mean squared norm. There are far more weights than studies: with too small a penalty it
    knows them by heart.

    Parameters
    ----------
    output : nn.Linear
        Gives the logits of negative and positive.
    inputs : Tensor, shape (n, features)
    labels : Tensor of int, shape (n,)
        0 negative, 1 positive.
    penalty : float
        Above 0.

    Returns
    -------
    bool
        False, and nothing is changed, where there is one label alone or all inputs are the same.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - an optional dependency

    mean = inputs.double().mean(0)
    apart = inputs.double() - mean
    size = float(apart.square().sum(1).mean().sqrt())
    if set(labels.tolist()) != set(range(CLASSES)) or size < _TINY:
        return False
    # the weights are a combination of the inputs: it is found in the space that they span
    along, lengths, directions = torch.linalg.svd(apart / size, full_matrices=False)
    strength = 1.0 / (penalty * len(labels))
    fitted = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit((along * lengths).numpy(), labels.numpy())
    odds = torch.from_numpy(fitted.coef_[0]) @ directions / size
    offset = float(fitted.intercept_[0]) - float(odds @ mean)
    output.weight.copy_(torch.stack([-odds, odds]) / 2.0)
    output.bias.copy_(torch.tensor([-offset, offset]) / 2.0)
    return True
