"""The prepared studies that a model learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from app.cohort.cache import Preparation, prepare
from app.cohort.preparation import VolumePreparation, slice_preparation
from app.cohort.table import CohortStudy
from app.outcome import UsageError
from app.training.tasks import Prepared, Task, in_plane_of
from models.record import ModelUnavailable
from models.training.settings import TrainingSettings


def prepared(
    studies: Sequence[CohortStudy],
    task: Task,
    settings: TrainingSettings,
    cache: Path,
    *,
    models: Path,
    workers: int | None,
    tell: Callable[[str], None],
) -> tuple[Prepared, ...]:
    """Prepare studies for the training of a model, or take them from the cache.

    Raises
    ------
    UsageError
        If studies or models cannot be used.
    RunFailed
        If the cache cannot be written, or a process died.
    """
    paths = prepare(studies, preparation_for(task, settings, models), cache, workers=workers, tell=tell)
    return tuple(Prepared(path, study.label) for path, study in zip(paths, studies, strict=True))


def preparation_for(task: Task, settings: TrainingSettings, models: Path) -> Preparation:
    """Return how studies are prepared for a model; lungs and lesions are found by a models folder, where it needs them.

    Raises
    ------
    UsageError
        If models cannot be used.
    """
    if task.spacing is not None:
        return VolumePreparation(task.spacing(settings), task.masks)
    try:
        return slice_preparation(models, in_plane_of(settings))
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
