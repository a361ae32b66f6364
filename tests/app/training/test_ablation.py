"""``covid-ct ablation`` and ``covid-ct evaluate`` on a cohort."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.cli import main
from app.cohort.images import load_study
from app.cohort.known_patients import known_patients
from app.cohort.table import CohortStudy, read_cohort
from app.training import data
from app.training.ablation import ROWS, compared, forest_on
from app.training.commands import ROWS as NAMES
from app.training.tasks import Prepared
from models.classifier.network import Classifier
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.store import load_network
from operators.classification import classify
from operators.lesion_segmentation import segment_lesions
from operators.lung_segmentation import segment_lungs
from tests.app.noise_slices import NoiseSlices, write_noise_cohort
from tests.app.training.small import HERE, write_segmentation

SETTINGS = ["epochs=1", "batch=2", "workers=0", "precision=float32", "in_plane=32", "slices_per_study=4"]


def ablation(cohort: Path, folder: Path, output: Path, *more: str) -> list[str]:
    chosen = [part for assignment in SETTINGS for part in ("--set", assignment)]
    paths = ["--cache", str(folder / "cache"), "-m", str(folder / "segmentation"), "-o", str(output)]
    return ["ablation", str(cohort), *paths, *HERE, "--replicates", "100", *chosen, *more]


@pytest.fixture(scope="module")
def work(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    shutil.copytree(trained / "cache", folder / "cache", copy_function=shutil.copy2)
    shutil.copytree(trained / "segmentation", folder / "segmentation")
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As :func:`work`, of which nothing is made yet."""
    folder = tmp_path_factory.mktemp("untrained")
    write_segmentation(folder / "segmentation")
    return folder


@pytest.fixture(scope="module")
def judged(cohort: Path, work: Path) -> Path:
    assert main(ablation(cohort, work, work / "out")) == 0
    return work / "out"


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_row_is_trained_and_judged_on_the_same_studies(judged: Path, cohort: Path) -> None:
    rows = predictions(judged)
    held_out = {study.path.name for study in read_cohort(cohort) if study.split != "train"}
    for row in ROWS.values():
        assert {each["study"] for each in rows if each["model"] == row.title} == held_out
    content = json.loads((judged / "classification.json").read_text("utf-8"))
    assert [model["model"] for model in content["models"]] == [row.title for row in ROWS.values()]
    pairs = [(each["first"], each["second"]) for each in content["differences"]]
    assert pairs == [
        ("CNN", "CNN + CVAE"),
        ("CNN + CVAE", "CNN + CVAE + side branch"),
        ("COVNet", "CNN + CVAE + side branch"),
        ("DeCoVNet-like", "CNN + CVAE + side branch"),
        ("infection-size forest", "CNN + CVAE + side branch"),
    ]
    assert "CNN + CVAE + side branch" in (judged / "index.html").read_text("utf-8")


def test_the_names_of_the_command_are_the_rows() -> None:
    assert tuple(ROWS) == NAMES
    assert compared(["plain", "full", "forest"]) == [("infection-size forest", "CNN + CVAE + side branch")]
    assert compared(["plain"]) == []


@pytest.mark.slow
def test_rows_differ_in_what_the_table_says(judged: Path, work: Path) -> None:
    folders = {path.name.rsplit("-", 1)[0]: path for path in (work / "cache" / "ablation").iterdir()}
    assert set(folders) == {
        *("plain-classifier", "cvae-cvae", "cvae-classifier", "full-cvae", "full-classifier"),
        *("covnet-covnet", "decovnet-decovnet"),
    }
    for row, side_branch in (("plain", False), ("cvae", False), ("full", True)):
        network, _ = load_network(folders[f"{row}-classifier"], Classifier)
        assert (network.encoder.side_branch is not None) == side_branch


@pytest.mark.slow
def test_rows_that_are_there_are_not_trained_again(
    judged: Path, cohort: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "cache" / "ablation").rglob("*")}
    capsys.readouterr()
    assert main(ablation(cohort, work, work / "again", "--rows", "full", "cvae")) == 0
    said = capsys.readouterr().err
    assert said.count("trained before") == 4
    assert "epoch" not in said
    assert {path: path.stat().st_mtime_ns for path in (work / "cache" / "ablation").rglob("*")} == before
    first = {(row["model"], row["study"]): row["probability"] for row in predictions(judged)}
    for row in predictions(work / "again"):
        assert row["probability"] == first[row["model"], row["study"]]


@pytest.mark.slow
def test_a_cohort_is_predicted_as_the_application_predicts(trained: Path, cohort: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(trained / "classifiers", models)
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    paths = [
        "--cohort",
        str(cohort),
        "-m",
        str(models),
        "--cache",
        str(tmp_path / "cache"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(["evaluate", "classification", *paths, "--prepare-workers", "1", "--replicates", "100"]) == 0
    rows = {row["study"]: row for row in predictions(tmp_path / "out")}
    studies = [study for study in read_cohort(cohort) if study.split == "test"]
    assert set(rows) == {study.path.name for study in read_cohort(cohort) if study.split != "train"}
    networks = (
        load_network(models / "lungs", DeepMedic)[0],
        load_network(models / "lesions", LesionNetwork)[0],
        load_network(models / "classifier", Classifier)[0],
    )
    for study in studies[:2]:
        row = rows[study.path.name]
        assert float(row["probability"]) == pytest.approx(_as_the_application(study, *networks), abs=1e-3)
        assert (row["split"], row["site"], row["manufacturer"]) == ("test", study.site, _manufacturer(study))
        assert float(row["slice_thickness"]) == 10.0
        assert row["sex"] in ("M", "F")
        assert 25 <= int(row["age"]) < 90


def _as_the_application(
    study: CohortStudy, lungs_network: DeepMedic, lesions_network: LesionNetwork, network: Classifier
) -> float:
    volume = load_study(study)
    lungs = segment_lungs(volume, lungs_network)
    return classify(volume, lungs, segment_lesions(volume, lungs, lesions_network), network, 0.5).probability


def _manufacturer(study: CohortStudy) -> str:
    return {"A": "Phantom Quiet", "B": "Phantom Noisy"}[str(study.site)]


@pytest.mark.slow
def test_a_model_is_not_judged_on_patients_that_it_learned_from(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "cohort"
    other.mkdir()
    with (cohort / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    turned = {"train": "test", "test": "train", "validation": "validation"}
    for row in rows:
        row |= {name: str(cohort / row[name]) for name in ("study", "lungs", "lesions")}
        row["split"] = turned[row["split"]]
    with (other / "cohort.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    paths = [
        "--cohort",
        str(other),
        "-m",
        str(trained / "models"),
        "--cache",
        str(tmp_path),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(["evaluate", "classification", *paths]) == 64
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "learned from 2 of the patients that it is to be judged on" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_are_not_judged_through_models_that_learned_from_the_same_patients(
    trained: Path, cohort: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "segmentation", tmp_path / "segmentation")
    tests = [study for study in read_cohort(cohort) if study.split == "test"]
    record = json.dumps({"patients": known_patients(tests, [])})
    (tmp_path / "segmentation" / "lesions" / "training.json").write_text(record)
    assert main(ablation(cohort, tmp_path, tmp_path / "out")) == 64
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the model lesions learned from 2 of the patients" in line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["absent", "empty", "unknown", "other ending"])
def test_a_wrong_folder_of_settings_is_not_ignored(
    kind: str, cohort: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings"
    if kind != "absent":
        settings.mkdir()
    if kind == "unknown":
        (settings / "clasifier.yaml").write_text("epochs: 1\n")
    if kind == "other ending":
        (settings / "classifier.yml").write_text("epochs: 1\n")
        (settings / "cvae.yaml").write_text("epochs: 1\n")
    assert main(ablation(cohort, untrained, tmp_path / "out", "-c", str(settings))) == 64
    (line,) = capsys.readouterr().err.strip().splitlines()
    said = {"absent": "no folder", "empty": "no settings", "unknown": "clasifier.yaml"}
    assert (said | {"other ending": "holds classifier.yml"})[kind] in line


def test_a_wrong_setting_of_a_later_row_is_told_before_the_first_is_trained(
    cohort: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decovnet.yaml").write_text("epoch: 1\n")
    assert main(ablation(cohort, untrained, tmp_path / "out", "-c", str(tmp_path))) == 64
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unknown setting epoch" in line


@pytest.fixture
def noise(tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forest on a cohort of noise: four studies each to learn from, to validate with, and to test on."""
    (tmp_path / "cohort").mkdir()
    write_noise_cohort(tmp_path / "cohort", [*["train"] * 4, *["validation"] * 4, *["test"] * 4])
    monkeypatch.setattr(data, "slice_preparation", lambda models, in_plane: NoiseSlices({}))
    return ablation(tmp_path / "cohort", untrained, tmp_path / "out", "--rows", "forest", "--cache", str(tmp_path))


def test_test_studies_that_the_system_refuses_are_counted_and_named(noise: list[str], tmp_path: Path) -> None:
    (tmp_path / "cohort" / "ct9.nii.gz").write_text("refused")
    assert main(noise) == 0
    content = json.loads((tmp_path / "out" / "classification.json").read_text("utf-8"))
    assert content["refused"] == [{"patient": "p9", "study": "ct9.nii.gz", "label": 1, "reason": "NO_LUNGS"}]
    assert {row["study"] for row in predictions(tmp_path / "out")} == {f"ct{n}.nii.gz" for n in (4, 5, 6, 7, 8, 10, 11)}


@pytest.mark.parametrize("refused", [(9, 11), (8, 9, 10, 11)])
def test_where_those_left_lack_a_class_nothing_is_trained(
    refused: tuple[int, ...], noise: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in refused:
        (tmp_path / "cohort" / f"ct{number}.nii.gz").write_text("refused")
    assert main(noise) == 64
    *told, line = capsys.readouterr().err.strip().splitlines()
    assert f"refuses {len(refused)} test studies, and the others are not of both classes" in line
    assert not any("forest" in said for said in told)
    assert not (tmp_path / "out").exists()


def test_a_study_to_learn_from_that_is_refused_is_an_error(
    noise: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cohort" / "ct5.nii.gz").write_text("refused")
    assert main(noise) == 64
    assert "take them out of the table: study ct5.nii.gz: NO_LUNGS" in capsys.readouterr().err.splitlines()[-1]


def test_a_cohort_needs_a_cache(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "classification", "--cohort", str(cohort), "-o", str(tmp_path / "out")]) == 64
    assert "--cache" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_forest_tells_large_infections_from_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    studies = []
    for index in range(12):
        labels = np.zeros((6, 16, 16), np.uint8)
        labels[:, 2:14, 2:14] = 1
        size = int(rng.integers(4, 8)) if index % 2 else 1
        labels[1:5, 4 : 4 + size, 4 : 4 + size] |= 2
        ct = np.where(labels > 0, 0.2, 0.0) + np.where(labels & 2, 0.4, 0.0)
        path = tmp_path / f"{index}.safetensors"
        tensors = {"ct": torch.from_numpy(ct.astype(np.float16)), "labels": torch.from_numpy(labels)}
        save_file(tensors, path, {"prepared": json.dumps({"said": {"spacing": "[3.0, 2.0, 2.0]"}})})
        studies.append(Prepared(path, index % 2))
    probability = forest_on(studies[:8])
    assert [probability(study.path) > 0.5 for study in studies[8:]] == [False, True, False, True]
