"""What a training leaves: a model folder that the application loads as it is."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from app.cohort.known_patients import RECORD, known_patients
from app.cohort.table import CohortStudy
from app.console import tell
from app.outcome import RunFailed
from app.training.metadata import Learned, bundle_metadata, model_card
from app.training.run import Training
from app.training.tasks import TASKS
from models.record import METADATA, WEIGHTS, read_model
from models.store import save_weights
from models.training.loop import Trained

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where to write a trained model, and of whom it learned.

    Parameters
    ----------
    folder : Path
        Must be absent.
    version : str
        Of the model.
    training, validation : tuple of CohortStudy
        What it learned from.
    segmentation : mapping, optional
        Hashes of the segmentation models whose findings it learned from.
    """

    folder: Path
    version: str
    training: tuple[CohortStudy, ...]
    validation: tuple[CohortStudy, ...]
    segmentation: Mapping[str, str] | None = None

    def write(self, training: Training, network: nn.Module, trained: Trained, seconds: float) -> None:
        """Write weights, metadata, model card, the record of the training and its curve, all or nothing.

        Raises
        ------
        RunFailed
            If they cannot be written.
        UsageError
            If the record of a model that it started from is damaged.
        """
        task = TASKS[training.task]
        settings = training.settings.model_dump(mode="json")
        predecessors = [folder for folder in (training.start, training.cvae) if folder is not None]
        studies = {"training": _counts(self.training), "validation": _counts(self.validation)}
        learned = Learned(studies, settings, trained)
        record = {
            "settings": settings,
            "studies": studies,
            "patients": known_patients(self.training, self.validation, predecessors),
            "segmentation": self.segmentation,
            "started_from": {folder.name: read_model(folder)[0].sha256 for folder in predecessors},
            "kept_epoch": trained.kept_epoch,
            "calibration": trained.calibration,
            "history": trained.history,
            "seconds": round(seconds),
        }
        try:
            with new_folder_in(self.folder) as made:
                save_weights(
                    made,
                    network,
                    bundle_metadata(training.task, self.version, learned),
                    task.built_with(training.settings),
                    dtype=torch.float32 if training.task == "cvae" else torch.float16,
                )
                (made / CARD).write_text(model_card(training.task, self.version, learned), "utf-8")
                (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
                _draw(trained, made / "training.png")
        except OSError as error:
            raise RunFailed(f"cannot write the model to {self.folder}: {error.strerror}") from error
        tell(f"{training.task}: {self.folder}, from epoch {trained.kept_epoch} of {len(trained.history)}")


def add_segmentation(source: Path, target: Path, tasks: Sequence[str]) -> None:
    """Put the segmentation models that a classifier learns with beside it, where there are none.

    Raises
    ------
    RunFailed
        If they cannot be written.
    """
    for task in tasks:
        if (target / task).exists():
            continue
        try:
            with new_folder_in(target / task) as made:
                for path in (source / task / name for name in (WEIGHTS, METADATA, CARD, RECORD)):
                    if path.exists():
                        shutil.copyfile(path, made / path.name)
        except OSError as error:
            raise RunFailed(f"cannot write the model to {target / task}: {error.strerror}") from error


@contextmanager
def new_folder_in(target: Path) -> Iterator[Path]:
    """Give a folder that takes its place as ``target`` when the block ends well, and else goes away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".covid-ct-model-", dir=target.parent) as scratch:
        made = Path(scratch, "model")
        made.mkdir(mode=0o755)
        yield made
        made.rename(target)


def _counts(studies: Sequence[CohortStudy]) -> dict[str, int]:
    return {
        "patients": len({study.patient for study in studies}),
        "studies": len(studies),
        "positive": sum(study.label for study in studies),
    }


def _draw(trained: Trained, path: Path) -> None:
    """Draw the losses of each epoch."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(trained.history) + 1)
    for name in ("training_loss", "validation_loss"):
        values = [row[name] for row in trained.history]
        axes.plot(epochs, values, label=name.replace("_loss", ""), marker="." if len(values) < 3 else None)
    axes.axvline(trained.kept_epoch, color="grey", linestyle=":", label="kept")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
