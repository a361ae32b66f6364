"""Other explanations of the classifier, by captum, to compare with: Grad-CAM and integrated gradients.

Selvaraju et al., ICCV 2017; Sundararajan et al., ICML 2017. The paper's section 2 names both as related work.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn

from models.classifier.network import Classifier
from models.relevance.quality import FloatArray

STEPS = 16
"""Of the path from the baseline to the study."""


class _Batched(nn.Module):
    """Classify a batch of studies (batch, slices, 2, rows, columns), as captum wants it: (batch, 2)."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self._network = network

    def forward(self, studies: Tensor) -> Tensor:
        return torch.stack([self._network(study) for study in studies])


def grad_cam(network: Classifier, inputs: FloatArray, target: int = 1) -> FloatArray:
    """Grad-CAM at the gated features, enlarged to the slices; never negative.

    Parameters
    ----------
    network : Classifier
        On the CPU.
    inputs : ndarray of float32, shape (slices, 2, rows, columns)
        One study.
    target : int
        The class to explain.

    Returns
    -------
    ndarray of float32, shape (slices, rows, columns)
    """
    explainer = LayerGradCam(_Batched(network), network.encoder)
    features = explainer.attribute(torch.from_numpy(inputs)[None], target=target, relu_attributions=True)
    enlarged = F.interpolate(features.detach(), inputs.shape[2:], mode="bilinear", align_corners=False)
    return np.asarray(enlarged[:, 0].numpy())


def integrated_gradients(network: Classifier, inputs: FloatArray, baseline: FloatArray, target: int = 1) -> FloatArray:
    """Integrated gradients along the straight path from a baseline; signed.

    Parameters
    ----------
    network : Classifier
        On the CPU.
    inputs, baseline : ndarray of float32, shape (slices, 2, rows, columns)
        One study, and a study without findings.
    target : int
        The class to explain.

    Returns
    -------
    ndarray of float32, shape (slices, 2, rows, columns)
    """
    study, start = (torch.from_numpy(each)[None] for each in (inputs, baseline))
    explainer = IntegratedGradients(_Batched(network))
    found = explainer.attribute(study, start, target=target, n_steps=STEPS, internal_batch_size=1)
    return np.asarray(found[0].detach().float().numpy())
