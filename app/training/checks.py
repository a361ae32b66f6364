"""What is made sure of before a training begins, which may take days."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from app.cohort.known_patients import read_record, refuse_known_patients
from app.cohort.preparation import SEGMENTING, segmentation_hashes
from app.cohort.table import CohortStudy
from app.outcome import UsageError
from app.training.run import Devices
from app.training.tasks import Task
from models.record import ModelUnavailable, read_model
from models.training.settings import TrainingSettings

NO_SPLITS = "the table has no splits: covid-ct cohort FOLDER --split 70 15 15 makes them"


def learnable(studies: Sequence[CohortStudy], task: Task, split: str) -> tuple[CohortStudy, ...]:
    """Return the studies of a split that a model can learn from.

    Raises
    ------
    UsageError
        If the table has no splits, or none of the studies has the masks.
    """
    if any(study.split is None for study in studies):
        raise UsageError(NO_SPLITS)
    chosen = tuple(study for study in studies if study.split == split)
    usable = tuple(study for study in chosen if all(getattr(study, mask) is not None for mask in task.masks))
    if not usable:
        need = f" with masks of the {' and '.join(task.masks)}" if task.masks else ""
        raise UsageError(f"there is no {split} study{need} to train {task.name} with")
    return usable


def check_devices(settings: TrainingSettings, devices: Devices) -> None:
    """Make sure that there are the devices, and that the items of a step can be divided among them.

    Raises
    ------
    UsageError
        If not.
    """
    if devices.cuda and torch.cuda.device_count() < devices.count:
        raise UsageError(f"{devices.count} CUDA devices were asked for, there are {torch.cuda.device_count()}")
    if settings.batch % devices.count:
        raise UsageError(
            f"a step of {settings.batch} items cannot be divided among {devices.count} devices: --set batch=N"
        )


def check_segmentation(models: Path, output: Path) -> None:
    """Make sure that a classifier comes to lie beside no other segmentation models than it learns with.

    Raises
    ------
    UsageError
        If there are others in its folder.
    """
    ours = segmentation_hashes(models)
    for task in SEGMENTING:
        if not (output / task).exists():
            continue
        try:
            theirs = read_model(output / task)[0].sha256
        except ModelUnavailable as error:
            raise UsageError(str(error)) from error
        if theirs != ours[task]:
            raise UsageError(
                f"{output / task} is another model than {models / task}, with which this one would learn: "
                f"give -m {output}, or another output folder"
            )


def autoencoder_in(output: Path, models: Path, validation: Sequence[CohortStudy]) -> Path:
    """Return the model folder of the autoencoder that a classifier starts from.

    Raises
    ------
    UsageError
        If there is none, or it learned with other segmentation models, or the labels of the validation patients.
    """
    folder = output / "cvae"
    if not folder.exists():
        raise UsageError(f"there is no {folder}: train cvae first, or give --set initial=random")
    learned_with = read_record(folder).get("segmentation")
    if learned_with is not None and learned_with != segmentation_hashes(models):
        raise UsageError(f"{folder} learned with other segmentation models than those in {models}: give the same -m")
    refuse_known_patients(output, ("cvae",), validation)
    return folder
