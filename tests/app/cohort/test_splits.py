"""Splits never divide a patient, keep the classes, and are those of the seed."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.cohort.splits import split_cohort, split_table
from app.cohort.table import OPTIONAL, REQUIRED, SPLITS, TABLE, CohortStudy, read_cohort
from app.outcome import UsageError


def _studies(patients: int, seed: int = 0, *, each: int = 3) -> list[CohortStudy]:
    """Patients with one to ``each`` studies, four in ten positive, in some later studies no longer."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(patients):
        positive = number % 5 < 2
        for k in range(int(rng.integers(1, each + 1))):
            label = int(positive and (k == 0 or rng.random() < 0.7))
            found.append(CohortStudy(f"p{number}", Path(f"{number}.{k}"), label))
    return found


def _patients(studies: tuple[CohortStudy, ...], split: str) -> set[str]:
    return {study.patient for study in studies if study.split == split}


@pytest.mark.parametrize("seed", range(4))
def test_no_patient_is_divided_and_none_is_lost(seed: int) -> None:
    studies = _studies(60, seed)
    divided = split_cohort(studies, seed=seed)
    assert [study.path for study in divided] == [study.path for study in studies]
    parts = [_patients(divided, split) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_shares_hold_in_each_class() -> None:
    divided = split_cohort(_studies(100), (0.7, 0.15, 0.15))
    positive = {study.patient for study in divided if study.label == 1}
    assert [len(_patients(divided, split) & positive) for split in SPLITS] == [28, 6, 6]
    assert [len(_patients(divided, split) - positive) for split in SPLITS] == [42, 9, 9]


def test_splits_are_those_of_the_seed_whatever_the_order() -> None:
    studies = _studies(40)
    first = {study.path: study.split for study in split_cohort(studies, seed=1)}
    again = {study.path: study.split for study in split_cohort(studies[::-1], seed=1)}
    other = {study.path: study.split for study in split_cohort(studies, seed=2)}
    assert first == again
    assert first != other


def test_splits_of_the_table_are_kept() -> None:
    divided = split_cohort(_studies(40), seed=1)
    assert split_cohort(divided, seed=2) == divided


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be split"):
        split_cohort([CohortStudy("a", Path("a"), 0), CohortStudy("b", Path("b"), 1)])
    with pytest.raises(UsageError, match="has only negative studies"):
        split_cohort([CohortStudy(str(k), Path(str(k)), int(k == 0)) for k in range(20)])


def test_a_cohort_of_one_class_can_be_divided_for_segmentation() -> None:
    divided = split_cohort([CohortStudy(str(k), Path(str(k)), 0) for k in range(20)])
    assert [len(_patients(divided, split)) for split in SPLITS] == [14, 3, 3]


def test_a_share_of_nothing_may_be_empty() -> None:
    divided = split_cohort(_studies(20), (0.5, 0.0, 0.5))
    assert not _patients(divided, "validation")


_ROOT = Path(__file__).resolve().parents[3]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_rows(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...]) -> None:
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty patients in any order, four in ten positive, every third with two studies; one study lies elsewhere."""
    folder, elsewhere = tmp_path / "cohort", tmp_path / "elsewhere.nii.gz"
    (folder / "studies").mkdir(parents=True)
    for path in (elsewhere, folder / "lungs.nii.gz", folder / "lesions.nii"):
        path.write_bytes(b"")
    rows = []
    for number in np.random.default_rng(0).permutation(20).tolist():
        for k in range(2 if number % 3 == 0 else 1):
            study = folder / "studies" / f"{number}.{k}, ü.nii.gz"
            study.write_bytes(b"")
            rows.append(
                {
                    "patient": f'Nr. {number}, "pseudonym"',
                    "study": f"studies/{study.name}" if number else str(elsewhere) if k else "../elsewhere2.nii",
                    "label": str(int(number % 5 < 2)),
                    "co_rads": str(1 + number % 5) if k else "",
                    "site": "Köln" if number % 2 else "",
                    "lungs": "lungs.nii.gz" if number % 4 else "",
                    "lesions": "lesions.nii" if number % 4 == 1 else "",
                }
            )
    (tmp_path / "elsewhere2.nii").write_bytes(b"")
    _write_rows(folder, rows, (*REQUIRED, *OPTIONAL))
    return folder


def _without_split(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "split"} for row in rows]


def test_the_command_writes_splits_and_keeps_everything_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, read = _rows(folder), read_cohort(folder)
    assert main(["cohort", str(folder), "--split", "60", "20", "20"]) == 0
    after = _rows(folder)
    assert _without_split(after) == _without_split(before)
    splits = [row["split"] for row in after]
    assert set(splits) == set(SPLITS)
    again = read_cohort(folder)
    assert [replace(study, split=None) for study in again] == list(read)
    assert [study.split for study in again] == splits
    summary = [line.split() for line in capsys.readouterr().out.splitlines()]
    patients = {split: {row["patient"] for row in after if row["split"] == split} for split in SPLITS}
    assert [row[2] for row in summary if row[0] == "split"] == [str(len(patients[split])) for split in SPLITS]
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 20, "a patient is divided"
    assert sorted(path.name for path in folder.iterdir()) == [TABLE, "lesions.nii", "lungs.nii.gz", "studies"]


def test_proportions_hold_in_each_class_but_for_rounding(folder: Path) -> None:
    split_table(folder, read_cohort(folder), (3, 1, 1))
    for label in (0, 1):
        members = [study for study in read_cohort(folder) if study.label == label]
        patients = [len({study.patient for study in members if study.split == split}) for split in SPLITS]
        exact = [share * sum(patients) for share in (0.6, 0.2, 0.2)]
        assert np.abs(np.subtract(patients, exact)).max() < 1


def test_a_table_without_the_column_gets_it(folder: Path) -> None:
    _write_rows(folder, _rows(folder), REQUIRED)
    before = _rows(folder)
    split_table(folder, read_cohort(folder), (1, 1, 1))
    assert [{name: row[name] for name in REQUIRED} for row in _rows(folder)] == before
    assert {row["split"] for row in _rows(folder)} == set(SPLITS)


def _divided(folder: Path, *arguments: str) -> list[str]:
    """Divide by the command, and take the splits out again."""
    table = (folder / TABLE).read_bytes()
    assert main(["cohort", str(folder), "--split", "70", "15", "15", *arguments]) == 0
    splits = [row["split"] for row in _rows(folder)]
    (folder / TABLE).write_bytes(table)
    return splits


def test_the_command_divides_by_the_seed(folder: Path) -> None:
    usual = _divided(folder)
    assert _divided(folder) == _divided(folder, "--seed", "0") == usual
    assert _divided(folder, "--seed", "1") != usual
    expected = split_cohort(read_cohort(folder), (0.7, 0.15, 0.15), 0)
    assert [study.split for study in expected] == usual


def test_of_a_split_without_share_nothing_is_written(folder: Path) -> None:
    divided = split_table(folder, read_cohort(folder), (80, 0, 20))
    assert {study.split for study in divided} == {"train", "test"}
    assert read_cohort(folder) == divided


def _refusal(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Give the one line with which the command refuses; the table stays as it was."""
    table = (folder / TABLE).read_bytes()
    assert main(["cohort", str(folder), "--split", *arguments]) == 64
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert (folder / TABLE).read_bytes() == table
    assert not list(folder.glob("*.part"))
    return said.err


def test_a_table_with_splits_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split_table(folder, read_cohort(folder), (70, 15, 15))
    assert f"{folder / TABLE} has splits already" in _refusal(folder, ["70", "15", "15", "--seed", "1"], capsys)


@pytest.mark.parametrize("proportions", ["0 1 1", "0 0 0", "-1 1 1", "1 -1 1", "1 1 -0.5"])
def test_silly_proportions_are_refused(proportions: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be numbers that are not negative, that of train not zero" in _refusal(
        folder, proportions.split(), capsys
    )


@pytest.mark.parametrize("arguments", ["nan 1 1", "1 nan 1", "inf 1 1", "1 1 inf"])
def test_numbers_that_cannot_be_are_refused(arguments: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refusal(folder, arguments.split(), capsys).startswith("error: ")


def test_a_negative_seed_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["cohort", str(folder), "--split", "1", "1", "1", "--seed", "-1"])
    assert end.value.code == 64
    assert "-1 is not from 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["1", "1"], ["1", "1", "many"], []])
def test_three_numbers_are_needed(arguments: list[str], folder: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["cohort", str(folder), "--split", *arguments])
    assert end.value.code == 64


def test_a_split_of_one_class_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(folder)
    positive = next(row["patient"] for row in rows if row["label"] == "1")
    few = [row for row in rows if row["label"] == "0" or row["patient"] == positive]
    _write_rows(folder, few, (*REQUIRED, *OPTIONAL))
    line = _refusal(folder, ["70", "15", "15"], capsys)
    assert line.startswith("error: the cohort cannot be split: the split ")
    assert line.endswith("has only negative studies\n")


def test_too_few_patients_for_a_split_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be split: the split validation is empty" in _refusal(folder, ["98", "1", "1"], capsys)


def test_a_table_that_cannot_be_written_stays_whole(folder: Path) -> None:
    """Files may not become larger than a part of the table, as on a full disk."""
    table = (folder / TABLE).read_bytes()
    assert len(table) > 512
    code = (
        "import resource, sys; from app.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "cohort", str(folder), "--split", "70", "15", "15"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("error: File too large")
    assert done.stderr.count("\n") == 1
    assert (folder / TABLE).read_bytes() == table
    assert main(["cohort", str(folder), "--split", "70", "15", "15"]) == 0
    assert not list(folder.glob("*.part"))
