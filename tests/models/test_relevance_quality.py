"""Measures of heatmaps against hand-made ones, and other explanations against their definitions."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from models.classifier.network import Classifier
from models.relevance import baselines, quality


def network() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier().eval()


def study(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (3, 2, 16, 16), lungs and lesions."""
    rng = np.random.default_rng(seed)
    lungs = np.zeros((3, 16, 16), bool)
    lungs[:, 3:13, 2:14] = True
    lesions = np.zeros_like(lungs)
    lesions[1, 5:9, 4:8] = True
    ct = np.where(lungs, rng.uniform(0.1, 0.9, lungs.shape), 0.0)
    return np.stack([ct, lesions], axis=1).astype(np.float32), lungs, lesions


HEATMAP = np.array([[[4.0, -9.0], [1.0, 0.0]], [[0.0, 3.0], [2.0, -1.0]]])
REGION = np.array([[[True, False], [False, False]], [[False, False], [True, True]]])


def test_mass_counts_positive_relevance() -> None:
    assert quality.mass(HEATMAP, REGION) == pytest.approx(6 / 10)
    assert quality.mass(-np.abs(HEATMAP), REGION) == 0.0


def test_rank_looks_at_as_many_pixels_as_the_region_has() -> None:
    assert quality.rank(HEATMAP, REGION) == pytest.approx(2 / 3)  # 4, 3 and 2 rank first; 3 is outside
    assert quality.rank(np.where(REGION, 1.0, 0.0), REGION) == 1.0


def test_rank_of_equal_pixels_is_that_of_chance() -> None:
    assert quality.rank(np.zeros((2, 2, 2)), REGION) == pytest.approx(3 / 8)
    partly = np.zeros((2, 2, 2))
    partly[0, 0, 0] = 1.0
    assert quality.rank(partly, REGION) == pytest.approx((1 + 2 * 2 / 7) / 3)


def test_pointing_counts_slices_with_lesions() -> None:
    assert quality.pointing(HEATMAP, REGION) == 0.5
    assert quality.pointing(HEATMAP[:1], REGION[:1]) == 1.0
    assert quality.pointing(-np.abs(HEATMAP) - 1.0, REGION) == 0.0
    assert quality.pointing(np.ones((2, 2, 2)), REGION) == pytest.approx((1 / 4 + 2 / 4) / 2)


@pytest.mark.parametrize("measure", [quality.rank, quality.pointing])
def test_an_empty_region_cannot_be_pointed_at(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="empty"):
        measure(HEATMAP, np.zeros_like(REGION))


def test_healthy_lungs_have_the_median_of_what_is_not_lesion() -> None:
    inputs, lungs, lesions = study()
    healthy = quality.without_lesions(inputs, lungs, lesions)
    middle = statistics.median(inputs[:, 0][lungs & ~lesions].tolist())
    assert healthy[:, 0][lungs] == pytest.approx(middle)
    assert not healthy[:, 0][~lungs].any()
    assert not healthy[:, 1].any()


def probability(model: Classifier, inputs: np.ndarray) -> float:
    with torch.no_grad():
        return float(model(torch.from_numpy(inputs)).softmax(0)[1])


def test_deletion_goes_from_the_study_to_healthy_lungs_most_relevant_first() -> None:
    model, (inputs, lungs, lesions) = network(), study()
    healthy = quality.without_lesions(inputs, lungs, lesions)
    heatmap = np.arange(lungs.size, dtype=float).reshape(lungs.shape)  # the last pixels first
    curve = quality.deletion(model, inputs, healthy, lungs, heatmap)
    assert len(curve) == len(quality.FRACTIONS)
    places = np.argwhere(lungs)
    for fraction, value in zip(quality.FRACTIONS, curve, strict=True):
        left = inputs.copy()
        for z, y, x in places[len(places) - round(fraction * len(places)) :]:
            left[z, :, y, x] = healthy[z, :, y, x]
        assert value == pytest.approx(probability(model, left), abs=1e-6)


def test_area_under_a_curve() -> None:
    assert quality.area_under([0.7 - 0.4 * fraction for fraction in quality.FRACTIONS]) == pytest.approx(0.5)
    late = [0.7] * (len(quality.FRACTIONS) - 1) + [0.3]
    assert quality.area_under(late) == pytest.approx(0.75 + 0.25 / 2)
    assert quality.area_under([0.4] * len(quality.FRACTIONS)) is None
    assert quality.area_under(late[::-1]) is None


def test_randomisation_goes_from_the_output_to_the_first_convolution() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    names, changed = [], set()
    for name, so_far in quality.randomised(model):
        names.append(name)
        now = {key for key, tensor in so_far.named_parameters() if not torch.equal(tensor, before[key])}
        assert changed < now
        assert all(name in key for key in now - changed)
        changed = now
    assert names == ["output", "aggregation", "descriptor", "conv3", "conv2", "conv1"]
    assert changed == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_similarity_is_that_of_ranks() -> None:
    first = np.random.default_rng(0).normal(size=100)
    assert quality.similarity(first, np.exp(first)) == pytest.approx(1.0)
    assert quality.similarity(first, -first) == pytest.approx(-1.0)
    assert abs(quality.similarity(first, np.random.default_rng(1).normal(size=100))) < 0.3
    assert quality.similarity(first, np.zeros(100)) == 0.0


def test_grad_cam_is_the_weighted_sum_of_the_gated_features() -> None:
    model, (inputs, _, _) = network(), study()
    features = model.encoder(torch.from_numpy(inputs)).detach().requires_grad_()
    descriptors = torch.relu(model.descriptor(model.pyramid(features)))
    (gradient,) = torch.autograd.grad(model.aggregate(descriptors)[1], features)
    expected = torch.relu((features * gradient.mean((2, 3), keepdim=True)).sum(1)).detach().numpy()
    cam = baselines.grad_cam(model, inputs)
    assert cam.shape == (3, 16, 16)
    assert expected.max() > 0
    np.testing.assert_allclose(cam.max((1, 2)) > 0, expected.max((1, 2)) > 0)
    np.testing.assert_allclose(cam[:, ::15, ::15], expected[:, ::3, ::3], rtol=1e-4, atol=1e-9)  # corners stay


def test_integrated_gradients_add_up_to_the_difference_of_the_logits() -> None:
    model, (inputs, lungs, lesions) = network(), study()
    start = quality.without_lesions(inputs, lungs, lesions)
    found = baselines.integrated_gradients(model, inputs, start)
    with torch.no_grad():
        difference = model(torch.from_numpy(inputs))[1] - model(torch.from_numpy(start))[1]
    assert found.shape == inputs.shape
    assert float(found.sum()) == pytest.approx(float(difference), rel=0.05, abs=1e-4)
    assert not found[inputs == start].any()
