"""CTs as other scanners would give them, and what that changes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.cohort.images import axial_grid, write_image
from app.evaluation.overlap import outside_ml
from app.evaluation.quality import AS_IS, QUALITIES
from app.evaluation.robustness import MEASURES, Trial
from app.evaluation.robustness_report import write_robustness
from models.lungs.network import DeepMedic
from models.morphology import Spacing
from models.store import save_weights
from operators.volume import FloatArray
from tests.app.tiny_run import threshold_network
from tests.app.training.small import write_segmentation
from tests.builders import write_series

SPACING = (2.0, 0.8, 0.8)


def _chest(shape: tuple[int, int, int] = (40, 64, 64)) -> FloatArray:
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    lung = ((z - 20) / 12) ** 2 + ((y - 32) / 20) ** 2 + ((x - 32) / 20) ** 2 < 1
    return np.where(lung, -850.0, 40.0).astype(np.float32)


def _seen(name: str, hu: FloatArray, seed: int = 0) -> tuple[FloatArray, Spacing]:
    before = hu.copy()
    result = QUALITIES[name](hu, SPACING, np.random.default_rng(seed))
    np.testing.assert_array_equal(hu, before), "the CT itself stays as it is"
    return result


def test_as_it_is_comes_first_and_changes_nothing() -> None:
    assert next(iter(QUALITIES)) == AS_IS
    seen, spacing = _seen(AS_IS, _chest())
    np.testing.assert_array_equal(seen, _chest())
    assert spacing == SPACING


@pytest.mark.parametrize("thickness", [0.7, 5.0, 10.0])
def test_slices_keep_extent_and_mean(thickness: float) -> None:
    hu = _chest()
    seen, spacing = _seen(f"slices of {thickness:g} mm", hu)
    assert seen.shape[0] * spacing[0] == pytest.approx(80.0)
    assert spacing[0] == pytest.approx(thickness, rel=0.05)
    assert seen.shape[1:] == hu.shape[1:]
    assert spacing[1:] == SPACING[1:]
    assert seen.mean() == pytest.approx(hu.mean(), abs=3.0)


def test_thick_slices_average_noise_away() -> None:
    hu = np.random.default_rng(0).normal(0.0, 30.0, (40, 32, 32)).astype(np.float32)
    assert _seen("slices of 10 mm", hu)[0].std() < 0.6 * hu.std()


def test_kernels_change_edges_and_noise_but_no_flat_region_and_nothing_between_slices() -> None:
    hu = _chest()
    hu[:20] += np.random.default_rng(0).normal(0.0, 20.0, hu[:20].shape).astype(np.float32)
    smooth, sharp = _seen("smooth kernel", hu)[0], _seen("sharp kernel", hu)[0]
    for seen in (smooth, sharp):
        np.testing.assert_allclose(seen[30, :6, :6], 40.0, atol=1e-3)
        assert seen[20:].std((0,))[0, 0] == pytest.approx(hu[20:].std((0,))[0, 0], abs=1e-3)
    noise = [part[2:8, :8, :8].std() for part in (smooth, hu, sharp)]
    assert noise[0] < 0.5 * noise[1]
    assert noise[2] > 1.5 * noise[1]


@pytest.mark.parametrize(("name", "by"), [("50 HU higher", 50.0), ("50 HU lower", -50.0)])
def test_offsets_end_at_air(name: str, by: float) -> None:
    hu = _chest()
    hu[:, :2] = -1010.0
    np.testing.assert_allclose(_seen(name, hu)[0], np.maximum(hu + by, -1024.0))


def test_noise_is_as_said_and_hangs_on_the_seed() -> None:
    hu = _chest()
    first, again, other = (_seen("noise of 60 HU", hu, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    dense = hu > 0
    assert (first - hu)[dense].std() == pytest.approx(60.0, rel=0.02)
    assert (first - hu)[dense].mean() == pytest.approx(0.0, abs=1.0)
    assert first.min() >= -1024.0


def test_the_largest_piece_outside_is_that_of_counts() -> None:
    truth, found = np.zeros((12, 40, 40), bool), np.zeros((12, 40, 40), bool)
    truth[2:10, 5:15, 5:15] = found[2:10, 5:15, 5:16] = True  # a voxel too wide: within the tolerance
    assert outside_ml(truth, found, (1.0, 1.0, 1.0), 3.0) == 0.0
    found[3:6, 30:34, 30:35] = found[8, 30, 5] = True
    assert outside_ml(truth, found, (1.0, 1.0, 1.0), 3.0) == pytest.approx(0.06)
    assert outside_ml(truth, found, (2.0, 0.5, 0.5), 3.0) == pytest.approx(0.03)


def _cohort(folder: Path) -> Path:
    """A chest as NIfTI with the mask of its lungs, in which thresholds are right."""
    shape, spacing = (48, 48, 60), (3.0, 6.0, 6.0)
    hu, lungs = np.full(shape, 40, np.int16), np.zeros(shape, np.uint8)
    lungs[8:40, 12:36, 8:26], lungs[8:40, 12:36, 34:52] = 2, 1
    hu[lungs > 0] = -850
    hu[20:24, 20:26, 12:18] = -300
    grid = axial_grid(shape, spacing)
    write_image(folder / "a.nii.gz", hu, grid)
    write_image(folder / "a_lungs.nii.gz", lungs, grid)
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient", "study", "label", "lungs"), ("p", "a.nii.gz", 1, "a_lungs.nii.gz")])
    return folder


@pytest.mark.whole
def test_the_command_measures_what_the_models_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = _cohort(tmp_path)
    write_segmentation(tmp_path / "all")
    shutil.copytree(tmp_path / "all" / "lungs", tmp_path / "lungs only" / "lungs")
    for models, measured in (("lungs only", list(MEASURES)[:3]), ("all", list(MEASURES))):
        output = tmp_path / f"of {models}"
        arguments = ["--cohort", str(cohort), "-m", str(tmp_path / models), "-o", str(output)]
        assert main(["evaluate", "robustness", *arguments]) == 0, capsys.readouterr().err
        told = capsys.readouterr().err
        assert f"study 1 of 1, {AS_IS}: lungs_dice" in told
        trials = json.loads((output / "robustness.json").read_text())["trials"]
        assert [trial["quality"] for trial in trials] == list(QUALITIES)
        assert all(list(trial["measures"]) == measured and not trial["refused"] for trial in trials)
        dices = {trial["quality"]: trial["measures"]["lungs_dice"] for trial in trials}
        assert dices[AS_IS] > 0.9
        assert min(dices.values()) > 0.7
        assert dices["slices of 10 mm"] < dices[AS_IS]
        table = (output / "robustness.md").read_text()
        assert f"| {AS_IS} | {dices[AS_IS]:.3f} |" in table
        assert {path.stem for path in output.glob("*.png")} == set(measured)


def test_a_quality_at_which_nothing_is_found_is_said(tmp_path: Path) -> None:
    cohort = _cohort(tmp_path)
    settings = {"spacing": [10.0, 10.0, 10.0]}
    save_weights(tmp_path / "models" / "lungs", _blind(), {"name": "test", "version": "0"}, settings)
    arguments = ["--cohort", str(cohort), "-m", str(tmp_path / "models"), "-o", str(tmp_path / "out")]
    assert main(["evaluate", "robustness", *arguments]) == 0
    trials = json.loads((tmp_path / "out" / "robustness.json").read_text())["trials"]
    assert {trial["refused"] for trial in trials} == {"NO_LUNGS"}
    assert "| as it is | NO_LUNGS |" in (tmp_path / "out" / "robustness.md").read_text()


def test_studies_that_cannot_be_loaded_are_said_and_others_of_their_name_told_apart(tmp_path: Path) -> None:
    """Both studies of the patient are called ct; slices are missing in them, which the system refuses."""
    cohort = _cohort(tmp_path)
    rows = [("patient", "study", "label", "lungs")]
    for when in ("first", "second"):
        folder = tmp_path / when / "ct"
        folder.parent.mkdir()
        for path in write_series(folder, np.full((48, 48, 60), 40), (3.0, 6.0, 6.0), study=when)[20:24]:
            path.unlink()
        rows.append(("p", f"{when}/ct", "1", "a_lungs.nii.gz"))
    with (cohort / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    settings = {"spacing": [10.0, 10.0, 10.0]}
    save_weights(tmp_path / "models" / "lungs", _blind(), {"name": "test", "version": "0"}, settings)
    arguments = ["--cohort", str(cohort), "-m", str(tmp_path / "models"), "-o", str(tmp_path / "out")]
    assert main(["evaluate", "robustness", *arguments]) == 0
    trials = json.loads((tmp_path / "out" / "robustness.json").read_text())["trials"]
    assert {(trial["study"], trial["refused"]) for trial in trials} == {
        ("first/ct", "MISSING_SLICES"),
        ("second/ct", "MISSING_SLICES"),
    }
    assert "| | first/ct | second/ct |" in (tmp_path / "out" / "robustness.md").read_text()


def _blind() -> DeepMedic:
    network = threshold_network()
    last = network.head[-1]
    last.weight.data.zero_()
    last.bias.data.fill_(-9.0)
    return network


def test_studies_of_the_same_name_are_told_apart_by_their_patients(tmp_path: Path) -> None:
    values = {("a", "ct"): 0.25, ("b", "ct"): 0.5, ("b", "other"): 0.75}
    trials = [Trial(*who, quality, {"lungs_dice": value}) for who, value in values.items() for quality in QUALITIES]
    write_robustness(trials, tmp_path)
    table = (tmp_path / "robustness.md").read_text()
    assert "| | a/ct | b/ct | other |" in table
    assert f"| {AS_IS} | 0.250 | 0.500 | 0.750 |" in table


def test_what_cannot_be_measured_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = _cohort(tmp_path)
    arguments = ["evaluate", "robustness", "--cohort", str(cohort), "-o", str(tmp_path / "out")]
    assert main([*arguments, "-m", str(tmp_path / "none")]) == 64
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: model lungs: ")
    (cohort / "cohort.csv").write_text("patient,study,label\np,a.nii.gz,1\n")
    assert main(arguments) == 64
    assert "no study of the cohort has a mask of the lungs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
