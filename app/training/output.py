"""What a training leaves: a model folder that the application loads as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from app.cohort.table import CohortStudy
from app.console import tell
from app.outcome import RunFailed, UsageError
from app.training.metadata import Learned, bundle_metadata, model_card
from app.training.run import Training
from app.training.tasks import TASKS
from models.store import save_weights
from models.training.loop import Trained

RECORD = "training.json"


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
    """

    folder: Path
    version: str
    training: tuple[CohortStudy, ...]
    validation: tuple[CohortStudy, ...]

    def write(self, training: Training, network: nn.Module, trained: Trained, seconds: float) -> None:
        """Write weights, metadata, model card, the record of the training and its curve, all or nothing.

        Raises
        ------
        RunFailed
            If they cannot be written.
        """
        task = TASKS[training.task]
        settings = training.settings.model_dump(mode="json")
        studies = {"training": _counts(self.training), "validation": _counts(self.validation)}
        learned = Learned(studies, settings, trained)
        record = {
            "settings": settings,
            "studies": studies,
            "patients": sorted({pseudonym_hash(s.patient) for s in (*self.training, *self.validation)}),
            "kept_epoch": trained.kept_epoch,
            "history": trained.history,
            "seconds": round(seconds),
        }
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".covid-ct-model-", dir=self.folder.parent) as scratch:
                made = Path(scratch, "model")
                save_weights(
                    made,
                    network,
                    bundle_metadata(training.task, self.version, learned),
                    task.built_with(training.settings),
                    dtype=torch.float32 if training.task == "cvae" else torch.float16,
                )
                (made / "README.md").write_text(model_card(training.task, self.version, learned), "utf-8")
                (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
                _draw(trained, made / "training.png")
                made.chmod(0o755)
                made.rename(self.folder)
        except OSError as error:
            raise RunFailed(f"cannot write the model to {self.folder}: {error.strerror}") from error
        tell(f"{training.task}: {self.folder}, from epoch {trained.kept_epoch} of {len(trained.history)}")


def pseudonym_hash(patient: str) -> str:
    """Stand for a patient in the record of a training: enough to notice who comes again."""
    return hashlib.sha256(f"covid-ct-map {patient}".encode()).hexdigest()[:16]


def refuse_known_patients(models: Path, tasks: Sequence[str], studies: Sequence[CohortStudy]) -> None:
    """Make sure that models have not learned from the patients whom they are to be judged on.

    Models without a record of their training, as those of others, are taken as they are.

    Raises
    ------
    UsageError
        If one has.
    """
    for task in tasks:
        path = models / task / RECORD
        try:
            known = set(json.loads(path.read_text("utf-8"))["patients"]) if path.exists() else set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged") from error
        seen = [study.patient for study in studies if pseudonym_hash(study.patient) in known]
        if seen:
            raise UsageError(
                f"the model {task} learned from {len(set(seen))} of the patients that it is to be judged on, "
                f"{seen[0]} among them: keep the splits that it was trained with"
            )


def add_segmentation(source: Path, target: Path, tasks: Sequence[str]) -> None:
    """Put the segmentation models that a classifier learned with beside it, where there are none."""
    for task in tasks:
        if not (target / task).exists():
            names = ("weights.safetensors", "metadata.json", "README.md", RECORD)
            (target / task).mkdir(parents=True)
            for name in names:
                if (source / task / name).exists():
                    shutil.copyfile(source / task / name, target / task / name)


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
