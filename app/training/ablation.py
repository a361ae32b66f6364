"""The paper's ablation and the baselines that it is compared with, trained and judged on one split.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 5 (ablation) and related work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.cohort.cache import said_of
from app.cohort.known_patients import RECORD, refuse_known_patients
from app.cohort.preparation import SEGMENTING
from app.cohort.table import CohortStudy
from app.evaluation.cohort_predictions import held_out, predictions_of, prepare_usable
from app.evaluation.predictions import Prediction, Refused
from app.outcome import RunFailed, UsageError
from app.training.checks import check_devices, learnable
from app.training.configuration import load_training_settings
from app.training.data import preparation_for, prepared
from app.training.output import new_folder_in
from app.training.run import Devices, Training, run_training
from app.training.tasks import TASKS, Prepared
from models.baselines.infection_forest import InfectionForest, infection_features
from models.classifier.network import CLASSES
from models.classifier.studies import PreparedStudy
from models.record import ModelUnavailable
from models.store import load_network, save_weights
from models.training.loop import Trained
from models.training.settings import TrainingSettings

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Parameters
    ----------
    title : str
        As in the table.
    task : str
        What is trained; ``forest`` is no network.
    changes : mapping
        Settings that make the row what it is.
    cvae : bool
        Whether an autoencoder is trained first, whose encoder it starts from.
    channels : int
        Of the slices that it sees: 2 for CT and lesion mask, 3 with the lung mask.
    """

    title: str
    task: str
    changes: Mapping[str, object]
    cvae: bool = False
    channels: int = 2


ROWS: Mapping[str, Row] = {
    "plain": Row("CNN", "classifier", {"initial": "random", "side_branch": False}),
    "cvae": Row("CNN + CVAE", "classifier", {"initial": "cvae", "side_branch": False}, cvae=True),
    "full": Row("CNN + CVAE + side branch", "classifier", {"initial": "cvae", "side_branch": True}, cvae=True),
    "covnet": Row("COVNet", "covnet", {}, channels=3),
    "decovnet": Row("DeCoVNet-like", "decovnet", {}, channels=3),
    "forest": Row("infection-size forest", "forest", {}, channels=3),
}
_STEPS = (("plain", "cvae"), ("cvae", "full"))


def compared(rows: Sequence[str]) -> list[tuple[str, str]]:
    """Return the titles of the rows to compare: each step of the ablation, and ours with each baseline."""
    pairs = [pair for pair in _STEPS if set(pair) <= set(rows)]
    if "full" in rows:
        pairs += [(row, "full") for row in rows if ROWS[row].task != "classifier"]
    return [(ROWS[first].title, ROWS[second].title) for first, second in pairs]


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is to be trained and judged, and how.

    Parameters
    ----------
    studies : tuple of CohortStudy
        With splits.
    models : Path
        Models folder that finds lungs and lesions.
    cache : Path
        For prepared studies and trained rows; a row that is there, made from the same, is not trained again.
    settings : Path, optional
        Folder with ``cvae.yaml``, ``classifier.yaml``, ``covnet.yaml`` and ``decovnet.yaml``, those of them that
        differ from the recommended settings.
    assignments : tuple of str
        ``NAME=VALUE``, for all rows.
    devices : Devices
    workers : int, optional
        Processes that prepare studies.
    """

    studies: tuple[CohortStudy, ...]
    models: Path
    cache: Path
    settings: Path | None
    assignments: tuple[str, ...]
    devices: Devices
    workers: int | None

    def check(self, rows: Sequence[str]) -> None:
        """Make sure of all that can be known before the first row is trained.

        Raises
        ------
        UsageError
            If settings, devices or splits cannot be used, or the segmentation has learned from patients to be judged.
        """
        self._check_folder()
        refuse_known_patients(self.models, SEGMENTING, held_out(self.studies))
        for row in (ROWS[name] for name in rows):
            task = _task_of(row)
            for split in ("train", "validation"):
                learnable(self.studies, TASKS[task], split)
            check_devices(self._row_settings(row), self.devices)
            if row.cvae:
                check_devices(self._settings("cvae", {"side_branch": row.changes["side_branch"]}), self.devices)

    def _check_folder(self) -> None:
        if self.settings is None:
            return
        if not self.settings.is_dir():
            raise UsageError(f"the settings {self.settings} are no folder")
        known = [f"{name}.yaml" for name in TASKS]
        there = sorted(path.name for path in self.settings.glob("*.y*ml"))
        unknown = [name for name in there if name not in known]
        if unknown or not there:
            said = f"holds {unknown[0]}" if unknown else "holds no settings"
            raise UsageError(f"the folder {self.settings} {said}; known: {', '.join(known)}")

    def without_refused(self, rows: Sequence[str], tell: Tell) -> tuple[Ablation, list[Refused]]:
        """Leave out the test studies that the system refuses, before the first row is trained.

        Raises
        ------
        UsageError
            If models or other studies cannot be used, or what is left of the test split lacks a class.
        RunFailed
            If the cache cannot be written.
        """
        row = ROWS[rows[0]]  # rows see other sizes of the same studies
        how = preparation_for(TASKS[_task_of(row)], self._row_settings(row), self.models)
        judged = held_out(self.studies)
        usable, _, refused = prepare_usable(judged, how, self.cache, workers=self.workers, tell=tell)
        if len({study.label for study in usable if study.split == "test"}) < CLASSES:
            raise UsageError(f"the system refuses {len(refused)} test studies, and the others are not of both classes")
        left = tuple(study for study in self.studies if study in usable or study not in judged)
        return replace(self, studies=left), refused

    def predict(self, name: str, tell: Tell) -> list[Prediction]:
        """Train a row and predict the validation and test studies with it.

        Raises
        ------
        UsageError
            If settings, models or studies cannot be used.
        RunFailed
            If something cannot be written, or the training fails.
        """
        row = ROWS[name]
        tell(f"{row.title}:")
        judged = held_out(self.studies)
        settings = self._row_settings(row)
        if row.task == "forest":
            probability = forest_on(self._prepared("classifier", settings, "train", tell))
        else:
            cvae = self._autoencoder(name, row, tell) if row.cvae else None
            probability = _network(row, self._trained(name, row.task, settings, cvae, tell))
        made = self._made(judged, _task_of(row), settings, tell)
        return predictions_of(row.title, judged, [study.path for study in made], probability)

    def _autoencoder(self, name: str, row: Row, tell: Tell) -> Path:
        settings = self._settings("cvae", {"side_branch": row.changes["side_branch"]})
        return self._trained(name, "cvae", settings, None, tell)

    def _row_settings(self, row: Row) -> TrainingSettings:
        return self._settings(_task_of(row), row.changes)

    def _settings(self, task: str, changes: Mapping[str, object]) -> TrainingSettings:
        chosen = None if self.settings is None else self.settings / f"{task}.yaml"
        own = chosen if chosen is not None and chosen.exists() else None
        assigned = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        return load_training_settings(
            TASKS[task].settings, TASKS[task].recommended, own, [*self.assignments, *assigned]
        )

    def _trained(self, name: str, task: str, settings: TrainingSettings, cvae: Path | None, tell: Tell) -> Path:
        """Return the model folder of a trained row, from the cache where it is there, made from the same."""
        training_studies, validation_studies = (
            self._prepared(task, settings, split, tell) for split in ("train", "validation")
        )
        training = Training(task, settings, training_studies, validation_studies, self.cache / "trainings", cvae=cvae)
        folder = self.cache / "ablation" / f"{name}-{training.name}"
        if folder.exists():
            tell(f"{task}: trained before")
        else:
            run_training(training, self.devices, _RowFolder(folder).write)
        return folder

    def _prepared(self, task: str, settings: TrainingSettings, split: str, tell: Tell) -> tuple[Prepared, ...]:
        return self._made([study for study in self.studies if study.split == split], task, settings, tell)

    def _made(
        self, studies: Sequence[CohortStudy], task: str, settings: TrainingSettings, tell: Tell
    ) -> tuple[Prepared, ...]:
        options: dict[str, Any] = {"models": self.models, "workers": self.workers, "tell": tell}
        return prepared(studies, TASKS[task], settings, self.cache, **options)


@dataclass(frozen=True, slots=True)
class _RowFolder:
    """Keeps a trained row."""

    folder: Path

    def write(self, training: Training, network: nn.Module, trained: Trained, seconds: float) -> None:
        try:
            with new_folder_in(self.folder) as made:
                said = {"name": f"covid-ct-{training.task}", "version": "ablation"}
                save_weights(
                    made, network, said, TASKS[training.task].built_with(training.settings), dtype=torch.float32
                )
                record = {"seconds": round(seconds), "calibration": trained.calibration, "history": trained.history}
                (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise RunFailed(f"cannot write to {self.folder}: {error.strerror}") from error


def _task_of(row: Row) -> str:
    """Return the task whose settings and slices a row has; the forest sees what the classifier sees."""
    return "classifier" if row.task == "forest" else row.task


def _network(row: Row, folder: Path) -> Callable[[Path], float]:
    try:
        network, _ = load_network(folder, TASKS[row.task].network)
    except ModelUnavailable as error:
        raise RunFailed(str(error)) from error

    @torch.inference_mode()
    def probability(path: Path) -> float:
        logits = network(PreparedStudy(path, 0).slices()[:, : row.channels])
        return float(logits.double().softmax(0)[1])

    return probability


def forest_on(training: Sequence[Prepared]) -> Callable[[Path], float]:
    """Train the infection-size forest; what is returned gives the probability of positive of a prepared study."""

    def features(paths: Sequence[Path]) -> npt.NDArray[np.float64]:
        rows = []
        for path in paths:
            z, y, x = json.loads(said_of(path)["spacing"])
            rows.append(infection_features(PreparedStudy(path, 0).slices().numpy(), (z, y, x)))
        return np.array(rows)

    forest = InfectionForest()
    forest.fit(features([study.path for study in training]), np.array([study.label for study in training]))
    return lambda path: float(forest.probability(features([path]))[0])
