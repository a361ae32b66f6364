"""The classifier's input and its decision."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.classifier.network import Classifier
from operators.classification import classifier_input, classify
from operators.findings import Lesions, LesionType, Lung, Lungs
from operators.refusal import InputRefused, ReasonCode
from operators.volume import CTVolume, Grid
from tests.builders import Triple, ct_volume

Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


def masks(volume: CTVolume, lung: Box = WHOLE, lesion: Box | None = None) -> tuple[Lungs, Lesions]:
    lungs, lesions = np.zeros((2, *volume.grid.shape), np.uint8)
    lungs[lung] = Lung.LEFT
    if lesion is not None:
        lesions[lesion] = LesionType.CRAZY_PAVING
    return Lungs(lungs, volume.grid), Lesions(lesions, volume.grid)


def flat(shape: tuple[int, int, int] = (12, 32, 32), hu: float = -300.0, spacing: Triple = (3.0, 1.0, 1.0)) -> CTVolume:
    return ct_volume(np.full(shape, hu, np.float32), spacing)


def positions(grid: Grid) -> npt.NDArray[np.float64]:
    """Patient coordinates of every voxel centre, (z, y, x, 3)."""
    indices = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.7), (5.0, 1.5, 1.5), (3.0, 0.9, 0.9)])
@pytest.mark.parametrize("in_plane", [16, 32, 48])
def test_a_ramp_keeps_its_place_in_the_patient(spacing: Triple, in_plane: int) -> None:
    origin = (-110.0, -95.0, 40.0)
    shape, gradient = (24, 32, 32), np.array([4.0, -7.0, 3.0])
    centre = positions(ct_volume(np.zeros(shape), spacing, origin).grid).mean((0, 1, 2))
    ramp = (positions(ct_volume(np.zeros(shape), spacing, origin).grid) - centre) @ gradient - 300.0
    volume = ct_volume(ramp, spacing, origin)
    inputs, grid = classifier_input(volume, *masks(volume), in_plane)
    expected = ((positions(grid) - centre) @ gradient - 300.0 + 1000.0) / 1400.0
    inner = (slice(2, -2), slice(3, -3), slice(3, -3))
    assert inputs[inner[0], 0, inner[1], inner[2]].size > 100
    np.testing.assert_allclose(inputs[:, 0][inner], expected[inner], atol=1e-4)
    assert grid.shape == (inputs.shape[0], in_plane, in_plane)
    assert grid.spacing[0] == pytest.approx(3.0, abs=0.1)


def test_hu_are_cropped_and_rescaled() -> None:
    hu = np.full((6, 16, 16), -300.0, np.float32)
    hu[:, :4], hu[:, 4:8], hu[:, 12:] = -2000.0, -1000.0, 3000.0
    volume = ct_volume(hu)
    inputs, _ = classifier_input(volume, *masks(volume), 16)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[0, 0, :, 0], [0.0] * 8 + [0.5] * 4 + [1.0] * 4, atol=1e-6)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)])
def test_outside_the_lungs_is_zero_and_their_border_does_not_fade(spacing: Triple) -> None:
    volume = flat((15, 32, 32), spacing=spacing)
    lung = (slice(3, 12), slice(5, 26), slice(7, 21))
    inputs, _ = classifier_input(volume, *masks(volume, lung), 16)
    values = np.unique(inputs[:, 0].round(5))
    assert values.tolist() == [0.0, 0.5]


def test_coarser_pixels_are_averages_not_samples() -> None:
    hu = np.full((4, 32, 32), -650.0, np.float32)
    hu[:, :, ::2] = 50.0
    volume = ct_volume(hu)
    inputs, _ = classifier_input(volume, *masks(volume), 16)
    np.testing.assert_allclose(inputs[:, 0, :, 1:-1], 0.5, atol=1e-5)


def test_second_channel_is_the_binary_union_of_all_types() -> None:
    volume = flat((4, 16, 16))
    labels = np.zeros(volume.grid.shape, np.uint8)
    for row, kind in enumerate(LesionType):
        labels[1:3, 3 * row, 2:10] = kind
    inputs, _ = classifier_input(volume, masks(volume)[0], Lesions(labels, volume.grid), 16)
    np.testing.assert_array_equal(inputs[:, 1], labels > 0)
    finer, _ = classifier_input(volume, masks(volume)[0], Lesions(labels, volume.grid), 40)
    coarser, _ = classifier_input(volume, *masks(volume, lesion=(slice(0, 4), slice(4, 12), slice(2, 8))), 8)
    assert set(np.unique(finer[:, 1])) == {0.0, 1.0}
    expected = np.zeros((4, 8, 8))
    expected[:, 2:6, 1:4] = 1.0
    np.testing.assert_array_equal(coarser[:, 1], expected)


def test_slices_beyond_the_lungs_are_left_out_and_those_between_kept() -> None:
    hu = np.full((12, 16, 16), -300.0, np.float32)
    hu[5] = 0.0
    volume = ct_volume(hu, (3.0, 1.0, 1.0), (10.0, 20.0, 30.0))
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[[2, 3, 5, 8]] = Lung.RIGHT
    inputs, grid = classifier_input(volume, Lungs(labels, volume.grid), masks(volume)[1], 16)
    assert grid.shape == (7, 16, 16)
    np.testing.assert_allclose(inputs[:, 0].mean((1, 2)), [0.5, 0.5, 0, 1000 / 1400, 0, 0, 0.5], atol=1e-5)
    np.testing.assert_allclose(grid.affine @ [3, 4, 5, 1], volume.grid.affine @ [5, 4, 5, 1])


@pytest.mark.parametrize(
    ("shape", "spacing", "rows_and_columns"),
    [
        ((4, 24, 32), (3.0, 1.0, 1.0), (12, 16)),
        ((4, 24, 32), (3.0, 4.0, 1.0), (16, 5)),  # as in a coronal series of few slices
        ((4, 24, 32), (3.0, 1.0, 3.0), (4, 16)),
    ],
)
def test_pixels_are_square(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], rows_and_columns: tuple[int, int]
) -> None:
    volume = flat(shape, spacing=spacing)
    inputs, grid = classifier_input(volume, *masks(volume), 16)
    assert inputs.shape == (4, 2, *rows_and_columns)
    assert grid.spacing[1] == pytest.approx(grid.spacing[2], rel=0.1)


def test_without_lungs_it_is_refused() -> None:
    volume = flat()
    nothing = slice(0, 0)
    with pytest.raises(InputRefused) as refused:
        classifier_input(volume, *masks(volume, (nothing, nothing, nothing)))
    assert refused.value.code is ReasonCode.NO_LUNGS


def test_masks_on_another_grid_are_refused() -> None:
    volume, other = flat(), flat(spacing=(3.0, 1.1, 1.1))
    lungs, lesions = masks(volume)
    with pytest.raises(ValueError, match="grid"):
        classifier_input(volume, masks(other)[0], lesions)
    with pytest.raises(ValueError, match="grid"):
        classifier_input(volume, lungs, masks(other)[1])


def network(bias: float = 0.0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        result = Classifier().eval()
        torch.nn.init.constant_(result.output.bias[1:], bias)
    return result


def test_classification_is_what_the_network_says() -> None:
    volume = ct_volume(np.random.default_rng(0).normal(-600, 200, (20, 32, 32)))
    lungs, lesions = masks(volume, lesion=(slice(5, 9), slice(4, 12), slice(4, 12)))
    model = network()
    classification = classify(volume, lungs, lesions, model, 0.5, in_plane=32)
    inputs, grid = classifier_input(volume, lungs, lesions, 32)
    np.testing.assert_array_equal(classification.inputs, inputs)
    assert classification.grid.matches(grid)
    with torch.inference_mode():
        logits = model(torch.from_numpy(inputs)).tolist()
    assert classification.logits == pytest.approx(logits, abs=1e-5)
    negative, positive = classification.logits
    assert classification.probability == pytest.approx(1 / (1 + math.exp(negative - positive)), abs=1e-9)


@pytest.mark.parametrize(("bias", "threshold", "positive"), [(2.0, 0.5, True), (-2.0, 0.5, False), (2.0, 0.99, False)])
def test_the_threshold_decides(bias: float, threshold: float, positive: bool) -> None:
    volume = flat((4, 16, 16))
    classification = classify(volume, *masks(volume), network(bias), threshold, in_plane=16)
    assert classification.positive is positive
    assert classification.threshold == threshold


def test_a_network_without_a_probability_is_refused() -> None:
    volume = flat((4, 16, 16))
    with pytest.raises(ValueError, match="probability"):
        classify(volume, *masks(volume), network(float("nan")), 0.5, in_plane=16)
