"""Recipes of the autoencoder and of the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from safetensors.torch import save_file

from app.training.configuration import load_training_settings
from app.training.tasks import TASKS
from models.classifier.cvae import CVAE
from models.classifier.network import Classifier
from models.classifier.studies import CT, LABELS, LESION, LUNG, PreparedStudy
from models.classifier.training import (
    ClassifierRecipe,
    ClassifierSettings,
    CVAERecipe,
    CVAESettings,
    resized_slices,
    start_from_cvae,
)
from models.training.checkpoint import Checkpoint
from models.training.loop import Trained, fit
from models.training.recipe import Recipe

CPU = {"workers": 0, "precision": "float32"}


def settings(task: str, **changes: Any) -> Any:
    """Recommended settings with changes."""
    recommended = load_training_settings(TASKS[task].settings, TASKS[task].recommended)
    return recommended.model_validate(recommended.model_dump() | CPU | changes)


def studies(folder: Path, count: int, seed: int, slices: int = 4) -> list[PreparedStudy]:
    """Write studies whose positives hold a bright lesion."""
    folder.mkdir(exist_ok=True)
    written = []
    for index in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        ct, labels = torch.zeros(slices, 24, 24), torch.zeros(slices, 24, 24, dtype=torch.uint8)
        ct[:, 4:20, 4:20] = 0.2 + 0.1 * torch.rand(slices, 16, 16, generator=generator)
        labels[:, 4:20, 4:20] = LUNG
        if index % 2:
            ct[:, 8:14, 8:14] = 0.8
            labels[:, 8:14, 8:14] |= LESION
        path = folder / f"{seed}-{index}.safetensors"
        save_file({CT: ct.half(), LABELS: labels}, path)
        written.append(PreparedStudy(path, index % 2))
    return written


def trained(recipe: Recipe, chosen: Any, folder: Path) -> Trained:
    return fit(recipe, chosen, Fabric(accelerator="cpu", devices=1), Checkpoint(folder, "{}"))


def classifier_on(folder: Path, chosen: ClassifierSettings, start: CVAE | None = None) -> ClassifierRecipe:
    torch.manual_seed(0)
    network = Classifier(chosen.in_plane, chosen.side_branch)
    if start is not None:
        start_from_cvae(network, start)
    return ClassifierRecipe(network, chosen, studies(folder, 8, 1), studies(folder, 4, 2))


def test_the_paper_s_choices_are_recommended() -> None:
    cvae, classifier = settings("cvae"), settings("classifier")
    assert isinstance(cvae, CVAESettings)
    assert isinstance(classifier, ClassifierSettings)
    assert (cvae.optimiser, cvae.epochs, cvae.learning_rate, cvae.prior, cvae.size) == ("adam", 200, 5e-3, "y", 128)
    assert (classifier.optimiser, classifier.epochs, classifier.learning_rate) == ("adam", 200, 1e-5)
    assert (classifier.weight_decay, classifier.class_weights, classifier.gamma) == (1e-5, (0.25, 0.35), 5.0)
    assert classifier.patience is not None
    assert classifier.slices_per_study is None
    assert classifier.initial == "cvae"


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"learning_rate": -1.0}, {"patience": 0}, {"rate": 1e-3}, {"in_plane": 8}]
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        settings("classifier", **wrong)


def test_slices_are_read_as_they_were_prepared(tmp_path: Path) -> None:
    ct = torch.rand(3, 8, 8).half()
    labels = torch.randint(0, 4, (3, 8, 8), dtype=torch.uint8)
    save_file({CT: ct, LABELS: labels}, tmp_path / "s.safetensors")
    slices = PreparedStudy(tmp_path / "s.safetensors", 1).slices()
    assert slices.dtype == torch.float32
    torch.testing.assert_close(slices[:, 0], ct.float(), rtol=0, atol=0)
    naive = [[[[float(v & bit > 0) for v in row] for row in plane] for plane in labels.tolist()] for bit in (2, 1)]
    torch.testing.assert_close(slices[:, 1:], torch.tensor(naive).transpose(0, 1), rtol=0, atol=0)


def test_each_epoch_has_each_study_once_in_a_new_order(tmp_path: Path) -> None:
    training = studies(tmp_path, 6, 1)
    for index, study in enumerate(training):  # a mark by which an item tells where it is from
        save_file({CT: torch.full((2, 24, 24), index / 8).half(), LABELS: torch.zeros(2, 24, 24).byte()}, study.path)
    recipe = ClassifierRecipe(Classifier(), settings("classifier", batch=3), training, training)
    assert recipe.steps == 2
    orders = [[round(float(recipe[6 * epoch + k][0][0, 0, 0, 0]) * 8) for k in range(6)] for epoch in range(4)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_a_last_step_that_is_not_full_takes_studies_again(tmp_path: Path) -> None:
    training = studies(tmp_path, 5, 1)
    recipe = ClassifierRecipe(Classifier(), settings("classifier", batch=2), training, training)
    assert recipe.steps == 3
    labels = [int(recipe[number][1]) for number in range(6)]
    assert sum(labels) in (2, 3)


def test_a_subset_of_slices_is_drawn_without_repetition(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    ct = torch.arange(10.0)[:, None, None].expand(10, 8, 8) / 16
    save_file({CT: ct.half().contiguous(), LABELS: torch.zeros(10, 8, 8).byte()}, path)
    training = [PreparedStudy(path, 1)]
    chosen = settings("classifier", batch=1, slices_per_study=4)
    recipe = ClassifierRecipe(Classifier(), chosen, training, training)
    drawn = [(recipe[number][0][:, 0, 0, 0] * 16).tolist() for number in range(8)]
    assert all(each == sorted(set(each)) and len(each) == 4 for each in drawn), "in the order in which they lie"
    assert len(set(map(tuple, drawn))) > 3
    assert len(recipe.validation_item(0)[0]) == 10


def whole_studies(task: str, made: Sequence[PreparedStudy], **changes: object) -> Recipe:
    """A recipe that takes all slices of one study at each step."""
    size = {"size": 24} if task == "cvae" else {}
    chosen = settings(task, batch=1, slices_per_study=None, **size, **changes)
    network = TASKS[task].network(**TASKS[task].built_with(chosen))
    return (ClassifierRecipe if task == "classifier" else CVAERecipe)(network, chosen, made, made)


@pytest.mark.parametrize("task", ["classifier", "cvae"])
def test_given_masks_are_learned_from_with_errors_and_validated_on_as_they_are(task: str, tmp_path: Path) -> None:
    made = studies(tmp_path, 2, 1)

    def recipe(masks: str) -> Recipe:
        return whole_studies(task, made, masks=masks)

    true = {int(study.label): study.slices()[:, :2] for study in made}
    for masks in ("found", "given"):
        drawn = [recipe(masks)[number] for number in range(8)]
        varied = [bool((slices[:, 1] != true[int(label[0])][:, 1]).any()) for slices, label in drawn if int(label[0])]
        assert len(varied) == 4
        assert any(varied) == (masks == "given")
        for slices, label in drawn:
            torch.testing.assert_close(slices[:, 0], true[int(label[0])][:, 0], rtol=0, atol=0)
        for index, study in enumerate(made):
            torch.testing.assert_close(recipe(masks).validation_item(index)[0], true[study.label], rtol=0, atol=0)


@pytest.mark.parametrize("task", ["classifier", "cvae"])
def test_slices_are_varied_where_wanted_but_never_to_validate(task: str, tmp_path: Path) -> None:
    made = studies(tmp_path, 2, 1)

    def recipe(augment: bool) -> Recipe:
        return whole_studies(task, made, augment=augment)

    for number in range(4):
        plain, varied = (recipe(augment)[number][0] for augment in (False, True))
        assert not torch.equal(plain[:, 0], varied[:, 0])
        torch.testing.assert_close(recipe(True)[number][0], varied, rtol=0, atol=0)
    for index in range(2):
        plain, varied = (recipe(augment).validation_item(index)[0] for augment in (False, True))
        torch.testing.assert_close(plain, varied, rtol=0, atol=0)


def test_some_slices_of_a_study_are_read_as_all_are(tmp_path: Path) -> None:
    study = studies(tmp_path, 1, 3)[0]
    every = study.slices()
    assert len(study) == len(every)
    torch.testing.assert_close(study.slices([0, 2, len(every) - 1]), every[[0, 2, -1]], rtol=0, atol=0)


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    chosen = settings("cvae", epochs=8, size=16, slices_per_study=2, batch=2)
    torch.manual_seed(0)
    recipe = CVAERecipe(CVAE(16), chosen, studies(tmp_path, 6, 0), studies(tmp_path, 4, 5))
    history = trained(recipe, chosen, tmp_path / "state").history
    assert history[-1]["training_loss"] < 0.7 * history[0]["training_loss"]
    assert history[-1]["validation_loss"] < 0.8 * history[0]["validation_loss"]


@pytest.mark.parametrize("prior", ["y", "xy", "standard_normal"])
def test_pictures_show_slices_above_their_reconstructions(prior: str, tmp_path: Path) -> None:
    chosen = settings("cvae", size=16, prior=prior)
    network = CVAE(16, prior)  # type: ignore[arg-type]
    recipe = CVAERecipe(network, chosen, studies(tmp_path, 2, 0), studies(tmp_path, 2, 5, slices=9))
    pictures = recipe.pictures(network)
    assert set(pictures) == {"reconstructions"} | ({"from_label"} if prior == "y" else set())
    assert all(picture.shape == (32, 64) for picture in pictures.values())
    originals = recipe.validation_item(0)[0][[1, 3, 4, 6], 0]
    torch.testing.assert_close(pictures["reconstructions"][:16], torch.cat(list(originals), dim=1))


@pytest.mark.parametrize("side_branch", [True, False])
def test_the_classifier_learns_to_tell_new_studies_apart(side_branch: bool, tmp_path: Path) -> None:
    chosen = settings("classifier", epochs=12, learning_rate=1e-3, slices_per_study=2, side_branch=side_branch)
    result = trained(classifier_on(tmp_path, chosen), chosen, tmp_path / "state")
    network = Classifier(side_branch=side_branch)
    network.load_state_dict(result.weights)
    with torch.inference_mode():
        called = [int(network(study.slices()[:, :2]).argmax()) for study in studies(tmp_path, 6, 3)]
    assert called == [0, 1, 0, 1, 0, 1]


def test_the_encoder_of_the_autoencoder_is_taken_over_exactly(tmp_path: Path) -> None:
    torch.manual_seed(3)
    cvae, network = CVAE(16), Classifier()
    others = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("encoder.")}
    start_from_cvae(network, cvae)
    state = network.state_dict()
    for name, tensor in cvae.encoder.state_dict().items():
        torch.testing.assert_close(state[f"encoder.{name}"], tensor, rtol=0, atol=0)
    assert len(cvae.encoder.state_dict()) == 12
    assert all(torch.equal(state[name], value) for name, value in others.items())


def test_an_encoder_of_another_kind_is_refused() -> None:
    for one, other in ((True, False), (False, True)):
        with pytest.raises(ValueError, match="side branch"):
            start_from_cvae(Classifier(side_branch=one), CVAE(16, side_branch=other))


def test_without_a_side_branch_the_mask_changes_nothing() -> None:
    torch.manual_seed(0)
    network, slices = Classifier(side_branch=False), torch.rand(3, 2, 24, 24)
    other = slices.clone()
    other[:, 1] = torch.rand(3, 24, 24)
    torch.testing.assert_close(network(slices), network(other), rtol=0, atol=0)
    assert sum(p.numel() for p in network.encoder.parameters()) == 23_552


def test_resizing_averages_the_ct_and_keeps_the_mask_binary() -> None:
    slices = torch.zeros(1, 2, 32, 32)
    slices[0, 0] = torch.linspace(0, 1, 32)
    slices[0, 1, 8:24, 10:20] = 1.0
    resized = resized_slices(slices, 16)
    columns = slices[0, 0, 0].reshape(16, 2).mean(1)
    torch.testing.assert_close(resized[0, 0, 5, 2:-2], columns[2:-2])
    expected = torch.zeros(16, 16)
    expected[4:12, 5:10] = 1.0
    torch.testing.assert_close(resized[0, 1], expected)
    assert resized_slices(slices, 32) is slices


def calibrated(folder: Path, **changes: Any) -> tuple[ClassifierRecipe, Classifier, Classifier, Mapping[str, float]]:
    """Learn a little, then calibrate: the recipe, the network before and after, and what was found."""
    chosen = settings("classifier", epochs=2, learning_rate=1e-4, slices_per_study=2, **changes)
    recipe = classifier_on(folder, chosen)
    weights = trained(recipe, chosen, folder / "state").weights
    before, after = Classifier(), Classifier()
    for network in (before, after):
        network.load_state_dict(weights)
    return recipe, before, after, recipe.calibrate(after)


def test_calibration_makes_the_validation_labels_likelier_and_keeps_their_order(tmp_path: Path) -> None:
    recipe, before, after, found = calibrated(tmp_path)
    assert set(found) == {"slope", "offset"}
    items = [recipe.validation_item(index) for index in range(recipe.validation)]
    odds = torch.tensor([[net(slices).diff().item() for slices, _ in items] for net in (before, after)])
    torch.testing.assert_close(odds[1], found["slope"] * odds[0] + found["offset"], rtol=1e-3, atol=1e-3)
    assert odds[0].argsort().tolist() == odds[1].argsort().tolist()
    labels = torch.cat([label for _, label in items]).float()
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(row, labels) for row in odds]
    assert losses[1] < losses[0]


def test_calibration_can_be_left_out(tmp_path: Path) -> None:
    _, before, after, found = calibrated(tmp_path, calibrate=False)
    assert found == {}
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
