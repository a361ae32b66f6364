"""``covid-ct train`` from DICOM to model folders that the application loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import app.classifier_data
from app.application import Models
from app.cli import main
from app.training import MODELS
from models.lungs.network import DeepMedic
from models.store import load_weights
from tests.builders import write_series

SPACING = (3.0, 2.0, 2.0)


def _thorax(seed: int, diseased: bool) -> np.ndarray:
    """A small body with two lungs, one of them hazy where diseased; HU, feet to head."""
    shape = (36, 80, 96)
    z, y, x = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)], indexing="ij")
    hu = np.where(((y - 80) / 70) ** 2 + ((x - 96) / 88) ** 2 < 1, 40.0, -1000.0)
    for middle in (56.0, 136.0):
        hu[((z - 54) / 46) ** 2 + ((y - 80) / 50) ** 2 + ((x - middle) / 30) ** 2 < 1] = -850.0
    if diseased:
        hu[((z - 54) / 20) ** 2 + ((y - 100) / 15) ** 2 + ((x - 56) / 15) ** 2 < 1] = -500.0
    return hu + np.random.default_rng(seed).normal(0, 10, shape)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, diseased in (("well", False), ("ill", True)):
        write_series(folder / name, _thorax(len(name), diseased), SPACING, study=name)
    studies = [
        {"name": "well", "folder": "well", "healthy": True},
        {"name": "ill", "folder": "ill", "healthy": False, "positive": True},
    ]
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"studies": studies}))
    return path


def _arguments(model: str, manifest: Path, folder: Path, *more: str) -> list[str]:
    paths = ["--manifest", str(manifest), "--cache", str(folder / "cache"), "--output", str(folder / "models")]
    return ["train", model, *paths, "--steps", "1", *more]


@pytest.mark.slow
def test_all_models_are_trained_and_can_be_loaded(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.classifier_data, "TRAINING", 2)
    monkeypatch.setattr(app.classifier_data, "VALIDATION", 2)
    for model in ("lungs", "involvement", "lesions", "classifier"):
        assert main(_arguments(model, manifest, tmp_path)) == 0
    loaded = Models.load(tmp_path / "models")
    shipped = Models.load(Path(app.classifier_data.__file__).parents[1] / "models")
    for model in MODELS:
        ours, theirs = getattr(loaded.records, model), getattr(shipped.records, model)
        assert ours.name == theirs.name
        assert ours.sha256 != theirs.sha256


@pytest.mark.slow
def test_training_goes_on_from_the_weights_that_are_named(manifest: Path, tmp_path: Path) -> None:
    assert main(_arguments("lungs", manifest, tmp_path)) == 0
    (tmp_path / "models").rename(tmp_path / "first")
    assert main(_arguments("lungs", manifest, tmp_path, "--start", str(tmp_path / "first"), "--steps", "3")) == 0
    first, second, random = DeepMedic(), DeepMedic(), DeepMedic()
    load_weights(tmp_path / "first" / "lungs", first)
    load_weights(tmp_path / "models" / "lungs", second)

    def apart(other: DeepMedic) -> float:
        pairs = zip(first.parameters(), other.parameters(), strict=True)
        return float(torch.stack([(a - b).detach().abs().mean() for a, b in pairs if a.dim() > 1]).mean())

    assert 0 < apart(second) < 0.2 * apart(random)


def test_lesions_before_involvement_say_what_to_do(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments("lesions", manifest, tmp_path)) == 64
    assert "train involvement first" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("model", ["lungs", "classifier"])
def test_weights_to_start_from_must_be_there(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(model, manifest, tmp_path, "--start", str(tmp_path / "none"))) == 64
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
