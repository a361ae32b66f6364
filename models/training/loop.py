"""The training loop, the same for all recipes: exact to repeat, to take up again, and to divide among processes.

Each item of a step passes through the network by itself, with random numbers of its own, and the gradients are
averaged. So it does not matter how many processes share the items of a step, nor where a run was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from models.training.checkpoint import Checkpoint, Stage, State
from models.training.recipe import Item, Objective, Recipe, seed_of
from models.training.settings import TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WARM_UP = 0.1
"""Share of the steps in which the rate of the cosine schedule rises."""
_QUIET = 30.0
"""Seconds after which a line of progress is due within an epoch."""


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after an epoch, counted from 1; losses are means over items."""

    epoch: int
    epochs: int
    training_loss: float
    validation_loss: float
    best: bool
    learning_rate: float
    network: nn.Module


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gives: the weights that are kept, the losses of each epoch, and how they are calibrated."""

    weights: State
    history: list[dict[str, float]]
    kept_epoch: int
    calibration: Mapping[str, float] = field(default_factory=dict)


Tell = Callable[[str], None]


def fit(
    recipe: Recipe,
    settings: TrainingSettings,
    fabric: Fabric,
    checkpoint: Checkpoint,
    *,
    tell: Tell = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Train, or go on with a training, to its end.

    Parameters
    ----------
    recipe : Recipe
        Network, loss and data.
    settings : TrainingSettings
        How.
    fabric : Fabric
        On which devices, and in which arithmetic; launched.
    checkpoint : Checkpoint
        Where the state is kept after each epoch, and gone on from where it is there.
    tell : callable
        Receives a line of progress now and then.
    report : callable
        Told after each epoch.

    Raises
    ------
    ValueError
        If the items of a step cannot be divided among the processes.
    CheckpointUnusable
        If the checkpoint is damaged or of another run.
    FloatingPointError
        If a loss or gradient is no longer finite.
    """
    if settings.batch % fabric.world_size:
        raise ValueError(f"a batch of {settings.batch} cannot be divided among {fabric.world_size} processes")
    run = _Run(recipe, settings, fabric, tell)
    stage = checkpoint.load(run.modules, run.optimiser)
    if stage.history:
        tell(f"going on after epoch {len(stage.history)} of {settings.epochs}")
    batches = iter(run.batches(len(stage.history)))
    while not _finished(stage, settings):
        run.epoch(len(stage.history), batches, stage)
        if fabric.is_global_zero:
            checkpoint.save(run.modules, run.optimiser, stage)
        fabric.barrier()
        last = stage.history[-1]
        epoch = len(stage.history)
        losses = last["training_loss"], last["validation_loss"]
        best = stage.best_epoch == epoch
        report(Progress(epoch, settings.epochs, *losses, best, last["learning_rate"], run.judged.network))
    kept = stage.best if settings.patience else _copy(run.judged.network)
    return Trained(kept, stage.history, stage.best_epoch if settings.patience else len(stage.history))


def rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step, from 0, of so many."""
    if settings.schedule == "constant":
        return settings.learning_rate
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _finished(stage: Stage, settings: TrainingSettings) -> bool:
    done = len(stage.history)
    impatient = settings.patience is not None and done - stage.best_epoch >= settings.patience
    return done >= settings.epochs or impatient


class _Run:
    """A training in this process."""

    def __init__(self, recipe: Recipe, settings: TrainingSettings, fabric: Fabric, tell: Tell) -> None:
        self._recipe, self._settings, self._fabric, self._tell = recipe, settings, fabric, tell
        kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
        rate, decay = settings.learning_rate, settings.weight_decay
        optimiser = kind(recipe.objective.parameters(), lr=rate, weight_decay=decay)
        self._shared: Any
        self.optimiser: Any
        self._shared, self.optimiser = fabric.setup(recipe.objective, optimiser)
        self.modules: dict[str, nn.Module] = {"objective": recipe.objective}
        if settings.averaging:
            decayed = get_ema_multi_avg_fn(settings.averaging)  # type: ignore[no-untyped-call]
            self.modules["average"] = AveragedModel(recipe.objective, multi_avg_fn=decayed)

    @property
    def judged(self) -> Objective:
        """What is validated and kept: the averaged network where there is one."""
        average = self.modules.get("average")
        judged = self._recipe.objective if average is None else average.module
        assert isinstance(judged, Objective)  # noqa: S101 - a copy of the recipe's
        return judged

    def batches(self, epoch: int) -> Iterable[Item]:
        """Load this process's items from the first of an epoch to the last of all."""
        steps, batch = self._recipe.steps, self._settings.batch
        numbers = range(epoch * steps * batch, self._settings.epochs * steps * batch)
        mine = numbers[self._fabric.global_rank :: self._fabric.world_size]
        workers = self._settings.workers
        context = "spawn" if workers else None  # a fork would inherit the threads of the arithmetic
        loader = DataLoader(
            self._recipe, batch_size=None, sampler=mine, num_workers=workers, multiprocessing_context=context
        )
        loaded: Any = self._fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        return cast(Iterable[Item], loaded)

    def epoch(self, epoch: int, batches: Iterator[Item], stage: Stage) -> None:
        """Train for one epoch, then validate, and write it all into ``stage``."""
        steps = self._recipe.steps
        total, told = 0.0, time.monotonic()
        self._shared.train()
        for step in range(steps):
            rate = rate_at(epoch * steps + step, self._settings.epochs * steps, self._settings)
            total += self._step((epoch * steps + step) * self._settings.batch, rate, batches)
            if time.monotonic() - told > _QUIET:
                told = time.monotonic()
                self._tell(f"epoch {epoch + 1}/{self._settings.epochs}, step {step + 1}/{steps}")
        training_loss = total / steps
        judged = self.judged
        validation_loss = self._validate(judged)
        if validation_loss < stage.best_loss:
            stage.best_loss, stage.best_epoch = validation_loss, epoch + 1
            stage.best = _copy(judged.network) if self._settings.patience else {}
        stage.history.append(
            {"training_loss": training_loss, "validation_loss": validation_loss, "learning_rate": rate}
        )

    def _step(self, first: int, rate: float, batches: Iterator[Item]) -> float:
        """Take one step on the items from number ``first``; return the mean loss over all processes."""
        fabric, settings = self._fabric, self._settings
        mine = range(first, first + settings.batch)[fabric.global_rank :: fabric.world_size]
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        total = torch.zeros((), device=fabric.device)
        for number in mine:
            item = next(batches)
            with fabric.no_backward_sync(self._shared, enabled=number != mine[-1]), _seeded(settings.seed, number):
                loss = self._shared(*item)
                fabric.backward(loss / len(mine))  # the processes' gradients are averaged
            total += loss.detach()
        mean = self._mean(total, settings.batch)
        if settings.clip_norm is not None:
            norm = fabric.clip_gradients(
                self._shared, self.optimiser, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
            if norm is None or not norm.isfinite():
                raise FloatingPointError("a gradient is no longer finite: lower the learning rate")
        self.optimiser.step()
        average = self.modules.get("average")
        if isinstance(average, AveragedModel):
            average.update_parameters(self._recipe.objective)
        return mean

    def _mean(self, total: Tensor, count: int) -> float:
        """Return the mean over the items of all processes.

        Raises
        ------
        FloatingPointError
            If it is not finite.
        """
        summed = self._fabric.all_reduce(total, reduce_op="sum")
        assert isinstance(summed, Tensor)  # noqa: S101 - as given
        value = float(summed) / count
        if not math.isfinite(value):
            raise FloatingPointError("the loss is no longer finite: lower the learning rate")
        return value

    @torch.no_grad()
    def _validate(self, objective: Objective) -> float:
        fabric, count = self._fabric, self._recipe.validation
        objective.eval()
        total = torch.zeros((), device=fabric.device)
        for index in range(fabric.global_rank, count, fabric.world_size):
            item = tuple(part.to(fabric.device) for part in self._recipe.validation_item(index))
            with fabric.autocast(), _seeded(self._settings.seed, index, 1):
                total += objective(*item)
        return self._mean(total, count)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed all that is random on any device in the block."""
    torch.manual_seed(seed_of(*numbers))
    yield


def _copy(module: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
