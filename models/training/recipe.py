"""What a training needs to know of what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

Item = tuple[Tensor, ...]


class Objective(nn.Module, ABC):
    """A network with its loss.

    Parameters
    ----------
    network : nn.Module
        What is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, *item: Tensor) -> Tensor:
        """Return the loss of one item, a scalar in float32."""


class Recipe(Dataset[Item], ABC):
    """Items to learn from and to validate with.

    Whatever is random in an item hangs on its number alone: so a training can be taken up at any item, and divided
    among any number of processes, with the same result.

    Parameters
    ----------
    objective : Objective
        Network and loss.
    steps : int
        Optimiser steps in an epoch.
    validation : int
        How many items there are to validate with.
    """

    def __init__(self, objective: Objective, steps: int, validation: int) -> None:
        self.objective = objective
        self.steps = steps
        self.validation = validation

    def __getstate__(self) -> dict[str, object]:
        """Leave the network behind: processes that read ahead have no use for it."""
        return {**self.__dict__, "objective": None}

    def fit_to_data(self) -> None:
        """Bring the first, random weights of the network to the scale of the data."""

    def calibrate(self, network: nn.Module) -> Mapping[str, float]:
        """Bring what the trained network says to scale on the validation data, in place.

        Parameters
        ----------
        network : nn.Module
            In evaluation mode, on any device.

        Returns
        -------
        mapping of str to float
            What was changed, by name; empty where nothing was.
        """
        return {}

    @abstractmethod
    def __getitem__(self, number: int, /) -> Item:
        """Draw a training item; numbers count from 0 over all epochs."""

    @abstractmethod
    def validation_item(self, index: int) -> Item:
        """Return a validation item, the same for the same index."""

    def pictures(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Draw what the network makes of the first validation item, as images (rows, columns) in [0, 1] by title."""
        return {}


def seed_of(*numbers: int) -> int:
    """Return one seed of 63 bits for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_order(seed: int, number: int, count: int, items: int) -> int:
    """Return which of ``count`` members item ``number`` is: all of them in a new order in each epoch of ``items``.

    Where an epoch has more items than members, the first of its order come twice.
    """
    epoch, place = divmod(number, items)
    return int(np.random.default_rng((seed, epoch)).permutation(count)[place % count])
