"""One training, on one or several devices."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.utils.tensorboard import SummaryWriter

from app.cohort.cache import made_from
from app.console import quieten, tell
from app.outcome import RunFailed, UsageError
from app.supervision import die_with
from app.training.tasks import TASKS, Prepared, Task
from models.classifier.cvae import CVAE
from models.classifier.network import Classifier
from models.classifier.training import start_from_cvae
from models.precision import Device, resolve
from models.record import ModelUnavailable, code_digest, read_model
from models.store import load_network
from models.threads import granted_cores, use_granted_cores
from models.training.checkpoint import Checkpoint, CheckpointUnusable
from models.training.loop import Progress, Trained, fit
from models.training.settings import TrainingSettings

_OURS = re.compile(r"app\.outcome\.(UsageError|RunFailed): (.+)")
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # here, for processes tell of themselves as they start
_PICTURES = 20
"""About how often in a training pictures are drawn."""


@dataclass(frozen=True, slots=True)
class Training:
    """What is to be trained.

    Parameters
    ----------
    task : str
        A key of :data:`~app.training.tasks.TASKS`.
    settings : TrainingSettings
    training, validation : tuple of Prepared
        Disjoint by patient.
    states : Path
        A folder of :attr:`name` in it receives checkpoint and TensorBoard curves.
    start : Path, optional
        Model folder whose weights are trained on.
    cvae : Path, optional
        Model folder of the autoencoder whose encoder a classifier starts from.
    """

    task: str
    settings: TrainingSettings
    training: tuple[Prepared, ...]
    validation: tuple[Prepared, ...]
    states: Path
    start: Path | None = None
    cvae: Path | None = None

    @property
    def name(self) -> str:
        """Task and what it is made from: another name, another training."""
        return f"{self.task}-{hashlib.sha256(self.identity.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> Path:
        """Where its state is kept."""
        return self.states / self.name

    @property
    def identity(self) -> str:
        """What the result depends on, as JSON: a checkpoint of anything else is not gone on from."""
        data = [
            [(study.path.name, study.label, made_from(study.path)) for study in part]
            for part in (self.training, self.validation)
        ]
        parts = {
            "settings": self.settings.model_dump(exclude={"workers"}, mode="json"),
            "data": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
            "code": code_digest("models"),
            "start": _hash(self.start),
            "cvae": _hash(self.cvae),
        }
        return json.dumps({"task": self.task} | parts, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Devices:
    """Where to train.

    Parameters
    ----------
    accelerator : str
        ``auto``, ``cpu`` or ``cuda``.
    count : int
        Devices; on the CPU, processes.
    """

    accelerator: str = "auto"
    count: int = 1

    @property
    def cuda(self) -> bool:
        """Whether to train on GPUs."""
        return self.accelerator == "cuda" or (self.accelerator == "auto" and torch.cuda.is_available())


Finish = Callable[[Training, nn.Module, Trained, float], None]
"""Told at the end, in one process: the training, the trained network, what is known of it, and the seconds."""


def run_training(training: Training, devices: Devices, finish: Finish) -> None:
    """Train, or go on with a training, and hand the network to ``finish``.

    Parameters
    ----------
    training : Training
    devices : Devices
    finish : callable
        Of the top level of a module, or a part of one: it may be called in another process.

    Raises
    ------
    UsageError
        If weights to start from, a checkpoint or the devices cannot be used.
    RunFailed
        If the loss is no longer finite, something cannot be written, or a process died.
    """
    device: Device = "cuda" if devices.cuda else "cpu"
    arithmetic = resolve(training.settings.precision, device)
    use_granted_cores()
    with _quiet():
        fabric = Fabric(
            accelerator=device,
            devices=devices.count,
            strategy="ddp_spawn" if devices.count > 1 else "auto",
            precision="bf16-mixed" if arithmetic == "bfloat16" else "32-true",
        )
        try:
            fabric.launch(partial(_train, training=training, finish=finish, parent=os.getpid()))
        except ProcessRaisedException as error:
            raise _as_raised(str(error)) from error
        except ProcessExitedException as error:
            raise RunFailed("a training process died, as happens where memory runs out") from error


def _train(fabric: Fabric, training: Training, finish: Finish, parent: int) -> None:
    """Train in this process, one of several or the only one."""
    first = fabric.is_global_zero
    if fabric.world_size > 1:
        die_with(parent)
        quieten()
        if fabric.device.type == "cpu":
            torch.set_num_threads(max(1, granted_cores() // fabric.world_size))
    say = tell if first else _say_nothing
    task, settings = TASKS[training.task], training.settings
    torch.manual_seed(settings.seed)
    network = _network(task, training)
    recipe = task.recipe(network, settings, training.training, training.validation)
    start = time.monotonic()
    try:
        checkpoint = Checkpoint(training.folder, training.identity)
        if training.start is None and not checkpoint.there:  # whose weights would replace what is fitted
            recipe.fit_to_data()
        with _board(training.folder, first) as board:
            pictures = recipe.pictures
            report = _reporter(say, board, pictures, settings.epochs)
            trained = fit(recipe, settings, fabric, checkpoint, tell=say, report=report)
        if first:
            network.load_state_dict(trained.weights)
            trained = replace(trained, calibration=recipe.calibrate(network.eval()))
    except (CheckpointUnusable, ValueError) as error:
        raise UsageError(_last_line(error)) from error
    except (SafetensorError, FileNotFoundError) as error:
        raise RunFailed("a prepared study cannot be read any more: run again to prepare it anew") from error
    except FloatingPointError as error:
        raise RunFailed(f"{training.task}: {error}") from error
    except OSError as error:
        raise RunFailed(f"cannot write to {training.folder}: {error.strerror}") from error
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"{training.task}: the device has too little memory for patches or studies of this size"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RunFailed("a process that reads data died, as happens where memory runs out: --set workers=0") from error
    if first:
        finish(training, network.cpu(), trained, time.monotonic() - start)
    fabric.barrier()


def _network(task: Task, training: Training) -> nn.Module:
    """Build the network, with the weights that it starts from."""
    network = task.network(**task.built_with(training.settings))
    try:
        if training.start is not None:
            started, _ = load_network(training.start, task.network)
            network.load_state_dict(started.state_dict())
        elif training.cvae is not None:
            assert isinstance(network, Classifier)  # noqa: S101 - no other starts from an autoencoder
            start_from_cvae(network, load_network(training.cvae, CVAE)[0])
    except (ModelUnavailable, ValueError) as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        raise UsageError(f"the weights in {training.start} are of another network") from error
    return network.train()


def _reporter(
    say: Callable[[str], None],
    board: SummaryWriter | None,
    pictures: Callable[[nn.Module], Mapping[str, torch.Tensor]],
    epochs: int,
) -> Callable[[Progress], None]:
    """Return what tells a person of an epoch, and writes it to TensorBoard."""
    begun = time.monotonic()
    done = 0

    def report(progress: Progress) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - begun) / done * (epochs - progress.epoch) / 60.0
        losses = f"loss {progress.training_loss:.4f}, validation {progress.validation_loss:.4f}"
        mark = " *" if progress.best else ""
        say(f"epoch {progress.epoch}/{epochs}: {losses}{mark}, at most {left:.0f} min left")
        if board is None:
            return
        board.add_scalar("loss/training", progress.training_loss, progress.epoch)
        board.add_scalar("loss/validation", progress.validation_loss, progress.epoch)
        board.add_scalar("learning_rate", progress.learning_rate, progress.epoch)
        if progress.epoch % max(1, epochs // _PICTURES) == 0 or progress.epoch == epochs:
            training = progress.network.training
            progress.network.eval()
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                for title, image in pictures(progress.network).items():
                    board.add_image(title, image.clamp(0.0, 1.0), progress.epoch, dataformats="HW")
            progress.network.train(training)
        board.flush()

    return report


@contextmanager
def _board(folder: Path, wanted: bool) -> Iterator[SummaryWriter | None]:
    if not wanted:
        yield None
        return
    board = SummaryWriter(str(folder / "tensorboard"))
    try:
        yield board
    finally:
        board.close()


def _hash(folder: Path | None) -> str | None:
    """Return the hash of a model's weights."""
    if folder is None:
        return None
    try:
        return read_model(folder)[0].sha256
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error


def _as_raised(trace: str) -> Exception:
    """Return the error that ended another process, from its trace."""
    found = _OURS.findall(trace)
    if not found:
        return RunFailed("a training process failed; COVID_CT_DEBUG=1 tells more")
    kind, line = found[-1]
    return UsageError(line) if kind == "UsageError" else RunFailed(line)


def _last_line(error: Exception) -> str:
    """Return what an error says; one of a process that reads data says more than that."""
    lines = str(error).strip().splitlines() or [f"unexpected {type(error).__name__}"]
    return lines[-1].removeprefix(f"{type(error).__name__}: ")


def _say_nothing(line: str) -> None:
    pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the trainer says of its environment."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning_fabric.*")
        yield
