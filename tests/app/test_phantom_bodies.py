"""A cohort of synthetic diseases in given CTs, and masks of the lungs where there are none."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.cohort.images import axial_grid, load_mask, load_study, write_image
from app.cohort.lung_masks import add_lung_masks
from app.cohort.table import CohortStudy, read_cohort, read_cohorts, write_table
from app.evaluation.overlap import dice
from app.outcome import UsageError
from app.phantom import Phantom, make_phantom, origin_of
from app.phantom.bodies import write_diseased
from app.phantom.dicom import write_ct_series
from app.phantom.disease import ALL
from operators.findings import LesionType

pytestmark = pytest.mark.whole

SPACING = (4.0, 2.4, 2.4)


@pytest.fixture(scope="module")
def person() -> Phantom:
    return make_phantom(3, SPACING, lesions=False)


@pytest.fixture(scope="module")
def bodies(person: Phantom, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same person twice, as DICOM and as NIfTI with slices from head to feet."""
    folder = tmp_path_factory.mktemp("bodies")
    write_ct_series(folder / "anna", person.hu, person.spacing, origin=origin_of(person), study="anna")
    grid = axial_grid(person.hu.shape, person.spacing)
    affine = grid.affine.copy()
    affine[:, 0] *= -1
    write_image(folder / "bert.nii.gz", person.hu[::-1].astype(np.int16), type(grid)(grid.shape, affine))
    return [folder / "anna", folder / "bert.nii.gz"]


@pytest.fixture(scope="module")
def cohort(bodies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diseased") / "cohort"
    write_diseased(folder, bodies, 8, seed=2)
    return folder


def _masks(study: CohortStudy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    volume = load_study(study)
    assert study.lungs is not None
    assert study.lesions is not None
    return volume.hu, load_mask(study.lungs, volume.grid, 2), load_mask(study.lesions, volume.grid, 4)


def test_bodies_take_turns_and_are_the_patients(cohort: Path) -> None:
    studies = read_cohort(cohort)
    assert [study.patient for study in studies] == ["anna", "bert"] * 4
    assert [study.label for study in studies] == [0, 0, 1, 1, 0, 0, 1, 1]
    with (cohort / "truth.csv").open(encoding="utf-8") as file:
        kinds = {row["study"]: (row["kind"], float(row["involvement_percent"])) for row in csv.DictReader(file)}
    for study in studies:
        kind, share = kinds[study.path.name.removesuffix(".nii.gz")]
        assert study.label == (kind == "covid")
        _, lungs, lesions = _masks(study)
        assert share == pytest.approx(100 * (lesions > 0).sum() / (lungs > 0).sum(), abs=1e-3)
        assert (share == 0.0) == (kind == "healthy")


def test_only_lungs_have_changed_and_lesions_lie_in_them(cohort: Path, person: Phantom) -> None:
    changed = []
    for study in read_cohort(cohort):
        hu, lungs, lesions = _masks(study)
        assert hu.shape == person.hu.shape
        assert set(np.unique(lungs)) == {0, 1, 2}
        assert set(np.unique(lesions)) <= {0, *map(int, LesionType)}
        assert not lesions[lungs == 0].any()
        assert dice(lungs > 0, person.lungs > 0) > 0.85  # effusion takes some away
        far = person.hu > -200
        far[1:-1, 1:-1, 1:-1] &= ~(person.lungs > 0)[1:-1, 1:-1, 1:-1]
        differ = np.abs(hu - person.hu) > 0.5
        changed.append(float(differ.mean()))
        assert differ[person.lungs == 0].mean() < 0.01
        assert differ.any()
        if (lesions > 0).mean() > 1e-3:
            assert np.median(hu[lesions > 0]) > np.median(hu[(lungs > 0) & (lesions == 0)]) + 100
    assert len(set(changed)) == len(changed), "no two are alike"


@pytest.mark.slow
def test_scanners_vary_and_diseases_stay(cohort: Path, bodies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "varied"
    assert main(["phantom", str(out), "--cohort", "8", "--seed", "2", "--varied", "--bodies", *map(str, bodies)]) == 0
    with (out / "truth.csv").open(encoding="utf-8") as file:
        noise = [float(row["noise_hu"]) for row in csv.DictReader(file)]
    assert min(noise) == 0.0
    assert len(set(noise)) > 2
    for one, other, told in zip(read_cohort(cohort), read_cohort(out), noise, strict=True):
        (hu, *masks), (varied, *others) = _masks(one), _masks(other)
        assert all(np.array_equal(mask, again) for mask, again in zip(masks, others, strict=True))
        differ = np.median(np.abs(varied - hu)[hu > -900])  # 0.67 of the noise, and little by kernels and slices
        assert 0.6 * told <= differ <= 0.75 * told + 12.0


def test_the_command_gives_the_same_for_the_same_seed(
    cohort: Path, bodies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert main(["phantom", str(out), "--cohort", "8", "--seed", "2", "--bodies", *map(str, bodies)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    for path in sorted(cohort.rglob("*.*")):
        there = out / path.relative_to(cohort)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest(), path.name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cohort", "2", "--bodies", "nowhere"], "the body nowhere does not exist"),
        (["--bodies", "."], "--bodies needs --cohort N"),
        (["--cohort", "4", "--varied"], "--varied needs --bodies"),
        (["--kinds", *ALL], "--kinds needs --cohort N"),
        (["--cohort", "4", "--kinds", "covid"], "--kinds needs covid, and one kind besides"),
        (["--cohort", "2", "--coarse", "--bodies", "."], "--bodies needs --cohort N"),
        (["--cohort", "2", "--bodies", "a/x", "b/x"], "two bodies have the same name"),
        (["--cohort", "2", "--bodies", "flat.nii.gz"], "study flat.nii.gz: no lungs found"),
    ],
)
def test_what_cannot_be_a_body_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("flat.nii.gz"), np.full((20, 40, 40), 40, np.int16), axial_grid((20, 40, 40), (4.0, 3.0, 3.0)))
    assert main(["phantom", "out", *arguments]) == 64
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {says}")
    assert not (tmp_path / "out" / "cohort.csv").exists()


def test_lungs_are_drawn_where_masks_are_missing(
    bodies: list[Path], person: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.nii.gz"
    grid = axial_grid(person.hu.shape, person.spacing)
    write_image(own, person.lungs, grid)
    write_image(tmp_path / "third.nii.gz", person.hu.astype(np.int16), grid)
    studies = [CohortStudy("a", bodies[0], 1), CohortStudy("b", bodies[1], 0)]
    write_table(tmp_path, [*studies, CohortStudy("c", tmp_path / "third.nii.gz", 0, lungs=own)])
    assert main(["cohort", str(tmp_path), "--draw-lungs"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 2
    drawn = read_cohort(tmp_path)
    assert drawn[2].lungs == own
    for study in drawn[:2]:
        assert study.lungs is not None
        labels = load_mask(study.lungs, load_study(study).grid, 2)  # what is read of NIfTI is upright
        for side in (1, 2):
            assert dice(labels == side, person.lungs == side) > 0.93
    before = (tmp_path / "cohort.csv").read_bytes()
    assert main(["cohort", str(tmp_path), "--draw-lungs"]) == 0
    assert (tmp_path / "cohort.csv").read_bytes() == before


def test_lungs_of_studies_of_one_name_are_drawn_apart(bodies: list[Path], tmp_path: Path) -> None:
    paths = [tmp_path / patient / bodies[0].name for patient in ("a", "b")]
    for path in paths:
        shutil.copytree(bodies[0], path)
    drawn = add_lung_masks(tmp_path, [CohortStudy("a", paths[0], 1), CohortStudy("b", paths[1], 0)])
    masks = {study.lungs for study in drawn}
    assert len(masks) == 2
    assert all(mask is not None and mask.name.startswith("anna-") for mask in masks)


def test_what_is_there_is_not_written_over(bodies: list[Path], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "anna_lungs.nii.gz").write_text("by hand")
    studies = [CohortStudy("a", bodies[0], 1)]
    with pytest.raises(UsageError, match="is there already, but not in the table"):
        add_lung_masks(tmp_path, studies)
    assert (tmp_path / "masks" / "anna_lungs.nii.gz").read_text() == "by hand"


def test_several_cohorts_are_as_one(bodies: list[Path], tmp_path: Path) -> None:
    for name, label, path in (("one", 0, bodies[0]), ("two", 1, bodies[1]), ("three", 1, bodies[0])):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name, [CohortStudy(name, path, label)])
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with pytest.raises(UsageError, match="has only negative studies"):
        read_cohort(one)
    assert [study.patient for study in read_cohorts([one, two])] == ["one", "two"]
    with pytest.raises(UsageError, match="the cohorts together: study anna is there twice"):
        read_cohorts([one, two, three])
    with pytest.raises(UsageError, match="the cohorts together: the cohort has only positive studies"):
        read_cohorts([two, three])
    (two / "cohort.csv").write_text("patient,study,label\nx,nowhere,1\n")
    with pytest.raises(UsageError, match=r"two/cohort.csv: row 2: the study nowhere does not exist"):
        read_cohorts([one, two])
