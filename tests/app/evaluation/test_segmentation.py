"""Masks are judged against those of a cohort, by the command too."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from app.cli import main
from app.cohort.images import axial_grid, load_mask, load_study, write_image
from app.cohort.table import read_cohort
from app.evaluation.segmentation import (
    MEASURES,
    Masks,
    StudyScore,
    from_folder,
    measure,
    score_cohort,
    summarise_scores,
)
from app.outcome import UsageError
from app.phantom import COARSE_MM
from app.phantom.cohort import write_cohort
from operators.findings import LesionType
from tests.app.training.small import write_segmentation
from tests.builders import write_series

SPACING = (3.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "four"
    write_cohort(folder, 4, seed=5, spacing=COARSE_MM)
    return folder


@pytest.fixture(scope="module")
def predictions(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The truth with every border a voxel farther out."""
    folder = tmp_path_factory.mktemp("predictions")
    for path in (cohort / "masks").iterdir():
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(image)
        grown = np.where(labels == 0, ndimage.grey_dilation(labels, 3), labels)
        changed = sitk.GetImageFromArray(grown.astype(np.uint8))
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(folder / path.name))
    return folder


def _random(seed: int) -> Masks:
    rng = np.random.default_rng(seed)
    lungs = rng.integers(0, 3, (6, 10, 12)).astype(np.uint8)
    lesions = np.where(lungs > 0, rng.integers(0, 5, lungs.shape), 0).astype(np.uint8)
    return Masks(lungs, lesions, lesions > 0)


def test_measures_are_those_of_counts() -> None:
    truth, found = _random(0), _random(1)
    values = measure(truth, found, SPACING)
    assert values.keys() == MEASURES.keys()
    assert truth.lesions is not None
    assert found.lesions is not None
    true, seen = truth.lesions > 0, found.lesions > 0
    assert values["lesions_dice"] == values["affected_dice"]
    assert values["lesions_dice"] == pytest.approx(2 * (true & seen).sum() / (true.sum() + seen.sum()))
    assert values["lungs_error_ml"] == pytest.approx(((found.lungs > 0).sum() - (truth.lungs > 0).sum()) * 0.012)
    kind = (truth.lesions == 2), (found.lesions == 2)
    assert values["consolidation_dice"] == pytest.approx(
        2 * (kind[0] & kind[1]).sum() / (kind[0].sum() + kind[1].sum())
    )
    shares = [100 * lesions.sum() / (lungs > 0).sum() for lungs, lesions in ((found.lungs, seen), (truth.lungs, true))]
    assert values["lesions_error_percent"] == pytest.approx(shares[0] - shares[1])
    twice = found._replace(affected=found.lungs > 0)
    assert measure(truth, twice, SPACING)["involvement_error"] == pytest.approx(100 - shares[1]), "that of 2DS"
    assert np.isnan(measure(truth, found._replace(affected=None), SPACING)["involvement_error"])
    given = measure(truth, found._replace(given=True), SPACING)
    assert all(np.isnan(value) == name.startswith("lungs_") for name, value in given.items())


def test_of_lungs_without_lesions_no_type_is_judged() -> None:
    """Whoever marked lesions of unknown type in others has stated none here."""
    healthy, found = _random(0), _random(1)
    assert healthy.lesions is not None
    values = measure(healthy._replace(lesions=np.zeros_like(healthy.lesions)), found, SPACING)
    assert values["lesions_dice"] == 0.0
    assert all(np.isnan(values[f"{kind.name.lower()}_dice"]) for kind in LesionType)


def test_perfect_masks_are_perfect() -> None:
    values = measure(_random(0), _random(0), SPACING)
    assert all(value == (0.0 if "error" in name else 1.0) for name, value in values.items())


def test_means_leave_out_what_is_undefined() -> None:
    scores = [
        StudyScore(str(k), str(k), dict.fromkeys(MEASURES, value)) for k, value in enumerate((0.5, float("nan"), 0.7))
    ]
    summary = summarise_scores(scores, replicates=500)
    assert summary["lungs_dice"].value == pytest.approx(0.6)
    assert (summary["lungs_dice"].low, summary["lungs_dice"].high) == (0.5, 0.7)
    undefined = [StudyScore("a", "a", dict.fromkeys(MEASURES, float("nan")))]
    assert summarise_scores(undefined, replicates=100)["lungs_dice"].text == "undefined"


def test_the_cohort_is_scored_in_its_geometry(cohort: Path, predictions: Path) -> None:
    told: list[str] = []
    scores = score_cohort(read_cohort(cohort), from_folder(predictions, read_cohort(cohort)), told.append)
    assert len(scores) == len(told) == 4
    for score in scores:
        assert 0.5 < score.measures["lungs_dice"] < 1.0
        assert score.measures["lungs_error_ml"] > 0
    truth = score_cohort(read_cohort(cohort), from_folder(cohort / "masks", read_cohort(cohort)))
    assert all(score.measures["lungs_surface_dice"] == 1.0 for score in truth)


def test_studies_of_one_patient_and_one_name_are_told_apart(cohort: Path, tmp_path: Path) -> None:
    first, *_ = read_cohort(cohort)
    studies = []
    for folder in ("before", "after"):
        shutil.copytree(first.path, tmp_path / folder / first.path.name)
        studies.append(replace(first, path=tmp_path / folder / first.path.name))
    truth = score_cohort(studies, from_folder(cohort / "masks", [first]))
    assert [score.study for score in truth] == [f"before/{first.path.name}", f"after/{first.path.name}"]


def test_images_in_another_order_of_axes_are_the_same(cohort: Path, tmp_path: Path) -> None:
    study = read_cohort(cohort)[0]
    assert study.lungs is not None
    grid = load_study(study).grid
    turned = tmp_path / "turned.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(study.lungs)), "RSA"), str(turned))
    np.testing.assert_array_equal(load_mask(turned, grid, 2), load_mask(study.lungs, grid, 2))


def test_a_ct_as_nifti_is_that_of_dicom(cohort: Path, tmp_path: Path) -> None:
    study = read_cohort(cohort)[0]
    volume = load_study(study)
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.grid.spacing[::-1])
    image.SetOrigin(volume.grid.affine[:3, 3].tolist())
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(image, str(path))
    again = load_study(type(study)("p", path, 0))
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.grid.affine, volume.grid.affine, atol=1e-4)


def test_masks_that_cannot_be_are_refused(cohort: Path, tmp_path: Path) -> None:
    first, *_ = read_cohort(cohort)
    grid = load_study(first).grid
    assert first.lungs is not None
    image = sitk.ReadImage(str(first.lungs))
    image.SetOrigin([value + 1.0 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(tmp_path / "moved.nii.gz"))
    with pytest.raises(UsageError, match=r"moved\.nii\.gz does not lie on the grid"):
        load_mask(tmp_path / "moved.nii.gz", grid, 2)
    with pytest.raises(UsageError, match="other labels than 0 to 1"):
        load_mask(first.lungs, grid, 1)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"cannot read broken\.nii\.gz"):
        load_mask(tmp_path / "broken.nii.gz", grid, 2)
    with pytest.raises(UsageError, match=r"holds no p000_lungs\.nii\.gz"):
        score_cohort([first], from_folder(tmp_path, [first]))
    with pytest.raises(UsageError, match="several studies are named p000"):
        from_folder(tmp_path, [first, replace(first, patient="another")])


def test_the_command_writes_what_it_measured(
    cohort: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["evaluate", "segmentation", "--cohort", str(cohort), "--predictions", str(predictions)]
    assert main([*command, "-o", str(output), "--replicates", "200"]) == 0
    assert capsys.readouterr().out == f"{output / 'index.html'}\n"
    scores = score_cohort(read_cohort(cohort), from_folder(predictions, read_cohort(cohort)))
    means = json.loads((output / "segmentation.json").read_text("utf-8"))["means"]
    expected = np.mean([score.measures["lungs_dice"] for score in scores])
    assert means["lungs_dice"]["value"] == pytest.approx(expected)
    with (output / "segmentation.csv").open(encoding="utf-8") as file:
        rows = {(row["study"], row["measure"]): row["value"] for row in csv.DictReader(file)}
    assert float(rows["p001", "lungs_dice"]) == pytest.approx(scores[1].measures["lungs_dice"])
    page = (output / "index.html").read_text("utf-8")
    assert len(list((output / "differences").iterdir())) == page.count('src="differences/') == len(scores)
    assert f"{expected:.2f} [" in page
    assert "Research use only" in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert (output / name).is_file()


def test_what_cannot_be_judged_is_one_line_and_leaves_nothing(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(cohort, bare)
    table = bare / "cohort.csv"
    table.write_text(re.sub(r",masks/\S+", ",,", table.read_text("utf-8")), "utf-8")
    command = ["evaluate", "segmentation", "-o", str(tmp_path / "out")]
    for more, says in (
        (["--cohort", str(tmp_path)], "a cohort is a folder with a table"),
        (["--cohort", str(bare), "--predictions", str(tmp_path)], "no study of the cohort has masks"),
        (["--cohort", str(cohort), "-m", str(tmp_path)], "model lungs: cannot read"),
    ):
        assert main([*command, *more]) == 64
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert says in line
        assert not (tmp_path / "out").exists()


def _refused_in_part(folder: Path) -> Path:
    """Three chests of one truth: as it should be, without air, and without some of its slices."""
    shape, spacing = (48, 48, 60), (3.0, 6.0, 6.0)
    hu, lungs, lesions = np.full(shape, 40, np.int16), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    lungs[8:40, 12:36, 8:26], lungs[8:40, 12:36, 34:52] = 2, 1
    lesions[20:24, 20:26, 12:18] = 1
    airless = hu.copy()
    hu[lungs > 0] = -850
    grid = axial_grid(shape, spacing)
    for name, voxels in (("a.nii.gz", hu), ("b.nii.gz", airless), ("lungs.nii.gz", lungs), ("lesions.nii.gz", lesions)):
        write_image(folder / name, voxels, grid)
    for path in write_series(folder / "c", hu, spacing)[20:24]:
        path.unlink()
    rows = [f"{name},{study},1,lungs.nii.gz,lesions.nii.gz" for name, study in (*_NIFTI, ("pc", "c"))]
    (folder / "cohort.csv").write_text("\n".join(["patient,study,label,lungs,lesions", *rows]))
    return folder


_NIFTI = (("pa", "a.nii.gz"), ("pb", "b.nii.gz"))


def test_studies_that_the_system_refuses_count_as_those_in_which_nothing_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = _refused_in_part(tmp_path)
    models, output = write_segmentation(tmp_path / "models"), tmp_path / "out"
    shutil.rmtree(models / "involvement")
    command = ["evaluate", "segmentation", "--cohort", str(cohort), "-m", str(models), "-o", str(output)]
    assert main([*command, "--replicates", "100"]) == 0, capsys.readouterr().err
    assert "study 2 of 3: NO_LUNGS, Dice of lungs 0.000, lesions 0.000" in capsys.readouterr().err
    content = json.loads((output / "segmentation.json").read_text("utf-8"))
    codes = {"b.nii.gz": "NO_LUNGS", "c": "MISSING_SLICES"}
    assert content["studies"] == 3
    assert content["refused_studies"] == 2
    assert {each["study"]: each["reason"] for each in content["refused"]} == codes
    with (output / "segmentation.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["study"]: row["refused"] for row in rows} == {"a.nii.gz": "", **codes}
    values = {(row["study"], row["measure"]): row["value"] for row in rows}
    assert float(values["a.nii.gz", "lungs_dice"]) > 0.9
    true_ml, true_percent = 2 * 32 * 24 * 18 * 0.108, 100 * 4 * 6 * 6 / (2 * 32 * 24 * 18)
    for study in codes:
        for measured in ("lungs_dice", "lungs_surface_dice", "lesions_dice", "lesions_surface_dice"):
            assert float(values[study, measured]) == 0.0
        assert float(values[study, "lungs_error_ml"]) == pytest.approx(-true_ml)
        assert float(values[study, "lesions_error_percent"]) == pytest.approx(-true_percent)
        assert values[study, "affected_dice"] == "", "nobody looked for it"
    page = (output / "index.html").read_text("utf-8")
    assert "refused 2 of the 3 studies" in page
    assert "b.nii.gz (NO_LUNGS), c (MISSING_SLICES)" in page
    assert "<td>c: MISSING_SLICES</td>" in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert (output / name).is_file()


def test_masks_of_a_study_that_cannot_be_loaded_are_not_taken_for_nothing(tmp_path: Path) -> None:
    """Whoever made them may have read it: how good they are is not known."""
    studies = read_cohort(_refused_in_part(tmp_path), classes=False)[2:]
    with pytest.raises(UsageError, match="study c: MISSING_SLICES"):
        score_cohort(studies, from_folder(tmp_path, studies))


def test_where_no_lungs_are_found_no_part_of_them_is_affected() -> None:
    truth = _random(0)
    nothing = Masks(np.zeros_like(truth.lungs), np.zeros_like(truth.lungs), truth.lungs > 9)
    assert truth.lesions is not None
    share = 100 * (truth.lesions > 0).sum() / (truth.lungs > 0).sum()
    for name in ("lesions_error_percent", "involvement_error"):
        assert measure(truth, nothing, SPACING)[name] == pytest.approx(-share)


@pytest.mark.slow
def test_the_shipped_models_find_the_lungs_of_phantoms(cohort: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["evaluate", "segmentation", "--cohort", str(cohort), "-o", str(output)]) == 0
    means = json.loads((output / "segmentation.json").read_text("utf-8"))["means"]
    assert means["lungs_dice"]["value"] > 0.9


def test_where_types_are_unknown_only_the_union_is_judged() -> None:
    lungs = np.ones((4, 6, 6), np.uint8)
    known = np.zeros_like(lungs)
    known[1:3, 1:4] = 2
    unknown = np.where(known > 0, 5, 0).astype(np.uint8)
    found = Masks(lungs, known)
    with_types, without = (measure(Masks(lungs, truth), found, (1.0, 1.0, 1.0)) for truth in (known, unknown))
    types = {f"{kind.name.lower()}_dice" for kind in LesionType}
    assert all(math.isnan(without[name]) for name in types)
    assert with_types["consolidation_dice"] == 1.0
    assert {name: value for name, value in with_types.items() if name not in types} == {
        name: value for name, value in without.items() if name not in types
    }


def test_what_nobody_looked_for_is_undefined() -> None:
    truth, found = _random(0), _random(1)
    whole = measure(truth, found, SPACING)
    lungs = {name for name in MEASURES if name.startswith("lungs")}
    for part, known in (
        (Masks(found.lungs, None, found.affected), lungs | {"affected_dice", "involvement_error"}),
        (Masks(found.lungs, found.lesions), MEASURES.keys() - {"affected_dice", "involvement_error"}),
    ):
        values = measure(truth, part, SPACING)
        assert {name for name, value in values.items() if not math.isnan(value)} == known
        assert all(values[name] == whole[name] for name in known)


def test_lesions_are_looked_for_in_the_lungs_that_are_given(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No lung network is needed, and nothing is said of lungs; nor need there be both lesion networks."""
    models, output = tmp_path / "models", tmp_path / "out"
    write_segmentation(models)
    command = ["evaluate", "segmentation", "--cohort", str(cohort), "-m", str(models), "-o", str(output)]
    for task in ("lungs", "lesions"):
        shutil.rmtree(models / task)
    assert main(command) == 64
    assert "model lungs: cannot read" in capsys.readouterr().err
    assert main([*command, "--in-given-lungs", "--only", "p000", "--replicates", "100"]) == 0
    content = json.loads((output / "segmentation.json").read_text("utf-8"))
    assert content["in_given_lungs"] is True
    means = content["means"]
    assert means["lungs_dice"]["value"] is means["lungs_surface_dice"]["value"] is None
    assert "1 patients, in the lungs of the cohort." in " ".join((output / "index.html").read_text("utf-8").split())
    assert 0.0 <= means["affected_dice"]["value"] <= 1.0
    assert math.isnan(means["lesions_dice"]["value"] or math.nan)
    shutil.rmtree(models / "involvement")
    shutil.rmtree(output)
    capsys.readouterr()
    for more, says in (
        (["-m", str(models)], "holds neither a model lesions nor a model involvement"),
        (["--predictions", str(cohort / "masks")], "--in-given-lungs is for models"),
    ):
        assert main([*command[:4], *more, "-o", str(output), "--in-given-lungs"]) == 64
        assert says in capsys.readouterr().err
        assert not output.exists()
