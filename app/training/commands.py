"""``covid-ct train``: from a cohort to a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.arguments import add_assignments, count, models_folder
from app.console import tell
from app.evaluation.commands import add_bootstrap_arguments, need_evaluation_packages, new_folder, write_judgement
from app.outcome import UsageError

if TYPE_CHECKING:
    from app.cohort.table import CohortStudy
    from app.training.tasks import Task
    from models.training.settings import TrainingSettings

MODELS = ("lungs", "lesions", "involvement", "cvae", "classifier")
ROWS = ("plain", "cvae", "full", "covnet", "decovnet", "forest")
"""Of the ablation: three of the paper, three to compare with."""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    add = parser.add_argument
    add("model", choices=MODELS, help="what to train; cvae before classifier")
    cohort = "folder with cohort.csv, see docs/training.md; several are learned from together"
    add("cohorts", metavar="COHORT", type=Path, nargs="+", help=cohort)
    add("-o", "--output", metavar="MODELS", type=Path, required=True, help="models folder; MODEL/ in it is written")
    add_data_arguments(parser)
    add("-c", "--config", metavar="FILE", type=Path, help="YAML file of settings other than the recommended ones")
    add_assignments(parser, "change a setting; repeatable")
    add("--leave-out", nargs="+", default=[], metavar="PATIENT", help="learn nothing from these patients")
    add("--start", metavar="MODELS", type=Path, help="models folder whose weights are trained on, instead of random")
    add("--version", default="0.1.0", help="of the model (default 0.1.0)")
    add("--prepare-only", action="store_true", help="fill the cache and stop")
    parser.set_defaults(command=train)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what all commands share that learn from a cohort."""
    add = parser.add_argument
    add("--cache", metavar="FOLDER", type=Path, required=True, help="for prepared studies and the state of trainings")
    add(
        "-m",
        "--model",
        metavar="MODELS",
        type=Path,
        default=models_folder(),
        dest="models",
        help="models folder that finds lungs and lesions for cvae and classifier (default: those of this installation)",
    )
    add("--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default auto)")
    add("--devices", type=count(1, 1024), default=1, metavar="N", help="GPUs, or on the CPU processes (default 1)")
    add(
        "--prepare-workers",
        type=count(1, 256),
        metavar="N",
        help="processes that fill the cache (default: one for each core)",
    )


def add_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    add = parser.add_argument
    add("cohort", metavar="COHORT", type=Path, help="folder with cohort.csv, see docs/training.md")
    add("-o", "--output", type=Path, required=True, help="new folder for tables, pictures and a page")
    add_data_arguments(parser)
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}; default all")
    add("-c", "--config", metavar="FOLDER", type=Path, help="folder of YAML files of settings: TASK.yaml")
    add_assignments(parser, "change a setting of all rows; repeatable")
    add_bootstrap_arguments(parser)
    parser.set_defaults(command=ablation)


def ablation(arguments: argparse.Namespace) -> None:
    """Train the rows of the ablation and the baselines, judge them, and write the page.

    Raises
    ------
    UsageError
        If cohort, settings, models or folders cannot be used.
    RunFailed
        If something cannot be written, or a training fails.
    """
    need_training_packages()
    need_evaluation_packages()
    from app.cohort.table import read_cohort
    from app.training.ablation import Ablation, compared
    from app.training.run import Devices

    work = Ablation(
        read_cohort(arguments.cohort),
        arguments.models,
        arguments.cache,
        arguments.config,
        tuple(arguments.assignments),
        Devices(arguments.accelerator, arguments.devices),
        arguments.prepare_workers,
    )
    rows = [row for row in ROWS if row in arguments.rows]
    work.check(rows)
    with new_folder(arguments.output) as folder:
        work, refused = work.without_refused(rows, tell)
        predictions = [each for row in rows for each in work.predict(row, tell)]
        chance = {"replicates": arguments.replicates, "seed": arguments.seed}
        write_judgement(predictions, folder, made=True, pairs=compared(rows), refused=refused, **chance)
    print(arguments.output / "index.html")


def train(arguments: argparse.Namespace) -> None:
    """Train one model and write its folder.

    Raises
    ------
    UsageError
        If cohort, settings, models or folders cannot be used.
    RunFailed
        If something cannot be written, or the training fails.
    """
    need_training_packages()
    from app.cohort.table import lone_classes, part, read_cohorts
    from app.training.checks import learnable
    from app.training.configuration import load_training_settings
    from app.training.tasks import TASKS

    task = TASKS[arguments.model]
    target = arguments.output / task.name
    if target.exists() and not arguments.prepare_only:
        raise UsageError(f"{target} is there already: name another models folder, or remove it to train anew")
    settings = load_training_settings(task.settings, task.recommended, arguments.config, arguments.assignments)
    _, studies = part(read_cohorts(arguments.cohorts, classes=False), arguments.leave_out)
    if task.spacing is None:
        for lone in lone_classes(studies):
            raise UsageError(f"{task.name} cannot be trained: {lone}")
    parts = {split: learnable(studies, task, split) for split in ("train", "validation")}
    tell(f"{task.name}: {', '.join(f'{len(part)} {split} studies' for split, part in parts.items())}")
    _train(arguments, task, settings, parts["train"], parts["validation"])


def _train(
    arguments: argparse.Namespace,
    task: Task,
    settings: TrainingSettings,
    train_studies: tuple[CohortStudy, ...],
    validation_studies: tuple[CohortStudy, ...],
) -> None:
    from app.cohort.preparation import SEGMENTING, segmentation_hashes
    from app.training.checks import autoencoder_in, check_devices, check_segmentation
    from app.training.data import prepared
    from app.training.output import ModelFolder, add_segmentation
    from app.training.run import Devices, Training, run_training
    from app.training.tasks import masks_given

    devices = Devices(arguments.accelerator, arguments.devices)
    check_devices(settings, devices)
    start = None if arguments.start is None else arguments.start / task.name
    if start is not None and not start.exists():
        raise UsageError(f"there is no {start} to start from")
    segmentation = None
    if task.spacing is None:
        segmentation = segmentation_hashes(arguments.models)
        found = validation_studies if masks_given(settings) else (*train_studies, *validation_studies)
        _tell_of_known(arguments.models, SEGMENTING, found)
    cvae = None
    if task.name == "classifier":
        check_segmentation(arguments.models, arguments.output)
        if start is None and getattr(settings, "initial", None) == "cvae":
            cvae = autoencoder_in(arguments.output, arguments.models, validation_studies)
    options = {"models": arguments.models, "workers": arguments.prepare_workers, "tell": tell}
    made = prepared((*train_studies, *validation_studies), task, settings, arguments.cache, **options)
    if arguments.prepare_only:
        return
    if task.name == "classifier":
        add_segmentation(arguments.models, arguments.output, SEGMENTING)
    parts = made[: len(train_studies)], made[len(train_studies) :]
    training = Training(task.name, settings, *parts, arguments.cache / "trainings", start, cvae)
    target, version = arguments.output / task.name, arguments.version
    output = ModelFolder(target, version, train_studies, validation_studies, segmentation)
    run_training(training, devices, output.write)


def _tell_of_known(models: Path, tasks: Sequence[str], studies: Sequence[CohortStudy]) -> None:
    """Tell which segmentation models know patients whose lesions they are to find for others to learn from."""
    from app.cohort.known_patients import fitted_to

    for task in tasks:
        if count := fitted_to(models / task, studies):
            tell(f"{task} has learned from {count} of these patients: what it finds in others will not be as good")


def need_training_packages() -> None:
    """Make sure that what only training needs is installed.

    Raises
    ------
    UsageError
        If it is not.
    """
    if not all(find_spec(package) for package in ("lightning_fabric", "nibabel", "sklearn", "tensorboard")):
        raise UsageError("more packages are needed: pip install -c constraints.txt '.[training]'")
