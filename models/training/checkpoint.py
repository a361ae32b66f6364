"""State of a training on disk, from which it goes on exactly: safetensors, never pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

State = dict[str, Tensor]
_NAME = "checkpoint.safetensors"


class CheckpointUnusable(Exception):
    """A checkpoint is damaged, or of another run. The message is one clear line."""


@dataclass
class Stage:
    """How far a training is.

    Parameters
    ----------
    history : list of dict
        Losses and learning rate of each epoch that is done.
    best_loss : float
        Lowest validation loss so far.
    best_epoch : int
        Epoch that it belongs to, from 1.
    best : dict of str to Tensor
        Weights of that epoch; empty where none are kept.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = float("inf")
    best_epoch: int = 0
    best: State = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the state of one run is kept.

    Parameters
    ----------
    folder : Path
        Made where absent.
    identity : str
        What the run is made from; a checkpoint of another identity is refused.
    """

    folder: Path
    identity: str

    @property
    def there(self) -> bool:
        """Whether a state is kept, of this run or another."""
        return (self.folder / _NAME).exists()

    def save(self, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, stage: Stage) -> None:
        """Write the state; the file is whole at any moment."""
        tensors = {f"{key}/{name}": value for key, module in modules.items() for name, value in _of(module).items()}
        tensors |= {f"best/{name}": value for name, value in stage.best.items()}
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": value for name, value in values.items()}
        said = {"history": stage.history, "best_loss": stage.best_loss, "best_epoch": stage.best_epoch}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{_NAME}.part"
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        try:
            partial.write_bytes(save(copies, {"identity": self.identity, "stage": json.dumps(said)}))
            partial.replace(self.folder / _NAME)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> Stage:
        """Fill modules and optimiser with the state, where there is one, and say how far it is.

        Raises
        ------
        CheckpointUnusable
            If it is damaged or of another run.
        """
        path = self.folder / _NAME
        if not self.there:
            return Stage()
        try:
            with safe_open(path, framework="pt") as file:
                identity, said = file.metadata()["identity"], json.loads(file.metadata()["stage"])
                stage = Stage(said["history"], said["best_loss"], said["best_epoch"])
                difference = "" if identity == self.identity else _difference(identity, self.identity)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointUnusable(f"the checkpoint {path} is damaged: remove it to begin anew") from error
        if difference:
            raise CheckpointUnusable(
                f"the checkpoint {path} is of a run with {difference}: go on with the same, or remove it to begin anew"
            )
        try:
            for key, module in modules.items():
                module.load_state_dict(_below(f"{key}/", tensors))
            _fill(optimiser, _below("optimiser/", tensors))
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointUnusable(
                f"the checkpoint {path} does not fit the network: remove it to begin anew"
            ) from error
        stage.best = _below("best/", tensors)
        return stage


def _of(module: nn.Module) -> State:
    state: State = module.state_dict()
    return state


def _below(prefix: str, tensors: State) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fill(optimiser: torch.optim.Optimizer, tensors: State) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        states.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def _difference(theirs: str, ours: str) -> str:
    """Say in which part two identities differ first."""
    one, other = (_flat(json.loads(text)) for text in (theirs, ours))
    differing = [name for name in (*one, *other) if one.get(name) != other.get(name)]
    name = differing[0] if differing else "identity"
    if max(len(str(part.get(name))) for part in (one, other)) > 40:  # a hash says nothing to a person
        return f"other {name}"
    return f"{name} {one.get(name)} instead of {other.get(name)}"


def _flat(part: Any, prefix: str = "") -> dict[str, object]:
    if not isinstance(part, dict):
        return {prefix: part}
    pairs = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in part.items())
    return {name: leaf for key, value in pairs for name, leaf in _flat(value, key).items()}
