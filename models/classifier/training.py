"""Training of the autoencoder and of the classifier.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 5 (implementation details): Adam, focal loss, weight decay
and early stopping. What the paper leaves open is a setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.classifier.cvae import CVAE, PriorInputs
from models.classifier.losses import CLASS_WEIGHTS, GAMMA, ClassFocalLoss
from models.classifier.network import Classifier

Study = tuple[Tensor, int]
"""Slices (n, 2, H, W), float32 in [0, 1] (CT, lesion mask), and label: 0 negative, 1 positive."""
State = dict[str, Tensor]
HALF_COVERED = 0.5


class Studies(Protocol):
    """Studies by index; each is asked for when it is needed, so they may be read lazily."""

    def __len__(self) -> int:
        """Count the studies."""
        ...

    def __getitem__(self, index: int, /) -> Study:
        """Return one study."""
        ...


class TrainingSettings(BaseModel):
    """What both trainings share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 200
    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.0, ge=0.0)
    studies_per_step: PositiveInt = Field(
        default=4, description="gradients are averaged over these, one study at a time"
    )
    slices_per_study: PositiveInt | None = Field(
        default=None, description="random subset at each step; all where absent"
    )
    bfloat16: bool = Field(default=False, description="convolutions in bfloat16 (automatic mixed precision)")
    seed: int = 0


class CVAESettings(TrainingSettings):
    """Training of the autoencoder; the defaults for epochs and rate are the paper's."""

    learning_rate: PositiveFloat = 5e-3
    slices_per_study: PositiveInt | None = 16
    size: PositiveInt = Field(default=128, description="rows and columns of its slices")
    prior: PriorInputs = "y"
    sigma: PositiveFloat = Field(default=1.0, description="fixed standard deviation of the generative distribution")


class ClassifierSettings(TrainingSettings):
    """Training of the classifier; the defaults for epochs, rate, decay and focal loss are the paper's."""

    learning_rate: PositiveFloat = 1e-5
    weight_decay: float = Field(default=1e-5, ge=0.0)
    patience: PositiveInt = Field(default=20, description="epochs without a better validation loss before stopping")
    class_weights: tuple[float, float] = CLASS_WEIGHTS
    gamma: float = Field(default=GAMMA, ge=0.0)
    validation_chunk: PositiveInt = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a training after an epoch, counted from 1; losses are means over studies."""

    epoch: int
    epochs: int
    training_loss: float
    validation_loss: float | None = None
    best: bool = True


Report = Callable[[Progress], None]


def train_cvae(
    studies: Studies,
    settings: CVAESettings,
    *,
    device: str = "cpu",
    report: Report = lambda progress: None,
    checkpoints: Path | None = None,
) -> State:
    """Train the autoencoder and return the state of its gated encoder.

    Parameters
    ----------
    studies : Studies
        Their slices are resized to the autoencoder's fixed size here.
    settings : CVAESettings
        All choices.
    device : str
        Where to train.
    report : callable
        Told after each epoch.
    checkpoints : Path, optional
        Folder that receives ``encoder.safetensors`` after each epoch.

    Returns
    -------
    dict of str to Tensor
        State of a :class:`~models.classifier.network.GatedEncoder`, on the CPU.

    Raises
    ------
    ValueError
        If there are no studies.
    FloatingPointError
        If the loss is no longer finite.
    """
    with _seeded(settings.seed):
        cvae = CVAE(settings.size, settings.prior).to(device).train()
        optimizer = torch.optim.Adam(cvae.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

        def loss_of(slices: Tensor, label: Tensor) -> Tensor:
            slices = resized_slices(slices, settings.size)
            with torch.autocast(slices.device.type, torch.bfloat16, enabled=settings.bfloat16):
                reconstruction = cvae(slices, label.expand(len(slices)))
            loss: Tensor = reconstruction.loss(slices[:, :1], settings.sigma)
            return loss

        for epoch in range(1, settings.epochs + 1):
            loss = _train_epoch(studies, loss_of, optimizer, settings, device)
            _save(checkpoints, "encoder", cvae.encoder)
            report(Progress(epoch, settings.epochs, loss))
    return _state(cvae.encoder)


def train_classifier(
    training: Studies,
    validation: Studies,
    encoder_state: State | None,
    settings: ClassifierSettings,
    *,
    device: str = "cpu",
    report: Report = lambda progress: None,
    checkpoints: Path | None = None,
) -> State:
    """Train the classifier and return the weights of its best validation loss.

    Parameters
    ----------
    training, validation : Studies
        Disjoint by patient. Validation sees all slices of each study.
    encoder_state : dict of str to Tensor, or None
        What :func:`train_cvae` returned; None starts from random weights.
    settings : ClassifierSettings
        All choices.
    device : str
        Where to train.
    report : callable
        Told after each epoch.
    checkpoints : Path, optional
        Folder that receives ``classifier.safetensors`` after each better epoch.

    Returns
    -------
    dict of str to Tensor
        State of a :class:`~models.classifier.network.Classifier`, on the CPU.

    Raises
    ------
    ValueError
        If either set is empty.
    FloatingPointError
        If a loss is no longer finite.
    """
    with _seeded(settings.seed):
        network = Classifier()
        if encoder_state is not None:
            network.encoder.load_state_dict(encoder_state)
        network.to(device)
        focal = ClassFocalLoss(settings.class_weights, settings.gamma)
        optimizer = torch.optim.Adam(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

        def loss_of(slices: Tensor, label: Tensor, chunk: int | None = None) -> Tensor:
            with torch.autocast(slices.device.type, torch.bfloat16, enabled=settings.bfloat16):
                descriptors = network.describe(slices, chunk=chunk)
            loss: Tensor = focal(network.aggregate(descriptors.float())[None], label)
            return loss

        best_loss, best_epoch, best_state = float("inf"), 0, _state(network)
        for epoch in range(1, settings.epochs + 1):
            training_loss = _train_epoch(training, loss_of, optimizer, settings, device)
            validation_loss = _validate(validation, loss_of, settings, device)
            if validation_loss < best_loss:
                best_loss, best_epoch, best_state = validation_loss, epoch, _state(network)
                _save(checkpoints, "classifier", network)
            report(Progress(epoch, settings.epochs, training_loss, validation_loss, epoch == best_epoch))
            if epoch - best_epoch >= settings.patience:
                break
    return best_state


def resized_slices(slices: Tensor, size: int) -> Tensor:
    """Resize slices (n, 2, H, W) to (n, 2, size, size): CT averaged, mask binary again (at least half covered)."""
    if slices.shape[-2:] == (size, size):
        return slices
    resized = F.interpolate(slices, size=(size, size), mode="bilinear", antialias=True)
    return torch.stack([resized[:, 0], (resized[:, 1] >= HALF_COVERED).to(slices.dtype)], dim=1)


def _train_epoch(
    studies: Studies,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    device: str,
) -> float:
    """Pass once over the shuffled studies; return the mean loss."""
    if not len(studies):
        raise ValueError("no studies to train on")
    # A generator of its own for the loader: its workers must not change the order of the draws elsewhere.
    loader: DataLoader[Study] = DataLoader(
        studies,  # type: ignore[arg-type]
        batch_size=settings.studies_per_step,
        shuffle=True,
        collate_fn=list,
        generator=torch.Generator().manual_seed(int(torch.randint(2**31, ()))),
    )
    total = 0.0
    for group in loader:
        optimizer.zero_grad()
        for slices, label in group:
            loss = loss_of(_subset(slices, settings.slices_per_study).to(device), torch.tensor([label], device=device))
            total += _finite(loss)
            (loss / len(group)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return total / len(studies)


def _validate(
    studies: Studies, loss_of: Callable[[Tensor, Tensor, int], Tensor], settings: ClassifierSettings, device: str
) -> float:
    if not len(studies):
        raise ValueError("no studies to validate with")
    total = 0.0
    with torch.inference_mode():
        for slices, label in (studies[index] for index in range(len(studies))):
            label_tensor = torch.tensor([label], device=device)
            total += _finite(loss_of(slices.to(device), label_tensor, settings.validation_chunk))
    return total / len(studies)


def _subset(slices: Tensor, count: int | None) -> Tensor:
    if count is None or len(slices) <= count:
        return slices
    return slices[torch.randperm(len(slices))[:count]]


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError("the training loss is no longer finite: lower the learning rate")
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the block and leave the random state outside it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _state(module: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def _save(folder: Path | None, name: str, module: nn.Module) -> None:
    """Write the state as safetensors; the file of that name is whole at any moment."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.safetensors.part"
    partial.write_bytes(save(_state(module)))
    partial.replace(folder / f"{name}.safetensors")
