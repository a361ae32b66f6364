"""Training of the autoencoder and of the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from models.classifier.losses import ClassFocalLoss
from models.classifier.network import Classifier, GatedEncoder
from models.classifier.training import (
    ClassifierSettings,
    CVAESettings,
    Progress,
    Study,
    resized_slices,
    train_classifier,
    train_cvae,
)


class Blobs:
    """Studies whose positives hold a bright lesion; counts how often each is read."""

    def __init__(self, count: int, seed: int, slices: int = 4) -> None:
        self.reads = [0] * count
        self._seed, self._slices = seed, slices

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int, /) -> Study:
        if not 0 <= index < len(self):
            raise IndexError
        self.reads[index] += 1
        generator = torch.Generator().manual_seed(self._seed * 1000 + index)
        slices = torch.zeros(self._slices, 2, 24, 24)
        slices[:, 0, 4:20, 4:20] = 0.2 + 0.1 * torch.rand(self._slices, 16, 16, generator=generator)
        if index % 2:
            slices[:, 0, 8:14, 8:14] = 0.8
            slices[:, 1, 8:14, 8:14] = 1.0
        return slices, index % 2


def focal(state: dict[str, Tensor], studies: Blobs) -> float:
    network, loss = Classifier(), ClassFocalLoss()
    network.load_state_dict(state)
    with torch.inference_mode():
        terms = [
            float(loss(network(studies[index][0])[None], torch.tensor([studies[index][1]])))
            for index in range(len(studies))
        ]
    return sum(terms) / len(terms)


def test_the_paper_s_choices_are_the_defaults() -> None:
    cvae, classifier = CVAESettings(), ClassifierSettings()
    assert (cvae.epochs, cvae.learning_rate, cvae.prior, cvae.size) == (200, 5e-3, "y", 128)
    assert (classifier.epochs, classifier.learning_rate, classifier.weight_decay) == (200, 1e-5, 1e-5)
    assert (classifier.class_weights, classifier.gamma) == ((0.25, 0.35), 5.0)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": -1.0}, {"patience": 0}, {"rate": 1e-3}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ClassifierSettings(**wrong)  # type: ignore[arg-type]


def test_the_autoencoder_learns_and_gives_its_encoder(tmp_path: Path) -> None:
    told: list[Progress] = []
    settings = CVAESettings(epochs=8, size=16, slices_per_study=2, studies_per_step=2)
    state = train_cvae(Blobs(6, 0), settings, report=told.append, checkpoints=tmp_path)
    assert [progress.epoch for progress in told] == list(range(1, 9))
    assert told[-1].training_loss < 0.7 * told[0].training_loss
    GatedEncoder().load_state_dict(state)
    saved = load_file(tmp_path / "encoder.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_the_classifier_learns_to_tell_new_studies_apart() -> None:
    settings = ClassifierSettings(epochs=10, learning_rate=1e-3, slices_per_study=2)
    told: list[Progress] = []
    state = train_classifier(Blobs(8, 1), Blobs(4, 2), None, settings, report=told.append)
    network = Classifier()
    network.load_state_dict(state)
    test = Blobs(6, 3)
    with torch.inference_mode():
        called = [int(network(test[index][0]).argmax()) for index in range(6)]
    assert called == [0, 1, 0, 1, 0, 1]
    assert told[-1].training_loss < 0.2 * told[0].training_loss


def test_the_best_validation_weights_are_returned_and_saved(tmp_path: Path) -> None:
    validation = Blobs(4, 2)
    told: list[Progress] = []
    settings = ClassifierSettings(epochs=6, learning_rate=5e-3, patience=6)  # a rate that overshoots
    state = train_classifier(Blobs(4, 1), validation, None, settings, report=told.append, checkpoints=tmp_path)
    losses = [progress.validation_loss for progress in told if progress.validation_loss is not None]
    assert len(losses) == 6
    assert focal(state, validation) == pytest.approx(min(losses), rel=1e-4)
    assert [progress.best for progress in told] == [loss < min(losses[:i], default=9) for i, loss in enumerate(losses)]
    saved = load_file(tmp_path / "classifier.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


def test_training_stops_when_validation_no_longer_improves() -> None:
    class Flipped(Blobs):
        """Validation that says the opposite: it can only get worse."""

        def __getitem__(self, index: int, /) -> Study:
            slices, label = super().__getitem__(index)
            return slices, 1 - label

    told: list[Progress] = []
    settings = ClassifierSettings(epochs=40, learning_rate=1e-3, patience=3)
    train_classifier(Blobs(4, 1), Flipped(4, 1), None, settings, report=told.append)
    best = max(progress.epoch for progress in told if progress.best)
    assert told[-1].epoch == best + 3 < 40


def test_training_starts_from_the_given_encoder() -> None:
    encoder = GatedEncoder().state_dict()
    settings = ClassifierSettings(epochs=1, learning_rate=1e-9)
    state = train_classifier(Blobs(2, 1), Blobs(2, 2), encoder, settings)
    for name, tensor in encoder.items():
        torch.testing.assert_close(state[f"encoder.{name}"], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_seed_decides_everything_and_leaves_nothing_behind(bfloat16: bool) -> None:
    cvae = CVAESettings(epochs=2, size=16, slices_per_study=2, bfloat16=bfloat16)
    classifier = ClassifierSettings(epochs=2, slices_per_study=2, bfloat16=bfloat16)
    outcomes: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(len(outcomes))
        before = torch.random.get_rng_state()
        encoder = train_cvae(Blobs(5, 0), cvae)
        outcomes.append(train_classifier(Blobs(5, 0), Blobs(2, 1), encoder, classifier))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_each_epoch_reads_each_study_once() -> None:
    training, validation = Blobs(5, 1), Blobs(2, 2)
    train_classifier(training, validation, None, ClassifierSettings(epochs=3, studies_per_step=2))
    assert training.reads == [3] * 5
    assert validation.reads == [3] * 2


def test_no_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="no studies to train on"):
        train_cvae(Blobs(0, 0), CVAESettings(size=16))
    with pytest.raises(ValueError, match="no studies to validate with"):
        train_classifier(Blobs(2, 0), Blobs(0, 0), None, ClassifierSettings())


def test_a_loss_that_explodes_is_told() -> None:
    class Broken(Blobs):
        def __getitem__(self, index: int, /) -> Study:
            slices, label = super().__getitem__(index)
            return slices * float("inf"), label

    with pytest.raises(FloatingPointError, match="no longer finite"):
        train_cvae(Broken(2, 0), CVAESettings(size=16))


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
