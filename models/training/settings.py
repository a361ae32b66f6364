"""Settings that all trainings share. Their values are those of the ``*.yaml`` files beside the recipes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from models.precision import Precision


class TrainingSettings(BaseModel):
    """How a network is trained.

    Parameters
    ----------
    epochs : int
        After each one, the loss on validation data is taken and a checkpoint written.
    batch : int
        Items (patches or studies) over which the gradient of a step is averaged, on all devices together.
    optimiser : {"adam", "adamw"}
        With ``adamw`` the weight decay is decoupled.
    learning_rate, weight_decay : float
    schedule : {"constant", "cosine"}
        ``cosine`` rises over a tenth of the steps and then falls to zero.
    averaging : float
        Decay of the moving average of the weights, which is what is kept; 0 keeps the weights themselves.
    clip_norm : float, optional
        Greatest norm of the gradient.
    patience : int, optional
        Stop after so many epochs without a better validation loss, and keep the best; None keeps the last.
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic; ``auto`` is mixed with bfloat16 where the device is fast in it.
    workers : int
        Processes of each device that read data ahead; 0 reads in the training process.
    seed : int
        Of weights, data and all that is random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    epochs: PositiveInt
    batch: PositiveInt
    optimiser: Literal["adam", "adamw"]
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Literal["constant", "cosine"]
    averaging: float = Field(ge=0.0, lt=1.0)
    clip_norm: PositiveFloat | None
    patience: PositiveInt | None
    precision: Precision
    workers: NonNegativeInt
    seed: NonNegativeInt


class PatchSettings(TrainingSettings):
    """Training on patches of volumes.

    Parameters
    ----------
    steps : int
        Optimiser steps in an epoch.
    validation_patches : int
        Fixed patches of the validation studies on which the loss is taken.
    augment : bool
        Vary patches in position, size and image quality.
    """

    steps: PositiveInt
    validation_patches: PositiveInt
    augment: bool
