"""First weights of the classifier beyond its encoder."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classifier.network import Classifier, NetVLAD
from models.classifier.start import fit_clusters, standardise_linear
from models.classifier.training import ClassifierRecipe
from tests.models.test_classifier_training import settings, studies


def _clouds(count: int, each: int, features: int, apart: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    middles = apart * torch.randn(count, features, generator=generator)
    return (middles[:, None] + torch.randn(count, each, features, generator=generator)).flatten(0, 1)


def test_outputs_are_standardised_and_constant_ones_keep_their_scale() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    with torch.no_grad():
        layer.weight[3] = 0.0
    inputs = torch.randn(200, 5) * torch.tensor([0.01, 1.0, 30.0, 2.0, 0.5]) + 4.0
    standardise_linear(layer, inputs)
    outputs = layer(inputs)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(7), atol=1e-4, rtol=0.0)
    expected = torch.ones(7)
    expected[3] = 0.0
    torch.testing.assert_close(outputs.std(0), expected, atol=1e-4, rtol=0.0)
    assert not layer.weight[3].any()


def test_assignments_fall_off_with_the_distance_to_the_centroids() -> None:
    descriptors = _clouds(count=6, each=40, features=8, apart=4.0)
    aggregation = NetVLAD(8, 6)
    assert fit_clusters(aggregation, descriptors, seed=0)
    assignment = aggregation.assign(descriptors).detach()
    centroids = aggregation.centroids.detach()
    ratios, gaps = [], []
    for row, descriptor in zip(assignment, descriptors, strict=True):
        distances = [float(((descriptor - centroid) ** 2).sum()) for centroid in centroids]
        first, second = sorted(range(6), key=lambda k: distances[k])[:2]
        assert int(row.argmax()) == first
        ratios.append(math.log(float(row[second]) / float(row[first])))
        gaps.append(distances[second] - distances[first])
    assert ratios == pytest.approx([math.log(0.01) * gap / (sum(gaps) / len(gaps)) for gap in gaps], rel=1e-3, abs=1e-3)
    for cloud in assignment.argmax(1).view(6, 40):
        assert len(cloud.unique()) == 1, "what lies together is one cluster"


def test_clusters_stay_as_they_are_where_descriptors_are_too_few() -> None:
    aggregation = NetVLAD(8, 6)
    before = {name: value.clone() for name, value in aggregation.state_dict().items()}
    assert not fit_clusters(aggregation, torch.randn(5, 8).repeat(4, 1), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in aggregation.state_dict().items())


def test_a_classifier_that_starts_so_tells_slices_apart(tmp_path: Path) -> None:
    """Whatever it then says of them. As it comes, its clusters take the same share of every slice."""
    chosen = settings("classifier", in_plane=32, slices_per_study=16)
    torch.manual_seed(0)
    network = Classifier(chosen.in_plane)
    made = studies(tmp_path, 12, 1, slices=20)
    recipe = ClassifierRecipe(network, chosen, made, made[:2])
    slices = torch.cat([study.slices()[:, :2] for study in made])
    with torch.no_grad():
        before = network.aggregation.assign(network.describe(slices)).std(0).mean()
        recipe.fit_to_data()
        after = network.aggregation.assign(network.describe(slices)).std(0).mean()
        spread = network.describe(slices).std(0).mean()
    assert before < 1e-3
    assert after > 0.02
    assert spread > 0.3
    first = network.state_dict()
    torch.manual_seed(0)
    again = Classifier(chosen.in_plane)
    ClassifierRecipe(again, chosen, made, made[:2]).fit_to_data()
    assert all(torch.equal(value, first[name]) for name, value in again.state_dict().items())
