"""What each network is trained to make small, against loops and against what the formulas promise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from monai.losses.focal_loss import FocalLoss
from pydantic import ValidationError
from torch import Tensor, nn

from models.classifier.cvae import CVAE, PriorInputs
from models.classifier.losses import ClassFocalLoss
from models.classifier.network import Classifier
from models.classifier.training import ClassifierObjective, ClassifierSettings, CVAEObjective
from models.involvement.training import InvolvementObjective
from models.lesions.training import LesionObjective, LesionSettings
from models.lungs.training import LungObjective, LungSettings

MODELS = Path(__file__).resolve().parents[2] / "models"
BACKGROUND, GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED, UNKNOWN = range(6)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


class Given(nn.Module):
    """A network whose output is its only parameter."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, image: Tensor) -> Tensor:
        return self.output


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


# --- Lungs


def test_lung_loss_is_weighted_cross_entropy_and_soft_dice() -> None:
    """Air without any lung, darker than 0.6, weighs 1.5; the image has a halo of 18, 33 and 33 voxels."""
    shape = (2, 3, 4)
    image = torch.rand(1, 1, 38, 69, 70)
    target = (2 * torch.rand(1, 1, *shape) - 0.5).clamp(0, 1)  # none, all, and shares
    logits = 2 * torch.randn(1, 1, *shape)
    entropy = overlap = predicted = wanted = 0.0
    for z in range(shape[0]):
        for y in range(shape[1]):
            for x in range(shape[2]):
                t, p = float(target[0, 0, z, y, x]), sigmoid(float(logits[0, 0, z, y, x]))
                weight = 1.5 if float(image[0, 0, z + 18, y + 33, x + 33]) < 0.6 and t == 0 else 1.0
                entropy -= weight * (t * math.log(p) + (1 - t) * math.log(1 - p))
                overlap, predicted, wanted = overlap + p * t, predicted + p**2, wanted + t**2
    dice = 1 - (2 * overlap + 1) / (predicted + wanted + 1)
    loss = LungObjective(Given(logits))(image, target)
    assert loss.item() == pytest.approx(entropy / math.prod(shape) + dice, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_perfect_lung_costs_nothing_and_its_opposite_most(share: float) -> None:
    target = (torch.arange(24).reshape(1, 1, 2, 3, 4) < 24 * share).float()
    image = torch.rand(1, 1, 38, 69, 70)
    right, wrong = (LungObjective(Given(sign * 60 * (target - 0.5)))(image, target) for sign in (1, -1))
    unsure = LungObjective(Given(torch.zeros_like(target)))(image, target)
    assert right.item() == pytest.approx(0.0, abs=1e-6)
    assert right.item() < unsure.item() < wrong.item()


def test_the_share_of_lung_in_a_voxel_is_its_cheapest_probability() -> None:
    target = torch.rand(1, 1, 2, 3, 4) * 0.9 + 0.05
    image = torch.ones(1, 1, 38, 69, 70)
    objective = LungObjective(Given(torch.logit(target)))
    loss = objective(image, target)
    loss.backward()
    assert isinstance(objective.network, Given)
    torch.testing.assert_close(objective.network.output.grad, torch.zeros_like(target), atol=1e-6, rtol=0.0)
    for seed in range(20):
        torch.manual_seed(seed)
        moved = torch.logit(target) + 0.1 * torch.randn(target.shape)
        assert LungObjective(Given(moved))(image, target) > loss


def test_other_air_called_lung_costs_more_than_dense_tissue_called_lung() -> None:
    target = torch.zeros(1, 1, 1, 1, 2)
    image = torch.ones(1, 1, 37, 67, 68)
    image[..., 18, 33, 33] = 0.3  # air; the other voxel is dense
    called = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])  # the first one, the second one
    air, dense = (LungObjective(Given(logits.reshape(1, 1, 1, 1, 2)))(image, target) for logits in called)
    assert air.item() > 1.2 * dense.item()


def lung_settings(**changed: object) -> LungSettings:
    recommended = yaml.safe_load((MODELS / "lungs" / "training.yaml").read_text("utf-8"))
    return LungSettings.model_validate(recommended | changed)


@pytest.mark.parametrize("interior", [(25, 48, 48), (24, 48, 50), (0, 3, 6), (24, -3, 48), (24, 48)])
def test_interiors_of_other_than_multiples_of_3_are_refused(interior: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="interior"):
        lung_settings(interior=interior)


def test_interiors_of_multiples_of_3_are_taken() -> None:
    assert lung_settings(interior=(6, 12, 9)).interior == (6, 12, 9)


# --- Lesions


def lesion_settings(**changed: object) -> LesionSettings:
    recommended = yaml.safe_load((MODELS / "lesions" / "training.yaml").read_text("utf-8"))
    return LesionSettings.model_validate(recommended | changed)


def naive_wasserstein_dice(logits: Tensor, labels: Tensor, distances: list[list[float]]) -> float:
    """Fidon et al. 2017, equations 6 and 9: voxels (n, classes) with labels (n,), the first class the background.

    The error of a voxel is the Wasserstein distance W of its probabilities to its label; where the label is not
    background, M[label, background] - W of it is truly positive. A lesion of unknown type is as far as the background
    is probable. A hundred voxels are added to both sides of the Dice.
    """
    error = positive = 0.0
    for scores, label in zip(logits.tolist(), labels.tolist(), strict=True):
        far = [1.0, 0.0, 0.0, 0.0, 0.0] if label == UNKNOWN else [row[label] for row in distances]
        moved = sum(p * distance for p, distance in zip(softmax(scores), far, strict=True))
        error += moved
        positive += far[BACKGROUND] * (far[BACKGROUND] - moved)
    return 1 - (2 * positive + 100) / (2 * positive + error + 100)


def lesion_item(size: tuple[int, int, int] = (2, 3, 4)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random logits with labels and lungs; the image does not matter."""
    logits = 2 * torch.randn(1, 5, *size)
    labels = torch.randint(0, 5, (1, 1, *size))
    lungs = torch.rand(1, 1, *size) < 0.7
    return logits, torch.zeros(1, 1, *size), labels, lungs


def naive_lesion_loss(logits: Tensor, labels: Tensor, lungs: Tensor, settings: LesionSettings) -> float:
    """Where the type is unknown (5), any is right."""
    inside = [tuple(place) for place in torch.nonzero(lungs[0, 0]).tolist()]
    scores = torch.stack([logits[(0, slice(None), *place)] for place in inside])
    right = torch.stack([labels[(0, 0, *place)] for place in inside])
    loss = naive_wasserstein_dice(scores, right, [list(row) for row in settings.distances])
    if settings.entropy:
        rows = list(zip(scores.tolist(), right.tolist(), strict=True))
        entropies = [-math.log(sum(softmax(s)[1:]) if t == 5 else softmax(s)[t]) for s, t in rows]
        loss += sum(entropies) / len(entropies)
        affected = [(s[1:], t - 1) for s, t in rows if 0 < t < 5]
        if affected:
            loss += sum(-math.log(softmax(s)[t]) for s, t in affected) / len(affected)
    return loss


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("labelled", ["all", "background", "one type", "some unknown", "unknown"])
def test_lesion_loss_is_the_formula_of_the_paper(entropy: bool, labelled: str) -> None:
    settings = lesion_settings(entropy=entropy)
    logits, image, labels, lungs = lesion_item()
    if labelled != "all":
        kinds = {"one type": CRAZY_PAVING, "background": BACKGROUND, "some unknown": UNKNOWN, "unknown": UNKNOWN}
        labels = torch.where(labels > 2, kinds[labelled], labels if labelled == "some unknown" else BACKGROUND)
    loss = LesionObjective(Given(logits), settings)(image, labels, lungs)
    assert loss.item() == pytest.approx(naive_lesion_loss(logits, labels, lungs, settings), rel=2e-5)


def test_of_a_lesion_of_unknown_type_any_type_costs_nothing() -> None:
    labels = torch.full((2, 3, 4), UNKNOWN)
    labels[0] = BACKGROUND
    for kind in (GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED):
        assert cost(torch.where(labels > 0, kind, labels), labels, entropy=True) == pytest.approx(0.0, abs=1e-5)
    even = torch.full((1, 5, 2, 3, 4), 0.0)
    even[:, 0] = torch.where(labels > 0, -30.0, 30.0)
    assert cost_of(even, labels, entropy=True) == pytest.approx(0.0, abs=1e-5), "nor a mixture of them"
    missed = int((labels > 0).sum())
    assert cost(torch.zeros_like(labels), labels, entropy=False) == pytest.approx(1 - 100 / (missed + 100))


def test_the_types_of_a_lesion_of_unknown_type_are_not_learned_from_it() -> None:
    """Whatever the network guesses, the gradient says nothing of one type against another."""
    logits, image, labels, lungs = lesion_item()
    labels = torch.where(labels > 0, UNKNOWN, BACKGROUND)
    objective = LesionObjective(Given(logits), lesion_settings(entropy=True))
    objective(image, labels, lungs).backward()
    gradient = objective.network.output.grad[:, 1:]
    share = torch.softmax(logits[:, 1:], dim=1)
    torch.testing.assert_close(gradient, share * gradient.sum(1, keepdim=True), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("probability", [0.02, 0.2, 0.9])
def test_lesions_found_in_healthy_lung_cost_and_teach(probability: float) -> None:
    logits = torch.zeros(1, 5, 10, 20, 20)
    logits[:, 0] = math.log(4 * (1 - probability) / probability)
    labels, lungs = torch.zeros(1, 1, 10, 20, 20, dtype=torch.int64), torch.ones(1, 1, 10, 20, 20, dtype=torch.bool)
    objective = LesionObjective(Given(logits), lesion_settings(entropy=False))
    loss = objective(torch.zeros(1, 1, 10, 20, 20), labels, lungs)
    loss.backward()
    found = 4000 * probability
    assert float(loss.detach()) == pytest.approx(found / (found + 100), rel=1e-4)
    slope = 100 / (found + 100) ** 2 * probability * (1 - probability)
    torch.testing.assert_close(
        objective.network.output.grad[:, 0], torch.full((1, 10, 20, 20), -slope), rtol=1e-3, atol=0
    )


def test_a_loss_is_one_number_in_float32() -> None:
    logits, image, labels, lungs = lesion_item()
    for entropy in (False, True):
        loss = LesionObjective(Given(logits), lesion_settings(entropy=entropy))(image, labels, lungs)
        assert (loss.shape, loss.dtype) == ((), torch.float32)


@pytest.mark.parametrize("entropy", [False, True])
def test_what_lies_beyond_the_lungs_does_not_matter(entropy: bool) -> None:
    settings = lesion_settings(entropy=entropy)
    logits, image, labels, lungs = lesion_item()
    objective = LesionObjective(Given(logits), settings)
    loss = objective(image, labels, lungs)
    loss.backward()
    gradient = objective.network.output.grad
    assert torch.equal(gradient.abs().sum(1, keepdim=True) > 0, lungs)
    elsewhere = torch.where(lungs, logits, torch.randn_like(logits))
    other = torch.where(lungs, labels, (labels + 1) % 5)
    assert torch.equal(LesionObjective(Given(elsewhere), settings)(image, other, lungs), loss)


@pytest.mark.parametrize("entropy", [False, True])
def test_a_patch_without_lung_teaches_nothing(entropy: bool) -> None:
    logits, image, labels, lungs = lesion_item()
    objective = LesionObjective(Given(logits), lesion_settings(entropy=entropy))
    loss = objective(image, labels, torch.zeros_like(lungs))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(objective.network.output.grad, torch.zeros_like(logits))


def cost(predicted: Tensor, labels: Tensor, **changed: object) -> float:
    """Loss of classes that are predicted for sure, in lungs that are everywhere."""
    return cost_of(30.0 * nn.functional.one_hot(predicted, 5).movedim(-1, 0)[None].float(), labels, **changed)


def cost_of(logits: Tensor, labels: Tensor, **changed: object) -> float:
    """Loss of logits, in lungs that are everywhere."""
    objective = LesionObjective(Given(logits), lesion_settings(**changed))
    item = torch.zeros(1, 1, *labels.shape), labels[None, None], torch.ones(1, 1, *labels.shape, dtype=torch.bool)
    return float(objective(*item).detach())


@pytest.mark.parametrize("entropy", [False, True])
def test_a_perfect_prediction_costs_nothing(entropy: bool) -> None:
    labels = torch.arange(24).reshape(2, 3, 4) % 5
    assert cost(labels, labels, entropy=entropy) == pytest.approx(0.0, abs=1e-5)


def test_a_wrong_type_costs_less_than_none_and_the_combined_pattern_less_still() -> None:
    """And worse than missing everything there is nothing: that costs 1, but for the smoothing."""
    labels = torch.full((2, 3, 4), BACKGROUND)
    labels[0] = GROUND_GLASS
    prices = {kind: cost(torch.where(labels > 0, kind, labels), labels, entropy=False) for kind in range(5)}
    assert prices[GROUND_GLASS] == pytest.approx(0.0, abs=1e-5)
    assert prices[GROUND_GLASS] < prices[COMBINED] < prices[CONSOLIDATION] < prices[BACKGROUND]
    assert prices[CONSOLIDATION] == pytest.approx(prices[CRAZY_PAVING])
    assert prices[BACKGROUND] == pytest.approx(1 - 100 / (100 + 12))
    # 12 voxels at distance 0.4: error 0.4 * 12, truly positive 0.6 * 12
    assert prices[COMBINED] == pytest.approx(1 - (2 * 0.6 * 12 + 100) / ((2 * 0.6 + 0.4) * 12 + 100), abs=1e-5)


def test_distances_may_have_any_unit() -> None:
    matrix = torch.tensor(lesion_settings().distances)
    logits, image, labels, lungs = lesion_item()
    one, double = (
        LesionObjective(Given(logits), lesion_settings(distances=(k * matrix).tolist()))(image, labels, lungs)
        for k in (1, 2)
    )
    assert one.item() == pytest.approx(double.item(), rel=1e-6)


def test_the_recommended_distances_are_those_of_the_design() -> None:
    """Any lesion is 1 from background; types less from each other; the combined pattern nearer to each."""
    matrix = torch.tensor(lesion_settings().distances)
    assert (matrix[0, 1:] == 1).all()
    single = matrix[1:4, 1:4][~torch.eye(3, dtype=torch.bool)]
    assert (single < 1).all()
    assert matrix[COMBINED, 1:4].max() < single.min()
    for a, b, c in torch.cartesian_prod(*(torch.arange(5),) * 3).tolist():
        assert matrix[a, c] <= matrix[a, b] + matrix[b, c] + 1e-6


@pytest.mark.parametrize("patch", [(24, 96, 96), (8, 16, 8)])
def test_patches_of_multiples_of_8_are_taken(patch: tuple[int, int, int]) -> None:
    assert lesion_settings(patch=patch).patch == patch


@pytest.mark.parametrize("patch", [(12, 96, 96), (24, 0, 96), (24, 96, -8), (24, 96), (4, 8, 8), (24.5, 96, 96)])
def test_other_patches_are_refused(patch: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="patch"):
        lesion_settings(patch=patch)


@pytest.mark.parametrize(
    ("row", "column", "value"), [(0, 1, 0.5), (2, 2, 0.1), (3, 4, math.nan), (1, 3, -0.6), (4, 0, "far")]
)
def test_what_is_no_distance_is_refused(row: int, column: int, value: float | str) -> None:
    distances: list[list[float | str]] = [list(each) for each in lesion_settings().distances]
    distances[row][column] = value
    with pytest.raises(ValidationError, match="distances"):
        lesion_settings(distances=distances)


def test_a_negative_distance_is_refused_also_where_it_is_symmetric() -> None:
    distances = [list(each) for each in lesion_settings().distances]
    distances[1][2] = distances[2][1] = -0.6
    with pytest.raises(ValidationError, match="not negative"):
        lesion_settings(distances=distances)


def test_a_matrix_of_another_size_is_refused() -> None:
    distances = [list(each) for each in lesion_settings().distances]
    for wrong in (distances[:4], [row[:4] for row in distances]):
        with pytest.raises(ValidationError, match="distances"):
            lesion_settings(distances=wrong)


# --- Involvement


def test_involvement_loss_is_cross_entropy_and_soft_dice_inside_the_lungs() -> None:
    shape = (2, 1, 3, 5)
    logits = 2 * torch.randn(shape)
    lungs = (torch.rand(shape) < 0.6).float()
    target = (torch.rand(shape) < 0.5).float() * lungs
    entropy = count = overlap = predicted = wanted = 0.0
    for t, lung, logit in zip(target.ravel().tolist(), lungs.ravel().tolist(), logits.ravel().tolist(), strict=True):
        if lung:
            p = sigmoid(logit)
            entropy -= math.log(p if t else 1 - p)
            count, overlap, predicted, wanted = count + 1, overlap + p * t, predicted + p, wanted + t
    dice = 1 - (2 * overlap + 1) / (predicted + wanted + 1)
    objective = InvolvementObjective(Given(logits))
    loss = objective(torch.zeros(shape), target, lungs)
    assert loss.item() == pytest.approx(entropy / count + dice, rel=1e-5)
    loss.backward()
    assert torch.equal(objective.network.output.grad != 0, lungs > 0)


def test_involvement_costs_nothing_where_it_is_right_or_there_is_no_lung() -> None:
    lungs = (torch.arange(30).reshape(2, 1, 3, 5) % 3 > 0).float()
    target = (torch.arange(30).reshape(2, 1, 3, 5) % 3 > 1).float()
    right = InvolvementObjective(Given(60 * (target - 0.5)))(torch.zeros_like(lungs), target, lungs)
    assert right.item() == pytest.approx(0.0, abs=1e-6)
    nowhere = InvolvementObjective(Given(torch.randn(2, 1, 3, 5)))
    loss = nowhere(torch.zeros_like(lungs), torch.zeros_like(lungs), torch.zeros_like(lungs))
    loss.backward()
    assert loss.item() == 0.0
    assert not nowhere.network.output.grad.any()


# --- Classifier


@pytest.mark.parametrize(("weights", "gamma"), [((0.25, 0.35), 5.0), ((1.0, 3.0), 0.0), ((0.4, 0.2), 2.0)])
@pytest.mark.parametrize("label", [0, 1])
def test_classifier_loss_is_the_focal_loss_of_its_settings_over_that_of_chance(
    label: int, weights: tuple[float, float], gamma: float
) -> None:
    recommended = yaml.safe_load((MODELS / "classifier" / "training.yaml").read_text("utf-8"))
    settings = ClassifierSettings.model_validate(recommended | {"class_weights": weights, "gamma": gamma})
    network, slices = Classifier(), torch.rand(3, 2, 16, 16)
    nn.init.normal_(network.output.weight, std=2.0)
    probability = softmax(network(slices).tolist())[label]
    expected = -weights[label] * (1 - probability) ** gamma * math.log(probability)
    chance = sum(weights) / 2 * 0.5**gamma * math.log(2)
    loss = ClassifierObjective(network, settings)(slices, torch.tensor([label]))
    assert loss.item() == pytest.approx(expected / chance, rel=1e-4)


def test_decay_does_not_outweigh_the_loss_of_a_classifier_that_begins() -> None:
    """Adam takes full steps along whichever of them is larger, however small both are."""
    settings = ClassifierSettings.model_validate(yaml.safe_load((MODELS / "classifier" / "training.yaml").read_text()))
    torch.manual_seed(0)
    network = Classifier()
    ClassifierObjective(network, settings)(torch.rand(3, 2, 32, 32), torch.tensor([1])).backward()
    for layer in (network.descriptor, network.output):
        assert layer.weight.grad is not None
        assert layer.weight.grad.square().mean() > (settings.weight_decay * layer.weight.detach()).square().mean()


def test_monai_s_own_mean_is_half_of_the_paper_s_formula() -> None:
    """The trap that the focal loss of this project steps over."""
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    theirs = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=5.0, alpha=[0.25, 0.35])(logits, labels[:, None])
    ours = ClassFocalLoss((0.25, 0.35), 5.0)(logits, labels)
    assert float(ours) == pytest.approx(2 * float(theirs), rel=1e-5)
    terms = []
    for scores, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = softmax(scores)[label]
        terms.append(-(0.25, 0.35)[label] * (1 - p) ** 5 * math.log(p))
    assert float(ours) == pytest.approx(sum(terms) / 5, rel=1e-5)


def test_the_focal_loss_forgives_what_is_nearly_right() -> None:
    """Next to cross-entropy, a case that is right with 90 % weighs a hundred-thousandth at gamma 5."""
    logits = torch.tensor([[math.log(9.0), 0.0]])
    focal = ClassFocalLoss((1.0, 1.0), 5.0)(logits, torch.tensor([0]))
    assert float(focal) == pytest.approx(-math.log(0.9) * 0.1**5, rel=1e-3)


# --- Autoencoder


@pytest.mark.parametrize("prior", ["y", "xy", "standard_normal"])
@pytest.mark.parametrize("sigma", [1.0, 0.2])
def test_autoencoder_loss_is_reconstruction_and_divergence(prior: PriorInputs, sigma: float) -> None:
    network, labels = CVAE(16, prior), torch.tensor([1, 0, 1])
    slices = torch.rand(3, 2, 16, 16)
    with torch.no_grad():
        network.conditional.weight.mul_(20.0)  # so that sigmas differ from 1
        torch.manual_seed(7)
        loss = CVAEObjective(network, sigma)(slices, labels)
        q, p = network.encode(slices, labels)
        torch.manual_seed(7)
        image = network.decoder(q.mean + q.log_sigma.exp() * torch.randn(3, 16))
    total = 0.0
    for n in range(3):
        total += float((image[n, 0].double() - slices[n, 0].double()).square().sum()) / (2 * sigma**2)
        for i in range(16):
            sigma_q, sigma_p = math.exp(float(q.log_sigma[n, i])), math.exp(float(p.log_sigma[n, i]))
            gap = float(q.mean[n, i] - p.mean[n, i])
            total += math.log(sigma_p / sigma_q) + (sigma_q**2 + gap**2) / (2 * sigma_p**2) - 0.5
    assert loss.item() == pytest.approx(total / 3, rel=1e-4)


def test_the_autoencoder_reconstructs_the_ct_and_not_the_mask() -> None:
    """With the latent variable shut, the loss hangs on the CT through its squares alone."""
    network, labels = CVAE(16, "standard_normal"), torch.tensor([1])
    with torch.no_grad():
        for layer in (network.conditional, network.decoder.conv1):
            layer.weight.zero_()
            layer.bias.zero_()
    slices = torch.rand(1, 2, 16, 16)
    image = network(slices, labels).image
    expected = (image - slices[:, :1]).square().sum() / 2
    assert CVAEObjective(network, 1.0)(slices, labels).item() == pytest.approx(expected.item(), rel=1e-5)
