"""A cohort is predicted, and what the system refuses of it is not passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import main
from app.evaluation import cohort_predictions
from tests.app.noise_slices import NoiseSlices, write_noise_cohort
from tests.app.training.small import write_segmentation


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two studies for validation, four for testing, of both classes each."""
    write_noise_cohort(tmp_path, ["validation"] * 2 + ["test"] * 4)
    models = write_segmentation(tmp_path / "models")
    monkeypatch.setattr(cohort_predictions, "slice_preparation", lambda models, in_plane: NoiseSlices({}))
    paths = ["--cohort", str(tmp_path), "-m", str(models), "--cache", str(tmp_path / "cache")]
    output = ["-o", str(tmp_path / "out"), "--replicates", "100"]
    return ["evaluate", "classification", *paths, *output, "--prepare-workers", "1"]


def test_test_studies_that_the_system_refuses_are_counted_and_named(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "ct3.nii.gz").write_text("refused")
    assert main(command) == 0
    content = json.loads((tmp_path / "out" / "classification.json").read_text())
    assert content["refused_studies"] == 1
    assert content["refused"] == [{"patient": "p3", "study": "ct3.nii.gz", "label": 1, "reason": "NO_LUNGS"}]
    assert (content["models"][0]["positives"], content["models"][0]["negatives"]) == (1, 2)
    page = " ".join((tmp_path / "out" / "index.html").read_text().split())
    assert page.startswith("<!DOCTYPE html>")
    assert "refused 1 of the 4 test studies, 1 of them positive." in page
    assert "leave them out: ct3.nii.gz (NO_LUNGS)." in page


def test_where_nothing_is_refused_nothing_is_said_of_it(command: list[str], tmp_path: Path) -> None:
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "classification.json").read_text())["refused"] == []
    assert "refused" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(("number", "content"), [(0, "refused"), (3, "broken")])
def test_others_that_cannot_be_used_are_an_error_that_names_them_alone(
    number: int, content: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those for validation are chosen on, and a broken file is no failure of the system."""
    (tmp_path / "ct5.nii.gz").write_text("refused")
    (tmp_path / f"ct{number}.nii.gz").write_text(content)
    assert main(command) == 64
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"1 of 6 studies cannot be used, take them out of the table: study ct{number}.nii.gz: " in line
    assert "ct5" not in line
    assert not (tmp_path / "out").exists()


def test_where_every_test_study_is_refused_there_is_nothing_to_judge(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2, 6):
        (tmp_path / f"ct{number}.nii.gz").write_text("refused")
    assert main(command) == 64
    assert "both classes" in capsys.readouterr().err.splitlines()[-1]
