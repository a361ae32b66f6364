"""What can be trained: for each model its settings, its data and its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from models.baselines.covnet import COVNet
from models.baselines.decovnet import DeCoVNet
from models.classifier.cvae import CVAE
from models.classifier.network import Classifier
from models.classifier.studies import PreparedStudy
from models.classifier.training import (
    ClassifierRecipe,
    ClassifierSettings,
    CVAERecipe,
    CVAESettings,
    FocalSettings,
    StudySettings,
)
from models.involvement.network import InvolvementNetwork
from models.involvement.training import InvolvementRecipe, InvolvementSettings
from models.lesions.network import LesionNetwork
from models.lesions.training import LesionRecipe, LesionSettings
from models.lungs.network import DeepMedic
from models.lungs.training import LungRecipe, LungSettings
from models.record import SHIPPED
from models.training.recipe import Recipe
from models.training.settings import TrainingSettings
from models.training.volumes import LESIONS, LUNGS, Volume

_BASELINE_CHANNELS = 3

Spacing = tuple[float | None, float, float]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared study and its label."""

    path: Path
    label: int


@dataclass(frozen=True)
class Task:
    """A model that can be trained.

    Parameters
    ----------
    name : str
        Also of its folder.
    settings : type
    recommended : Path
        YAML file of the settings.
    network : callable
        Class of the network.
    built_with : callable
        Gives, from the settings, the keywords of the class.
    recipe : callable
        Makes the recipe of a network, settings, training and validation data.
    spacing : callable, optional
        Gives, from the settings, the resolution of the volumes that it learns from; None learns from studies.
    masks : tuple of str
        That a study must have to be learned from.
    """

    name: str
    settings: type[TrainingSettings]
    recommended: Path
    network: Callable[..., nn.Module]
    built_with: Callable[[Any], Mapping[str, object]]
    recipe: Callable[[Any, Any, Sequence[Prepared], Sequence[Prepared]], Recipe]
    spacing: Callable[[Any], Spacing] | None = None
    masks: tuple[str, ...] = field(default=())


def _volumes(studies: Sequence[Prepared]) -> list[Volume]:
    return [Volume(study.path) for study in studies]


def _studies(studies: Sequence[Prepared]) -> list[PreparedStudy]:
    return [PreparedStudy(study.path, study.label) for study in studies]


def _baseline(network: nn.Module, settings: FocalSettings, *data: Sequence[Prepared]) -> Recipe:
    training, validation = (_studies(part) for part in data)
    return ClassifierRecipe(network, settings, training, validation, channels=_BASELINE_CHANNELS)


_ALL = (
    Task(
        "lungs",
        LungSettings,
        SHIPPED / "lungs" / "training.yaml",
        DeepMedic,
        lambda s: {"spacing": list(s.spacing)},
        lambda network, s, *data: LungRecipe(network, s, *map(_volumes, data)),
        lambda s: s.spacing,
        (LUNGS,),
    ),
    Task(
        "lesions",
        LesionSettings,
        SHIPPED / "lesions" / "training.yaml",
        LesionNetwork,
        lambda s: {"spacing": list(s.spacing), "patch": list(s.patch)},
        lambda network, s, *data: LesionRecipe(network, s, *map(_volumes, data)),
        lambda s: s.spacing,
        (LUNGS, LESIONS),
    ),
    Task(
        "involvement",
        InvolvementSettings,
        SHIPPED / "involvement" / "training.yaml",
        InvolvementNetwork,
        lambda s: {"pixel_mm": s.pixel_mm, "patch": list(s.patch)},
        lambda network, s, *data: InvolvementRecipe(network, s, *map(_volumes, data)),
        lambda s: (None, s.pixel_mm, s.pixel_mm),
        (LUNGS, LESIONS),
    ),
    Task(
        "cvae",
        CVAESettings,
        SHIPPED / "classifier" / "cvae.yaml",
        CVAE,
        lambda s: {"size": s.size, "prior": s.prior, "side_branch": s.side_branch},
        lambda network, s, *data: CVAERecipe(network, s, *map(_studies, data)),
    ),
    Task(
        "classifier",
        ClassifierSettings,
        SHIPPED / "classifier" / "training.yaml",
        Classifier,
        lambda s: {"in_plane": s.in_plane, "side_branch": s.side_branch},
        lambda network, s, *data: ClassifierRecipe(network, s, *map(_studies, data)),
    ),
    Task("covnet", FocalSettings, SHIPPED / "baselines" / "covnet.yaml", COVNet, lambda s: {}, _baseline),
    Task("decovnet", FocalSettings, SHIPPED / "baselines" / "decovnet.yaml", DeCoVNet, lambda s: {}, _baseline),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}


def in_plane_of(settings: TrainingSettings) -> int:
    """Return the size of the slices that a training on studies sees."""
    assert isinstance(settings, StudySettings)  # noqa: S101 - of such a task
    return settings.in_plane


def masks_given(settings: TrainingSettings) -> bool:
    """Say whether a training learns from the masks of the cohort instead of what the segmentation finds."""
    return isinstance(settings, StudySettings) and settings.masks == "given"
