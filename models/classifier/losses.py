"""Losses of the representation learning and of the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses.focal_loss import FocalLoss
from torch import Tensor, nn

CLASS_WEIGHTS = (0.25, 0.35)
GAMMA = 5.0


class ClassFocalLoss(nn.Module):
    """Focal loss of the paper: the mean over studies of ``-lambda_t (1 - p_t)^gamma log p_t``.

    ``p_t`` is the softmax probability of the true class (paper, section 4.3; Lin et al. 2017). MONAI's own mean
    divides by studies times classes and would give half of it: so its reduction is done here.

    Parameters
    ----------
    class_weights : sequence of float
        Lambda for negative and positive.
    gamma : float
        Exponent.
    """

    def __init__(self, class_weights: Sequence[float] = CLASS_WEIGHTS, gamma: float = GAMMA) -> None:
        super().__init__()
        self._focal = FocalLoss(
            to_onehot_y=True, use_softmax=True, gamma=gamma, alpha=list(class_weights), reduction="none"
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (n, classes) for integer labels (n,): a scalar."""
        terms: Tensor = self._focal(logits, labels[:, None])
        return terms.sum(1).mean()


def gaussian_kl(mean_q: Tensor, log_sigma_q: Tensor, mean_p: Tensor, log_sigma_p: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(q || p) between diagonal Gaussians (n, d), in closed form: (n,)."""
    variance_ratio = (2.0 * (log_sigma_q - log_sigma_p)).exp()
    distance = (mean_q - mean_p).square() * (-2.0 * log_sigma_p).exp()
    return (log_sigma_p - log_sigma_q + 0.5 * (variance_ratio + distance - 1.0)).sum(1)


def gaussian_reconstruction(reconstruction: Tensor, image: Tensor, sigma: float) -> Tensor:
    """Negative log-likelihood of images (n, ...) under a Gaussian of fixed sigma, less its constant: (n,)."""
    return (reconstruction - image).square().flatten(1).sum(1) / (2.0 * sigma**2)
