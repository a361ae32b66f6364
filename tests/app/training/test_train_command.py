"""``covid-ct train`` from a cohort to model folders that the application loads."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file

from app.application import Models
from app.cli import main
from app.cohort.known_patients import known_patients, refuse_known_patients
from app.cohort.table import read_cohort
from app.outcome import UsageError
from app.training.commands import MODELS
from models.classifier.cvae import CVAE
from models.involvement.network import InvolvementNetwork
from models.lesions.calibration import shift_background
from models.lesions.network import LesionNetwork
from models.lesions.training import LesionRecipe
from models.lungs.network import DeepMedic
from models.record import read_model
from models.runtime import Runtime
from models.store import load_network
from tests.app.training.small import SPACING, arguments, output_of

pytestmark = pytest.mark.whole


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("error:") for line in lines) == 1
    return lines[-1]


def test_the_application_loads_what_was_trained(trained: Path) -> None:
    models = Models.load(trained / "classifiers", Runtime("torch"))
    assert models.classifier.in_plane == 32
    for task in ("lungs", "lesions", "involvement"):
        here, there = (read_model(trained / place / task)[0] for place in ("classifiers", "segmentation"))
        assert here == there
    assert load_network(trained / "models" / "lungs", DeepMedic)[0].spacing == (10.0, 10.0, 10.0)
    lesions, _ = load_network(trained / "models" / "lesions", LesionNetwork)
    assert (lesions.spacing, lesions.patch) == (SPACING, (8, 16, 16))
    assert load_network(trained / "models" / "involvement", InvolvementNetwork)[0].pixel_mm == 5.0
    cvae, _ = load_network(trained / "classifiers" / "cvae", CVAE)
    assert cvae.decoder.size == 16


def test_a_model_folder_says_all_there_is_to_say(trained: Path, cohort: Path) -> None:
    for model in MODELS:
        folder = output_of(model, trained) / model
        assert {path.name for path in folder.iterdir()} == {
            *("weights.safetensors", "metadata.json", "README.md", "training.json", "training.png")
        }
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        assert metadata["pytorch_version"] == torch.__version__.partition("+")[0]
        assert metadata["intended_use"] == "Research use only. Not for diagnostic use."
        assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "CT"
        record = json.loads((folder / "training.json").read_text("utf-8"))
        studies = read_cohort(cohort)
        split = {name: [study for study in studies if study.split == name] for name in ("train", "validation")}
        assert record["patients"] == known_patients(split["train"], split["validation"])
        assert [len(hashes) for hashes in record["patients"].values()] == [2, 2]
        assert (record["segmentation"] is not None) == (model in ("cvae", "classifier"))
        assert record["studies"]["training"] == {"patients": 2, "studies": 2, "positive": 1}
        assert len(record["history"]) == record["kept_epoch"] == 1
        card = (folder / "README.md").read_text("utf-8")
        assert "Not for diagnostic use" in card
        assert ("**Calibrated**" in card) == bool(record["calibration"])
        assert model in ("lesions", "classifier") or record["calibration"] == {}
        assert "| training | 2 | 2 | 1 |" in card
        assert not any(study.patient in card for study in read_cohort(cohort))


def test_the_state_of_a_training_is_in_the_cache_and_curves_can_be_looked_at(trained: Path) -> None:
    for model in MODELS:
        (state,) = (trained / "cache" / "trainings").glob(f"{model}-*")
        assert (state / "checkpoint.safetensors").exists()
        assert list((state / "tensorboard").iterdir())


@pytest.mark.parametrize("model", ["lungs", "lesions"])
def test_a_finished_training_is_written_again_from_its_state(
    model: str, trained: Path, cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    assert main(arguments(model, cohort, tmp_path)) == 0
    first, again = (load_file(folder / "models" / model / "weights.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_a_recipe_calibrates_in_the_end_is_written_and_told(
    trained: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever these tiny trainings find: the recipe is made to find something else."""
    ready = []

    def calibrate(recipe: LesionRecipe, network: LesionNetwork) -> dict[str, float]:
        ready.append(not network.training)
        shift_background(network.head, 0.25)
        return {"shift": 0.25}

    monkeypatch.setattr(LesionRecipe, "calibrate", calibrate)
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    assert main(arguments("lesions", cohort, tmp_path)) == 0
    assert ready == [True], "once"
    before, after = (folder / "models" / "lesions" for folder in (trained, tmp_path))
    found = json.loads((before / "training.json").read_text("utf-8"))["calibration"].get("shift", 0.0)
    assert json.loads((after / "training.json").read_text("utf-8"))["calibration"] == {"shift": 0.25}
    assert "**Calibrated** on the validation data (shift 0.25)" in (after / "README.md").read_text("utf-8")
    first, again = (load_file(folder / "weights.safetensors") for folder in (before, after))
    first["head.bias"][0] += found - 0.25
    for name, tensor in first.items():
        absolute = 1e-3 if name == "head.bias" else 1e-4  # moved twice, each time to the nearest float16
        torch.testing.assert_close(again[name], tensor, rtol=2e-3, atol=absolute)


def test_training_goes_on_from_the_weights_that_are_named(trained: Path, cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    more = ["--start", str(trained / "models"), "--set", "learning_rate=1e-9", "--set", "averaging=0.0"]
    assert main(arguments("involvement", cohort, tmp_path, *more)) == 0
    path = Path("models", "involvement", "weights.safetensors")
    before, after = (load_file(folder / path) for folder in (trained, tmp_path))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=2e-3)


def test_the_classifier_starts_from_the_autoencoder_beside_it(trained: Path, cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    shutil.copytree(trained / "segmentation", tmp_path / "segmentation")
    shutil.copytree(trained / "classifiers" / "cvae", tmp_path / "classifiers" / "cvae")
    assert main(arguments("classifier", cohort, tmp_path, "--set", "learning_rate=1e-9")) == 0
    cvae = load_file(tmp_path / "classifiers" / "cvae" / "weights.safetensors")
    network = load_file(tmp_path / "classifiers" / "classifier" / "weights.safetensors")
    names = [name for name in network if name.startswith("encoder.")]
    assert len(names) == 12
    for name in names:
        torch.testing.assert_close(network[name].float(), cvae[name], rtol=1e-3, atol=1e-6)


def test_the_autoencoder_has_not_seen_the_labels_of_the_validation_patients(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else training stops, and probabilities are brought to scale, by what is known already."""
    shutil.copytree(trained / "segmentation", tmp_path / "segmentation")
    shutil.copytree(trained / "classifiers" / "cvae", tmp_path / "classifiers" / "cvae")
    other = copy_of(cohort, tmp_path / "cohort")
    turned = {"train": "validation", "validation": "train", "test": "test"}
    write_rows(other, [row | {"split": turned[row["split"]]} for row in rows_of(other)])
    assert main(arguments("classifier", other, tmp_path)) == 64
    assert "the model cvae learned from 2 of the patients" in last_error(capsys)
    assert not (tmp_path / "cache").exists()


def test_it_is_told_where_the_segmentation_knows_the_patients(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    shutil.copytree(trained / "segmentation", tmp_path / "segmentation")
    shutil.copy(trained / "models" / "lesions" / "training.json", tmp_path / "segmentation" / "lesions")
    assert main(arguments("cvae", cohort, tmp_path, "--prepare-only")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "has learned from" in line]
    assert len(told) == 1
    assert "lesions has learned from 2 of these patients" in told[0]


def test_without_an_autoencoder_the_classifier_says_what_to_do(
    cohort: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    shutil.copytree(trained / "segmentation", tmp_path / "segmentation")
    assert main(arguments("classifier", cohort, tmp_path)) == 64
    assert "train cvae first" in last_error(capsys)
    assert not (tmp_path / "classifiers").exists()


def test_a_model_knows_of_whom_its_predecessors_learned(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """Started from weights that learned from the test patients of today, it knows them, too."""
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    other = copy_of(cohort, tmp_path / "cohort")
    turned = {"train": "test", "test": "train", "validation": "validation"}
    write_rows(other, [row | {"split": turned[row["split"]]} for row in rows_of(other)])
    assert main(arguments("involvement", other, tmp_path, "--start", str(trained / "models"))) == 0
    record = json.loads((tmp_path / "models" / "involvement" / "training.json").read_text("utf-8"))
    assert set(record["started_from"]) == {"involvement"}
    assert len(record["patients"]["training"]) == 4
    tests = [study for study in read_cohort(other) if study.split == "test"]
    with pytest.raises(UsageError, match="learned from 2 of the patients"):
        refuse_known_patients(tmp_path / "models", ("involvement",), tests)


def test_a_classifier_does_not_come_to_lie_beside_other_models_than_it_learned_with(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "segmentation", tmp_path / "segmentation")
    shutil.copytree(trained / "classifiers" / "cvae", tmp_path / "classifiers" / "cvae")
    shutil.copytree(trained / "models" / "lungs", tmp_path / "classifiers" / "lungs")
    assert main(arguments("classifier", cohort, tmp_path)) == 64
    assert "is another model than" in last_error(capsys)
    shutil.rmtree(tmp_path / "classifiers" / "lungs")
    shutil.rmtree(tmp_path / "segmentation" / "lungs")
    shutil.copytree(trained / "models" / "lungs", tmp_path / "segmentation" / "lungs")
    assert main(arguments("classifier", cohort, tmp_path)) == 64
    assert "learned with other segmentation models" in last_error(capsys)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--devices", "3"], "a step of 2 items cannot be divided among 3 devices"),
        (["--start", "nowhere"], "there is no nowhere/lungs to start from"),
        (["--set", "spacing=[10,0,10]"], "setting spacing.1"),
    ],
)
def test_what_cannot_go_well_is_told_before_anything_is_prepared(
    more: list[str], said: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("lungs", cohort, tmp_path, *more)) == 64
    assert said in last_error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_there_is_not_replaced(trained: Path, cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("lungs", cohort, trained)) == 64
    assert "is there already" in last_error(capsys)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("epoch=3", "unknown setting epoch"),
        ("epochs=0", "setting epochs"),
        ("epochs", "NAME=VALUE"),
        ("spacing=[1", "no YAML"),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    assignment: str, said: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("lungs", cohort, tmp_path, "--set", assignment)) == 64
    assert said in last_error(capsys)
    assert not list(tmp_path.iterdir())


def copy_of(cohort: Path, target: Path) -> Path:
    """Copy a cohort without its images; the table names those of the first."""
    target.mkdir()
    with (cohort / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {name: str(cohort / row[name]) for name in ("study", "lungs", "lesions")}
    write_rows(target, rows)
    return target


def write_rows(target: Path, rows: list[dict[str, str]]) -> None:
    with (target / "cohort.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def rows_of(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "cohort.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_without_splits_says_how_to_make_them(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(cohort, tmp_path / "cohort")
    write_rows(copy, [row | {"split": ""} for row in rows_of(copy)])
    assert main(arguments("lungs", copy, tmp_path)) == 64
    assert "--split 70 15 15" in last_error(capsys)


def test_a_split_of_one_class_is_told_in_one_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(cohort, tmp_path / "cohort")
    write_rows(copy, [row for row in rows_of(copy) if row["split"] != "validation" or row["label"] == "1"])
    assert main(arguments("cvae", copy, tmp_path)) == 64
    assert "the split validation has only positive studies" in last_error(capsys)
    assert main(arguments("lungs", copy, tmp_path, "--prepare-only")) == 0, "segmentation needs no classes"


def test_without_masks_there_is_nothing_to_learn(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(cohort, tmp_path / "cohort")
    write_rows(copy, [row | {"lesions": ""} for row in rows_of(copy)])
    assert main(arguments("lesions", copy, tmp_path)) == 64
    assert "no train study with masks of the lungs and lesions" in last_error(capsys)


def test_an_image_with_nan_is_named_and_nothing_is_written(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(cohort, tmp_path / "cohort")
    rows = rows_of(copy)
    row = next(row for row in rows if row["split"] == "train")
    mask = sitk.ReadImage(row["lungs"])
    voxels = np.full(sitk.GetArrayViewFromImage(mask).shape, np.nan, np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(mask)
    sitk.WriteImage(image, str(copy / "broken.nii.gz"))
    row["study"] = "broken.nii.gz"
    write_rows(copy, rows)
    assert main(arguments("lungs", copy, tmp_path)) == 64
    line = last_error(capsys)
    assert "1 of 4 studies cannot be used" in line
    assert "study broken.nii.gz: hu must be finite" in line
    assert not (tmp_path / "models").exists()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_models_that_are_missing_are_named(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("cvae", cohort, tmp_path)) == 64
    assert "model lungs: cannot read" in last_error(capsys)


def test_a_models_folder_that_cannot_be_written_loses_no_training(
    trained: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    (tmp_path / "models").write_text("a file")
    assert main(arguments("lungs", cohort, tmp_path)) == 70
    assert "cannot write the model" in last_error(capsys)
    (tmp_path / "models").unlink()
    assert main(arguments("lungs", cohort, tmp_path)) == 0


def test_a_patient_who_is_left_out_can_be_judged_on_and_no_other(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {study.patient: study.split for study in read_cohort(cohort)}
    left, *learned = sorted(patient for patient, own in split.items() if own == "train")
    assert main(arguments("lungs", cohort, tmp_path, "--leave-out", left)) == 0
    record = json.loads((tmp_path / "models" / "lungs" / "training.json").read_text("utf-8"))
    assert record["studies"]["training"]["patients"] == len(learned)
    judge = ["evaluate", "robustness", "--cohort", str(cohort), "-m", str(tmp_path / "models"), "-o"]
    assert main([*judge, str(tmp_path / "of a known one"), "--only", learned[0]]) == 64
    assert "learned from 1 of the patients that it is to be judged on" in last_error(capsys)
    chosen_on = next(patient for patient, own in split.items() if own == "validation")
    assert main([*judge, str(tmp_path / "of one chosen on"), "--only", chosen_on]) == 64
    assert "learned from 1 of the patients that it is to be judged on" in last_error(capsys)
    assert main([*judge, str(tmp_path / "judged"), "--only", left]) == 0
    trials = json.loads((tmp_path / "judged" / "robustness.json").read_text("utf-8"))["trials"]
    assert {trial["patient"] for trial in trials} == {left}
    positive = {study.patient for study in read_cohort(cohort) if study.label == 1 and study.split == "train"}
    assert main(arguments("cvae", cohort, tmp_path / "more", "--leave-out", *positive)) == 64
    assert last_error(capsys) == "error: cvae cannot be trained: the split train has only negative studies"
    training = arguments("lungs", cohort, tmp_path / "more")
    for command in ([*judge, str(tmp_path / "more"), "--only"], [*training, "--leave-out"]):
        capsys.readouterr()
        assert main([*command, "nobody"]) == 64
        assert last_error(capsys) == "error: no study is of patient nobody"
