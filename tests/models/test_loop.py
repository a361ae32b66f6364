"""The training loop against a naive one, and exact repetition of what was interrupted anywhere."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from models.training.checkpoint import Checkpoint
from models.training.loop import Progress, Trained, fit, rate_at
from models.training.recipe import Item, Objective, Recipe
from models.training.settings import TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ROOT = Path(__file__).resolve().parents[2]
FloatArray = npt.NDArray[np.float64]
IDENTITY = '{"task": "tiny"}'


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads would wait for each other longer than such small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**changed: object) -> TrainingSettings:
    plain: dict[str, object] = {
        "epochs": 4,
        "batch": 2,
        "optimiser": "adam",
        "learning_rate": 0.02,
        "weight_decay": 0.0,
        "schedule": "constant",
        "averaging": 0.0,
        "clip_norm": None,
        "patience": None,
        "precision": "float32",
        "workers": 0,
        "seed": 5,
    }
    return TrainingSettings.model_validate(plain | changed)


def one_device(precision: str = "32-true") -> Fabric:
    from lightning_fabric import Fabric  # noqa: PLC0415 - processes that read ahead need not wait for it

    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


class Noisy(Objective):
    """Squared error of a network with dropout, under noise."""

    def __init__(self) -> None:
        layers = (nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        super().__init__(nn.Sequential(*layers))

    def forward(self, *item: Tensor) -> Tensor:
        inputs, wanted = item
        return (self.network(inputs + 0.1 * torch.randn_like(inputs)) - wanted).float().square().mean()


class Straight(Objective):
    """Squared error of a linear map."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 1))

    def forward(self, *item: Tensor) -> Tensor:
        inputs, wanted = item
        return (self.network(inputs) - wanted).square().mean()


class Plane(Recipe):
    """Points of a plane, five in an item; from item ``broken`` on they are no numbers."""

    def __init__(self, objective: Objective, broken: int | None = None) -> None:
        super().__init__(objective, steps=3, validation=3)
        self.broken = broken

    def _points(self, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        inputs = np.random.default_rng(seed).normal(0.3, 1.0, (5, 3)).astype(np.float32)
        wanted = inputs @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.7
        return torch.from_numpy(inputs), torch.from_numpy(wanted)

    def __getitem__(self, number: int, /) -> Item:
        inputs, wanted = self._points((number, 0))
        return inputs, wanted * math.nan if self.broken is not None and number >= self.broken else wanted

    def validation_item(self, index: int) -> Item:
        return self._points((index, 1))


def noisy(start: int = 0, **kind: Any) -> Plane:
    torch.manual_seed(start)
    return Plane(Noisy(), **kind)


def straight() -> Plane:
    torch.manual_seed(0)
    return Plane(Straight())


def trained(
    recipe: Recipe, chosen: TrainingSettings, folder: Path, report: Callable[[Progress], None] | None = None
) -> Trained:
    return fit(recipe, chosen, one_device(), Checkpoint(folder, IDENTITY), report=report or (lambda progress: None))


def assert_same(one: Trained, other: Trained) -> None:
    """Bit for bit."""
    assert one.history == other.history
    assert one.kept_epoch == other.kept_epoch
    assert set(one.weights) == set(other.weights)
    for name, tensor in one.weights.items():
        assert tensor.dtype == other.weights[name].dtype
        assert torch.equal(tensor, other.weights[name]), name


# --- Rates


@pytest.mark.parametrize("steps", [1, 2, 10, 37, 3000])
def test_the_cosine_rate_rises_to_the_learning_rate_and_falls_to_zero(steps: int) -> None:
    chosen = settings(schedule="cosine", learning_rate=0.8)
    rates = [rate_at(step, steps, chosen) for step in range(steps)]
    rising = max(1, round(0.1 * steps))
    assert rates[:rising] == pytest.approx([0.8 * (step + 1) / rising for step in range(rising)])
    falling = steps - rising
    assert rates[rising:] == pytest.approx([0.4 * (1 + math.cos(math.pi * k / falling)) for k in range(falling)])
    assert max(rates) == rates[rising - 1] == 0.8
    assert min(rates) > 0.0
    if steps > 2:
        assert all(a > b for a, b in zip(rates[rising:], rates[rising + 1 :], strict=False))
    if steps == 3000:
        assert rates[0] == pytest.approx(0.8 / 300)
        assert rates[-1] < 1e-6


def test_a_constant_rate_is_constant() -> None:
    assert {rate_at(step, 50, settings(learning_rate=0.3)) for step in range(50)} == {0.3}


# --- Against a naive training


def naive(recipe: Plane, chosen: TrainingSettings) -> tuple[FloatArray, list[tuple[float, float]]]:
    """Train a linear map by hand: return weights with the bias last, and the losses of each epoch."""
    first = recipe.objective.network.state_dict()
    weights = np.append(first["weight"].double().numpy().ravel(), float(first["bias"]))
    moment, square = np.zeros(4), np.zeros(4)
    average, history, total_steps = weights, [], chosen.epochs * recipe.steps

    def loss(item: Item, at: FloatArray) -> tuple[float, FloatArray]:
        inputs = np.column_stack([item[0].double().numpy(), np.ones(5)])
        rest = inputs @ at - item[1].double().numpy().ravel()
        return float(np.mean(rest**2)), 2 * inputs.T @ rest / 5

    for step in range(total_steps):
        if step % recipe.steps == 0:
            losses: list[float] = []
        items = [loss(recipe[step * chosen.batch + k], weights) for k in range(chosen.batch)]
        losses += [value for value, _ in items]
        gradient = np.mean([each for _, each in items], axis=0)
        if chosen.clip_norm is not None:
            gradient = gradient * min(1.0, chosen.clip_norm / np.linalg.norm(gradient))
        rate = rate_at(step, total_steps, chosen)
        if chosen.optimiser == "adamw":
            weights = weights * (1 - rate * chosen.weight_decay)
        else:
            gradient = gradient + chosen.weight_decay * weights
        moment = 0.9 * moment + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = moment / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        weights = weights - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        average = weights if step == 0 else chosen.averaging * average + (1 - chosen.averaging) * weights
        if step % recipe.steps == recipe.steps - 1:
            validation = [loss(recipe.validation_item(k), average)[0] for k in range(recipe.validation)]
            history.append((float(np.mean(losses)), float(np.mean(validation))))
    return average, history


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": 1, "epochs": 1},
        {"epochs": 1},
        {"batch": 3, "weight_decay": 0.3},
        {"optimiser": "adamw", "weight_decay": 0.3},
        {"schedule": "cosine", "averaging": 0.8},
        {"clip_norm": 0.5},
        {"clip_norm": 1e6, "batch": 1},
        {"optimiser": "adamw", "weight_decay": 0.1, "schedule": "cosine", "averaging": 0.5, "clip_norm": 2.0},
    ],
)
def test_a_training_is_that_of_the_textbook(changed: dict[str, object], tmp_path: Path) -> None:
    """Gradients are averaged over the items of a batch, clipped, and fed to Adam; the weights averaged."""
    chosen = settings(learning_rate=0.1, **changed)
    weights, history = naive(straight(), chosen)
    result = trained(straight(), chosen, tmp_path)
    found = torch.cat([result.weights["weight"].ravel(), result.weights["bias"]])
    np.testing.assert_allclose(found.numpy(), weights, rtol=1e-4, atol=1e-5)
    losses = [(row["training_loss"], row["validation_loss"]) for row in result.history]
    np.testing.assert_allclose(losses, history, rtol=1e-4)
    assert result.kept_epoch == len(result.history) == chosen.epochs


def test_the_cases_above_differ_from_each_other() -> None:
    """Else the comparison would not notice what is left out."""
    plain = naive(straight(), settings(learning_rate=0.1))[0]
    for changed in ({"weight_decay": 0.3}, {"averaging": 0.8}, {"schedule": "cosine"}, {"clip_norm": 0.5}):
        other = naive(straight(), settings(learning_rate=0.1, **changed))[0]
        assert np.abs(other - plain).max() > 1e-2


def test_it_learns(tmp_path: Path) -> None:
    result = trained(noisy(), settings(epochs=40), tmp_path)
    assert result.history[-1]["training_loss"] < 0.5 * result.history[0]["training_loss"]
    assert result.history[-1]["validation_loss"] < 0.2 * result.history[0]["validation_loss"]


def test_each_epoch_is_reported_as_it_is_recorded(tmp_path: Path) -> None:
    told: list[Progress] = []
    chosen = settings(schedule="cosine", patience=4)
    result = trained(noisy(), chosen, tmp_path, told.append)
    assert [(progress.epoch, progress.epochs) for progress in told] == [(epoch, 4) for epoch in range(1, 5)]
    for progress, row in zip(told, result.history, strict=True):
        assert (progress.training_loss, progress.validation_loss, progress.learning_rate) == tuple(row.values())
    assert [row["learning_rate"] for row in result.history] == [rate_at(k, 12, chosen) for k in (2, 5, 8, 11)]
    losses = [row["validation_loss"] for row in result.history]
    best = [loss < min(losses[:k], default=math.inf) for k, loss in enumerate(losses)]
    assert [progress.best for progress in told] == best


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_the_network_of_a_report_is_what_was_judged(averaging: float, tmp_path: Path) -> None:
    recipe = straight()
    judged: list[float] = []

    def report(progress: Progress) -> None:
        with torch.no_grad():
            items = [recipe.validation_item(k) for k in range(3)]
            terms = [float((progress.network(x) - y).square().mean()) for x, y in items]
        judged.append(sum(terms) / 3)

    result = trained(recipe, settings(averaging=averaging), tmp_path, report)
    assert judged == pytest.approx([row["validation_loss"] for row in result.history], rel=1e-5)


# --- Patience


class Scripted(Objective):
    """Its weight rises by one in each epoch; its loss in validation is what the script says for it."""

    def __init__(self, script: list[float]) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        nn.init.zeros_(self.network.weight)  # type: ignore[arg-type]
        self.script = script

    def forward(self, *item: Tensor) -> Tensor:
        epoch = self.network(item[0]).sum()
        return -epoch if self.training else torch.tensor(self.script[round(float(epoch)) - 1])


class One(Recipe):
    """A single step an epoch, on the number one."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective, steps=1, validation=1)

    def __getitem__(self, number: int, /) -> Item:
        return (torch.ones(1),)

    def validation_item(self, index: int) -> Item:
        return (torch.ones(1),)


SCRIPTS = {
    "falling": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0],
    "rising": [3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "equal": [4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
    "late": [5.0, 6.0, 7.0, 4.0, 8.0, 9.0],
    "again": [5.0, 6.0, 4.0, 6.0, 4.0, 3.0],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("patience", [1, 2, 3, 4, None])
def test_patience_keeps_the_best_and_stops_in_time(script: str, patience: int | None, tmp_path: Path) -> None:
    losses = SCRIPTS[script]
    best = done = 0
    for epoch in range(1, 7):
        if patience is not None and best and epoch - 1 - best >= patience:
            break
        done = epoch
        if not best or losses[epoch - 1] < losses[best - 1]:
            best = epoch
    chosen = settings(epochs=6, batch=1, learning_rate=1.0, patience=patience)
    result = trained(One(Scripted(losses)), chosen, tmp_path)
    assert [row["validation_loss"] for row in result.history] == losses[:done]
    assert result.kept_epoch == (done if patience is None else best)
    assert float(result.weights["weight"]) == pytest.approx(result.kept_epoch, rel=1e-5)
    again = trained(One(Scripted([])), chosen, tmp_path)  # it is done: nothing is trained, and nothing judged
    assert_same(again, result)


# --- Interruption


class Stopped(Exception):
    """Someone pulled the plug."""


RUNS = {
    "plain": settings(),
    "patience": settings(patience=2, learning_rate=0.3),
    "averaging": settings(averaging=0.8, schedule="cosine", optimiser="adamw", weight_decay=0.1, clip_norm=1.0),
    "averaging and patience": settings(averaging=0.8, patience=3, batch=3),
}


def stopped_after(epoch: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.epoch == epoch:
            raise Stopped

    return report


@pytest.mark.parametrize("run", RUNS)
def test_a_training_stopped_after_any_epoch_ends_as_if_it_had_not_been(run: str, tmp_path: Path) -> None:
    chosen = RUNS[run]
    whole = trained(noisy(), chosen, tmp_path / "whole")
    for epoch in range(1, len(whole.history) + 1):
        folder = tmp_path / str(epoch)
        with pytest.raises(Stopped):
            trained(noisy(), chosen, folder, stopped_after(epoch))
        told: list[Progress] = []
        torch.manual_seed(100 + epoch)
        other = noisy(start=100 + epoch)  # the weights come from the checkpoint alone
        assert_same(trained(other, chosen, folder, told.append), whole)
        assert [progress.epoch for progress in told] == list(range(epoch + 1, len(whole.history) + 1))
    for epoch in range(1, len(whole.history)):
        with pytest.raises(Stopped):
            trained(noisy(start=epoch - 1), chosen, tmp_path / "often", stopped_after(epoch))
    assert_same(trained(noisy(start=9), chosen, tmp_path / "often"), whole)


class Mortal(Noisy):
    """Ends at its call of a number in training."""

    def __init__(self, calls: int, end: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.end = calls, end

    def forward(self, *item: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
            if self.left < 0:
                self.end()
        return super().forward(*item)


def pull_the_plug() -> None:
    raise Stopped


@pytest.mark.parametrize("calls", [0, 5, 6, 7, 13, 23])
def test_a_training_stopped_within_an_epoch_ends_as_if_it_had_not_been(calls: int, tmp_path: Path) -> None:
    """An epoch has six items, in three steps."""
    chosen = RUNS["averaging"]
    whole = trained(noisy(), chosen, tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        trained(Plane(Mortal(calls, pull_the_plug)), chosen, tmp_path / "cut")
    assert (tmp_path / "cut").exists() == (calls >= 6)
    result = trained(noisy(start=0 if calls < 6 else 1), chosen, tmp_path / "cut")
    assert_same(result, whole)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: str) -> None:
    """Run in another process: die at the second item of the third epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained(Plane(Mortal(13, be_killed)), RUNS["averaging"], Path(folder))


def test_a_killed_process_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Also where its data are read ahead from then on."""
    chosen = RUNS["averaging"]
    whole = trained(noisy(), chosen, tmp_path / "whole")
    order = "import sys; from tests.models.test_loop import *; train_until_killed(sys.argv[1])"
    command = [sys.executable, "-c", order, str(tmp_path / "cut")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint.safetensors"]
    lines: list[str] = []
    result = fit(
        noisy(start=1),
        chosen.model_copy(update={"workers": 1}),
        one_device(),
        Checkpoint(tmp_path / "cut", IDENTITY),
        tell=lines.append,
    )
    assert lines == ["going on after epoch 2 of 4"]
    assert_same(result, whole)


def test_data_are_made_in_their_own_arithmetic_also_where_the_network_works_in_bfloat16(tmp_path: Path) -> None:
    class Watched(Plane):
        def __getitem__(self, number: int, /) -> Item:
            assert not torch.is_autocast_enabled("cpu")
            return super().__getitem__(number)

    torch.manual_seed(0)
    recipe = Watched(Noisy())
    fit(recipe, RUNS["averaging"], one_device("bf16-mixed"), Checkpoint(tmp_path, IDENTITY))


def test_a_training_in_bfloat16_goes_on_exactly_and_keeps_float32(tmp_path: Path) -> None:
    def run(folder: Path, report: Callable[[Progress], None] = lambda progress: None) -> Trained:
        checkpoint = Checkpoint(folder, IDENTITY)
        return fit(noisy(), RUNS["averaging"], one_device("bf16-mixed"), checkpoint, report=report)

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stopped_after(2))
    assert_same(run(tmp_path / "cut"), whole)
    assert {tensor.dtype for tensor in whole.weights.values()} == {torch.float32}
    exact = trained(noisy(), RUNS["averaging"], tmp_path / "exact")
    assert whole.history != exact.history


class Dice(Straight):
    """Writes down what chance it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.thrown: list[tuple[bool, float]] = []

    def forward(self, *item: Tensor) -> Tensor:
        self.thrown.append((self.training, float(torch.rand(()))))
        return super().forward(*item)


def test_each_item_has_a_chance_of_its_own_in_whatever_batch_it_is(tmp_path: Path) -> None:
    """In validation it is the same in every epoch."""
    thrown = []
    for batch in (1, 3):
        recipe = Plane(Dice())
        recipe.steps = 6 // batch
        trained(recipe, settings(batch=batch, epochs=2), tmp_path / str(batch))
        thrown.append(recipe.objective.thrown)
    assert thrown[0] == thrown[1]
    training, validation = ([value for mode, value in thrown[0] if mode == wanted] for wanted in (True, False))
    assert len(set(training)) == len(training) == 12
    assert validation[:3] == validation[3:]
    assert len({*training, *validation}) == 12 + 3


def test_the_seed_decides_and_no_other_state(tmp_path: Path) -> None:
    chosen = settings()
    first = trained(noisy(), chosen, tmp_path / "first")
    recipe = noisy()
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002 - the global generators must not matter
    assert_same(trained(recipe, chosen, tmp_path / "second"), first)
    other = trained(noisy(), settings(seed=6), tmp_path / "third")
    assert other.history != first.history


# --- What goes wrong


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("broken", [6, 11])
def test_no_numbers_in_the_data_end_a_training_whose_checkpoint_stays_good(
    broken: int, clip_norm: float | None, tmp_path: Path
) -> None:
    """At the first and at the last item of the second epoch."""
    chosen = settings(clip_norm=clip_norm)
    told: list[Progress] = []
    with pytest.raises(FloatingPointError, match="no longer finite") as caught:
        trained(noisy(broken=broken), chosen, tmp_path / "cut", told.append)
    assert "\n" not in str(caught.value)
    assert [progress.epoch for progress in told] == [1]
    whole = trained(noisy(), chosen, tmp_path / "whole")
    assert_same(trained(noisy(start=1), chosen, tmp_path / "cut"), whole)


class Cliff(Straight):
    """A loss that is finite where its gradient is not."""

    def forward(self, *item: Tensor) -> Tensor:
        return super().forward(*item) + (0.0 * self.network(item[0])).abs().sqrt().sum()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_ends_a_training(clip_norm: float | None, tmp_path: Path) -> None:
    """Where it is clipped at once, else with the loss that comes of it."""
    with pytest.raises(FloatingPointError, match="the loss" if clip_norm is None else "a gradient"):
        trained(Plane(Cliff()), settings(clip_norm=clip_norm), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rate_that_is_too_high_ends_a_training(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        trained(straight(), settings(learning_rate=1e30), tmp_path)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_cannot_be_divided_among_processes_is_refused(batch: int, tmp_path: Path) -> None:
    from lightning_fabric import Fabric  # noqa: PLC0415 - as above

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
    with pytest.raises(ValueError, match=f"a batch of {batch} cannot be divided among 2 processes"):
        fit(straight(), settings(batch=batch), fabric, Checkpoint(tmp_path, IDENTITY))
