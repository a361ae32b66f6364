"""The prepared studies that a model learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from app.cohort.cache import Preparation, prepare
from app.cohort.preparation import GivenSlices, VolumePreparation, slice_preparation
from app.cohort.table import CohortStudy
from app.outcome import UsageError
from app.training.tasks import Prepared, Task, in_plane_of, masks_given
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
    paths: dict[CohortStudy, Path] = {}
    for how, part in _parts(studies, task, settings, models):
        paths |= zip(part, prepare(part, how, cache, workers=workers, tell=tell), strict=True)
    return tuple(Prepared(paths[study], study.label) for study in studies)


def _parts(
    studies: Sequence[CohortStudy], task: Task, settings: TrainingSettings, models: Path
) -> Iterator[tuple[Preparation, Sequence[CohortStudy]]]:
    """Part studies by how they are prepared: those to learn from may be with masks of their own."""
    given = [study for study in studies if masks_given(settings) and study.split == "train"]
    if given:
        yield GivenSlices(in_plane_of(settings)), given
    found = [study for study in studies if study not in given]
    if found:
        yield preparation_for(task, settings, models), found


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
