"""First weights of the encoder and of the classifier."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classifier import training
from models.classifier.cvae import CVAE
from models.classifier.network import Classifier, GatedEncoder, NetVLAD
from models.classifier.start import fit_clusters, fit_output, scale_convolutions, standardise_linear
from models.classifier.training import ClassifierRecipe, CVAERecipe
from tests.models.test_classifier_training import settings, studies


def _clouds(count: int, each: int, features: int, apart: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    middles = apart * torch.randn(count, features, generator=generator)
    return (middles[:, None] + torch.randn(count, each, features, generator=generator)).flatten(0, 1)


def _lesions_in_lungs(count: int = 6) -> torch.Tensor:
    """Slices (n, 2, 72, 72): lung of random intensity in the middle, a lesion in it."""
    slices = torch.zeros(count, 2, 72, 72)
    slices[:, 0, 24:48, 24:48] = torch.rand(count, 24, 24, generator=torch.Generator().manual_seed(0))
    slices[:, 1, 30:40, 30:40] = 1.0
    return slices


def test_outputs_of_convolutions_have_a_mean_square_of_1_where_they_are_not_0() -> None:
    torch.manual_seed(0)
    encoder, slices = GatedEncoder(), _lesions_in_lungs()
    directions = [layer.weight.detach().flatten(1).clone() for layer in _convolutions(encoder)]
    scale_convolutions(encoder, slices)
    outputs: list[torch.Tensor] = []
    for layer in _convolutions(encoder):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    encoder(slices)
    assert len(outputs) == 6
    for output in outputs:
        for channel in output.unbind(1):
            there = [value**2 for value in channel.flatten().tolist() if value]
            assert sum(there) / len(there) == pytest.approx(1.0, rel=1e-3)
            assert len(there) < channel.numel()
    for layer, direction in zip(_convolutions(encoder), directions, strict=True):
        cosines = torch.cosine_similarity(layer.weight.detach().flatten(1), direction)
        torch.testing.assert_close(cosines, torch.ones_like(cosines))


def _convolutions(encoder: nn.Module) -> list[nn.Conv2d]:
    return [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]


def test_outside_the_lesions_nothing_passes_the_gate_at_first() -> None:
    torch.manual_seed(0)
    encoder, slices = GatedEncoder(), _lesions_in_lungs()
    scale_convolutions(encoder, slices)
    assert encoder(slices).amax((0, 2, 3)).gt(0.1).float().mean() > 0.8
    assert not encoder(torch.stack([slices[:, 0], torch.zeros_like(slices[:, 1])], dim=1)).any()
    assert not encoder(torch.stack([torch.zeros_like(slices[:, 0]), slices[:, 1]], dim=1)).any()


@pytest.mark.parametrize("side_branch", [True, False])
def test_slices_that_show_nothing_leave_weights_as_they_are(side_branch: bool) -> None:
    encoder = GatedEncoder(side_branch)
    before = [layer.weight.detach().clone() for layer in _convolutions(encoder)]
    scale_convolutions(encoder, torch.zeros(2, 2, 32, 32))
    for layer, weight in zip(_convolutions(encoder), before, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)
        assert not layer.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("initial", ["random", "cvae"])
def test_an_encoder_of_an_autoencoder_stays_as_it_is(initial: str, tmp_path: Path) -> None:
    chosen = settings("classifier", in_plane=32, slices_per_study=4, initial=initial)
    network = Classifier(32)
    before = [layer.weight.detach().clone() for layer in _convolutions(network.encoder)]
    made = studies(tmp_path, 4, 1)
    ClassifierRecipe(network, chosen, made, made[:2]).fit_to_data()
    kept = [torch.equal(layer.weight, old) for layer, old in zip(_convolutions(network.encoder), before, strict=True)]
    assert kept == [initial == "cvae"] * 6


def test_an_autoencoder_begins_with_an_encoder_at_scale(tmp_path: Path) -> None:
    chosen = settings("cvae", size=24, slices_per_study=4)
    network = CVAE(24)
    made = studies(tmp_path, 4, 1)
    CVAERecipe(network, chosen, made, made[:2]).fit_to_data()
    assert not any(layer.bias.any() for layer in _convolutions(network.encoder))  # type: ignore[union-attr]


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


def _patients(count: int = 40, features: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """More features than patients, not centred; the first differs between the labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    inputs = 3.0 + 0.2 * torch.randn(count, features, generator=generator)
    inputs[:, 0] += 0.5 * labels
    return inputs, labels


@pytest.mark.parametrize("penalty", [1.0, 0.05, 0.002])
def test_the_last_layer_minimises_the_penalised_logistic_loss(penalty: float) -> None:
    """Against the gradient of that loss, written down: it vanishes at the minimum, which is the only one."""
    inputs, labels = _patients()
    output = nn.Linear(300, 2)
    assert fit_output(output, inputs, labels, penalty)
    mean = inputs.double().mean(0)
    size = math.sqrt(sum(float(((row - mean) ** 2).sum()) for row in inputs.double()) / len(inputs))
    weights = (output.weight[1] - output.weight[0]).detach().double() * size
    logits = output(inputs).detach().double().diff().flatten()
    pull, sum_of_errors = penalty * weights, 0.0
    for row, logit, label in zip(inputs.double(), logits.tolist(), labels.tolist(), strict=True):
        error = 1.0 / (1.0 + math.exp(-logit)) - label
        pull = pull + error * (row - mean) / size / len(inputs)
        sum_of_errors += error
    assert float(pull.norm()) < 1e-3 * penalty * float(weights.norm()) + 1e-5
    assert sum_of_errors == pytest.approx(0.0, abs=1e-2)
    assert float(output.weight.detach().sum(0).abs().max()) == pytest.approx(0.0, abs=1e-6)


def test_a_larger_penalty_gives_smaller_weights() -> None:
    inputs, labels = _patients()
    norms = []
    for penalty in (0.01, 0.1, 1.0):
        output = nn.Linear(300, 2)
        fit_output(output, inputs, labels, penalty)
        norms.append(float(output.weight.detach().norm()))
    assert norms[0] > 1.5 * norms[1] > 1.5 * 1.5 * norms[2]


@pytest.mark.parametrize("case", ["one label", "one input"])
def test_the_last_layer_stays_as_it_is_where_nothing_can_be_learned(case: str) -> None:
    inputs, labels = _patients()
    if case == "one label":
        labels = torch.zeros_like(labels)
    else:
        inputs = inputs[:1].repeat(len(inputs), 1)
    output = nn.Linear(300, 2)
    before = {name: value.clone() for name, value in output.state_dict().items()}
    assert not fit_output(output, inputs, labels, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in output.state_dict().items())


def test_the_last_layer_of_a_classifier_starts_from_all_studies_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STARTING_STUDIES", 6)
    made = studies(tmp_path, 12, 1, slices=20)
    odds, fitted_to = {}, []
    monkeypatch.setattr(training, "fit_output", lambda *args: fitted_to.append(args[1:3]) or fit_output(*args))
    for penalty in (None, 0.01):
        chosen = settings("classifier", in_plane=32, output_penalty=penalty, output_draws=2)
        torch.manual_seed(0)
        network = Classifier(chosen.in_plane)
        before = network.output.weight.detach().clone()
        ClassifierRecipe(network, chosen, made, made[:2]).fit_to_data()
        assert torch.equal(network.output.weight, before) == (penalty is None)
        with torch.no_grad():
            odds[penalty] = [float(network(study.slices()[:, :2]).diff()) for study in made]
    ((inputs, labels),) = fitted_to
    assert inputs.shape == (24, 512 * 64)
    assert labels.tolist().count(1) == 12
    fitted = odds[0.01]
    positive = [value for value, study in zip(fitted, made, strict=True) if study.label]
    negative = [value for value, study in zip(fitted, made, strict=True) if not study.label]
    assert min(positive) > max(negative)
    assert max(odds[None]) - min(odds[None]) < 0.1 * (max(fitted) - min(fitted))
