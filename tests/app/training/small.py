"""A cohort so coarse, and trainings so short, that all of it runs in a test."""

from __future__ import annotations

from pathlib import Path

import torch

from app.cohort.splits import split_table
from app.cohort.table import read_cohort
from app.phantom.cohort import write_cohort
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.store import save_weights
from tests.app.tiny_run import threshold_network

SPACING = (10.0, 5.0, 5.0)
HERE = ("--accelerator", "cpu", "--prepare-workers", "1")
_COMMON = ["epochs=1", "batch=2", "workers=0", "precision=float32"]
_PATCHES = ["steps=1", "validation_patches=1", *_COMMON]
SETTINGS = {
    "lungs": ["spacing=[10,10,10]", "interior=[6,12,12]", *_PATCHES],
    "lesions": ["spacing=[10,5,5]", "patch=[8,16,16]", *_PATCHES],
    "involvement": ["pixel_mm=5", "patch=[32,32]", "patches=1", *_PATCHES],
    "cvae": ["in_plane=32", "size=16", "slices_per_study=4", *_COMMON],
    "classifier": ["in_plane=32", "slices_per_study=4", *_COMMON],
}


def write_small_cohort(folder: Path, patients: int = 6) -> Path:
    """Write a cohort of as many positive as negative patients, with splits."""
    write_cohort(folder, patients, 1, SPACING)
    split_table(folder, read_cohort(folder), (1, 1, 1), seed=0)
    return folder


def write_segmentation(folder: Path) -> Path:
    """Write models that find lungs by a threshold, and lesions at random, fast."""
    torch.manual_seed(0)
    said = {"name": "test", "version": "0"}
    lungs = {"spacing": [10.0, 10.0, 10.0]}
    save_weights(folder / "lungs", threshold_network(), said, lungs)
    lesions = {"spacing": [20.0, 10.0, 10.0], "patch": [8, 16, 16]}
    save_weights(folder / "lesions", LesionNetwork(**lesions), said, lesions)  # type: ignore[arg-type]
    involvement = {"pixel_mm": 10.0, "patch": [32, 32]}
    save_weights(folder / "involvement", InvolvementNetwork(**involvement), said, involvement)  # type: ignore[arg-type]
    save_weights(folder / "classifier", Classifier(32), said, {"in_plane": 32})
    return folder


def output_of(model: str, folder: Path) -> Path:
    """Return the models folder for a model: classifiers lie beside the segmentation that they learn with."""
    return folder / ("classifiers" if model in ("cvae", "classifier") else "models")


def arguments(model: str, cohort: Path, folder: Path, *more: str) -> list[str]:
    """Give the arguments of a training that takes and leaves everything in ``folder``."""
    chosen = [part for assignment in SETTINGS[model] for part in ("--set", assignment)]
    paths = ["--cache", str(folder / "cache"), "-o", str(output_of(model, folder)), "-m", str(folder / "segmentation")]
    return ["train", model, str(cohort), *paths, *HERE, *chosen, *more]
