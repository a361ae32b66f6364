"""Classification of the whole volume as COVID-19 negative or positive.

Source: Berenguer et al. 2020, arXiv:2011.11719, sections 3 (pre-processing) and 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext

from models.classifier.network import HU_RANGE, IN_PLANE, Classifier
from operators.findings import Classification, Lesions, Lungs
from operators.journal import Journal
from operators.orientation import standard_lesions, standard_lungs, standard_volume
from operators.refusal import no_lungs
from operators.resampling import at_least, resample, shape_at
from operators.volume import CTVolume, FloatArray, Grid

SLICE_MM = 3.0
HALF_COVERED = 0.5
ANY_LABEL = (0, 1)
"""Labels clipped to this are the union of all."""
CHUNK = 4
"""Slices that the network sees at a time: bounds the memory, does not change the result."""


def classifier_input(
    volume: CTVolume, lungs: Lungs, lesions: Lesions, in_plane: int = IN_PLANE
) -> tuple[FloatArray, Grid]:
    """Make the classifier's two channels: masked lungs and the union of all lesions.

    The CT is cropped to [-1000, 400] HU, rescaled to [0, 1], resampled, and only then masked, so that what lies
    outside the lungs does not fade into them nor their border into the background. Slices below the lowest and
    above the highest one with lung are left out.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs, lesions : Lungs, Lesions
        Masks on the grid of the CT.
    in_plane : int
        Rows or columns of the result, whichever are more; pixels are square.

    Returns
    -------
    inputs : ndarray of float32, shape (slices, 2, rows, columns)
        In [0, 1].
    grid : Grid
        Geometry of ``inputs``: the standard arrangement, with slices nearest to 3 mm.

    Raises
    ------
    InputRefused
        NO_LUNGS if no slice holds lung.
    ValueError
        If the masks are on another grid.
    """
    if not (lungs.grid.matches(volume.grid) and lesions.grid.matches(volume.grid)):
        raise ValueError("masks must be on the grid of the CT")
    volume, lungs, lesions = standard_volume(volume), standard_lungs(lungs), standard_lesions(lesions)
    grid = volume.grid.resampled(_classifier_shape(volume.grid, in_plane))
    lung = at_least(lungs.labels, grid.shape, HALF_COVERED, ANY_LABEL)
    present = np.flatnonzero(lung.any(axis=(1, 2)))
    if not present.size:
        raise no_lungs()
    low, high = HU_RANGE
    ct = ((resample(volume.hu, grid.shape, HU_RANGE) - low) / (high - low)).clip(0.0, 1.0)
    lesion = at_least(lesions.labels, grid.shape, HALF_COVERED, ANY_LABEL)
    kept = slice(int(present[0]), int(present[-1]) + 1)
    inputs = np.stack([np.where(lung, ct, np.float32(0.0)), lesion.astype(np.float32)], axis=1)[kept]
    return np.ascontiguousarray(inputs), _cropped(grid, kept)


def _classifier_shape(grid: Grid, in_plane: int) -> tuple[int, int, int]:
    _, rows, columns = (size * step for size, step in zip(grid.shape, grid.spacing, strict=True))
    pixel = max(rows, columns) / in_plane
    return shape_at(grid, (SLICE_MM, pixel, pixel))


def _cropped(grid: Grid, kept: slice) -> Grid:
    """Keep a range of slices."""
    affine = np.array(grid.affine)
    affine[:3, 3] += affine[:3, 0] * kept.start
    return Grid((kept.stop - kept.start, *grid.shape[1:]), affine)


@torch.inference_mode()
def classify(
    volume: CTVolume,
    lungs: Lungs,
    lesions: Lesions,
    network: Classifier,
    threshold: float,
    *,
    in_plane: int | None = None,
) -> Classification:
    """Classify a volume.

    Parameters
    ----------
    volume, lungs, lesions
        As for :func:`classifier_input`.
    network : Classifier
        On any device.
    threshold : float
        Positive at or above this probability, 0 to 1.
    in_plane : int, optional
        As for :func:`classifier_input`; by default what the network learned from.

    Raises
    ------
    InputRefused
        NO_LUNGS if no slice holds lung.
    ValueError
        If the masks are on another grid, or the network gives no probability.
    """
    inputs, grid = classifier_input(volume, lungs, lesions, in_plane or network.in_plane)
    logits = network.aggregate(network.describe(as_tensor(inputs, network), chunk=CHUNK)).double().cpu()
    negative, positive = logits.tolist()
    return Classification(inputs, grid, (negative, positive), float(logits.softmax(0)[1]), threshold)


def as_tensor(inputs: FloatArray, network: Classifier) -> torch.Tensor:
    """Copy the inputs to the device and type of the network."""
    return torch.tensor(inputs).to(next(network.parameters()))


class ClassificationOperator(Operator):
    """Classify the volume as COVID-19 negative or positive.

    Named inputs ``volume``, ``lungs``, ``lesions``; named output ``classification``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        network: Classifier,
        threshold: float,
        in_plane: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._network = network
        self._threshold = threshold
        self._in_plane = in_plane
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("volume", "lungs", "lesions"):
            spec.input(name)
        spec.output("classification")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the volume and its masks, classify, emit."""
        volume, lungs, lesions = (op_input.receive(name) for name in ("volume", "lungs", "lesions"))
        with self._journal.node("Classification") as found:
            classification = classify(volume, lungs, lesions, self._network, self._threshold, in_plane=self._in_plane)
            found(f"COVID-19 {'positive' if classification.positive else 'negative'}")
            found(f"probability {classification.probability:.2f}")
        op_output.emit(classification, "classification")
