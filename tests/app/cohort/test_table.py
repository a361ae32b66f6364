"""The table of a cohort is read whole, or everything wrong with it is named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from app.cli import main
from app.cohort.table import CohortStudy, inspect_cohort, read_cohort, read_cohorts, write_table
from app.outcome import UsageError

_COLUMNS = ("patient", "study", "label", "co_rads", "split", "site", "lungs", "lesions")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four studies: three folders and a NIfTI file, and a mask."""
    for name in ("a", "b", "c"):
        (tmp_path / "studies" / name).mkdir(parents=True)
        (tmp_path / "studies" / name / "1.dcm").write_bytes(b"")
    (tmp_path / "studies" / "d.nii.gz").write_bytes(b"")
    (tmp_path / "mask.nii.gz").write_bytes(b"")
    return tmp_path


_ROWS = [
    {"patient": "p1", "study": "studies/a", "label": "1", "co_rads": "5", "site": "A", "lungs": "mask.nii.gz"},
    {"patient": "p1", "study": "studies/b", "label": "0"},
    {"patient": "p2", "study": "studies/c", "label": "0"},
    {"patient": "p3", "study": "studies/d.nii.gz", "label": "1"},
]


def _write(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = _COLUMNS) -> None:
    with (folder / "cohort.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


def test_everything_is_read(folder: Path) -> None:
    _write(folder, _ROWS)
    studies = read_cohort(folder)
    assert studies[0] == CohortStudy("p1", folder / "studies" / "a", 1, 5, None, "A", folder / "mask.nii.gz", None)
    assert studies[3] == CohortStudy("p3", folder / "studies" / "d.nii.gz", 1)


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    _write(folder, [{**row, "split": "test"} for row in _ROWS])
    studies = read_cohort(folder)
    write_table(folder, studies)
    assert read_cohort(folder) == studies
    assert "studies/d.nii.gz" in (folder / "cohort.csv").read_text("utf-8"), "relative, so that it can be moved"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patient": ""}, "row 2: no patient"),
        ({"label": "yes"}, "row 2: label 'yes' is not 0 or 1"),
        ({"co_rads": "6"}, "row 2: co_rads '6' is not 1 to 5"),
        ({"split": "tset"}, "row 2: split 'tset' is not train, validation, test"),
        ({"study": ""}, "row 2: no study"),
        ({"study": "studies/x"}, "row 2: the study studies/x does not exist"),
        ({"study": "studies/empty"}, "row 2: the study studies/empty is an empty folder"),
        ({"study": "cohort.csv"}, "row 2: the study cohort.csv is neither a folder nor a NIfTI file"),
        ({"lungs": "absent.nii"}, "row 2: the mask absent.nii is no NIfTI file that exists"),
        ({"lesions": "cohort.csv"}, "row 2: the mask cohort.csv is no NIfTI file that exists"),
        ({"study": "studies/b"}, "study b is there twice"),
    ],
)
def test_each_mistake_is_named(change: dict[str, str], says: str, folder: Path) -> None:
    (folder / "studies" / "empty").mkdir()
    _write(folder, [{**_ROWS[0], **change}, *_ROWS[1:]])
    _, problems = inspect_cohort(folder)
    assert problems[0] == says
    with pytest.raises(UsageError) as error:
        read_cohort(folder)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("absolute", "study a is there twice"),
        ("studies/b/../a", "study a is there twice"),
        ("elsewhere/a", "study a is there twice"),
        ("studies/link", "study link is there twice: it is a, too"),
    ],
)
def test_a_ct_is_there_twice_however_its_path_is_written(
    written: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "studies" / "link").symlink_to("a")
    (folder / "elsewhere").symlink_to("studies")
    monkeypatch.chdir(folder)
    study = str(folder / "studies" / "a") if written == "absolute" else written
    again = {"patient": "p4", "study": study, "label": "1"}
    _write(folder, [*_ROWS, again])
    assert inspect_cohort(Path())[1] == [says]
    other = folder / "other"
    other.mkdir()
    _write(folder, _ROWS)
    _write(other, [{**again, "study": str(Path("..", study))}])
    with pytest.raises(UsageError, match=f"the cohorts together: {says}"):
        read_cohorts([Path(), other])


def test_a_divided_patient_is_an_error(folder: Path) -> None:
    splits = ("train", "test", "train", "test")
    _write(folder, [{**row, "split": split} for row, split in zip(_ROWS, splits, strict=True)])
    _, problems = inspect_cohort(folder)
    assert "patient p1 is in several splits: test, train" in problems


def test_half_a_split_is_an_error_and_a_split_of_one_class_one_for_classifiers(folder: Path) -> None:
    _write(folder, [{**row, "split": split} for row, split in zip(_ROWS, ("train", "train", "test", ""), strict=True)])
    _, problems = inspect_cohort(folder)
    assert problems == ["some studies have a split and others have none"]
    _write(folder, [{**row, "split": "train"} for row in _ROWS if row["label"] == "0"])
    assert inspect_cohort(folder)[1] == []
    assert len(read_cohort(folder, classes=False)) == sum(row["label"] == "0" for row in _ROWS)
    with pytest.raises(UsageError, match=r"cohort\.csv: the split train has only negative studies"):
        read_cohort(folder)


def test_columns_are_checked(folder: Path) -> None:
    _write(folder, [{"patient": "p", "lable": "1"}], ("patient", "lable"))
    _, problems = inspect_cohort(folder)
    assert problems[:2] == ["the column study is missing", "the column label is missing"]
    assert problems[2].startswith("unknown column lable; known: patient, study, label")


def test_a_column_that_is_there_twice_is_an_error(folder: Path) -> None:
    (folder / "cohort.csv").write_text("patient,study,label,label\np,studies/a,1,0\n")
    assert inspect_cohort(folder) == ((), ["the column label is there several times"])


def test_rows_are_numbered_as_editors_number_lines(folder: Path) -> None:
    (folder / "cohort.csv").write_text("\npatient,study,label\n\np,studies/a,1\n\n\np,studies/b,2\n")
    assert inspect_cohort(folder)[1] == ["row 7: label '2' is not 0 or 1"]


def test_empty_columns_at_the_end_do_not_matter(folder: Path) -> None:
    (folder / "cohort.csv").write_text("patient,study,label,,\np,studies/a,1\nq,studies/b,0,,\nr,studies/c,0,,,\n")
    assert [study.patient for study in read_cohort(folder)] == ["p", "q", "r"]
    (folder / "cohort.csv").write_text("patient,study,label,,\np,studies/a,1\nq,studies/b,0,,0\n")
    assert inspect_cohort(folder)[1] == ["row 3: more cells than columns"]
    (folder / "cohort.csv").write_text(",patient,study,label\n0,p,studies/a,1\n1,q,studies/b,0\n")
    assert inspect_cohort(folder)[1] == ["column 1 has no name"]


def test_columns_are_separated_by_commas(folder: Path) -> None:
    (folder / "cohort.csv").write_text("patient;study;label\np;studies/a;1\n")
    with pytest.raises(UsageError, match=r"cohort\.csv: columns must be separated by commas, not by semicolons"):
        inspect_cohort(folder)


def test_what_is_no_table(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*cohort\.csv: a cohort is a folder"):
        read_cohort(folder)
    (folder / "cohort.csv").write_bytes(b"patient,study,label\n\xff")
    with pytest.raises(UsageError, match="no CSV file in UTF-8"):
        read_cohort(folder)
    _write(folder, [])
    with pytest.raises(UsageError, match="there are no studies"):
        read_cohort(folder)
    (folder / "cohort.csv").write_text("patient,study,label\np,studies/a,1,5\n")
    with pytest.raises(UsageError, match="row 2: more cells than columns"):
        read_cohort(folder)


def test_the_command_lists_all_problems(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(folder, [{**row, "label": "2"} for row in _ROWS])
    assert main(["cohort", str(folder)]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"cohort.csv: row {k}: label") for k, line in enumerate(lines[:4], start=2)] == [True] * 4
    assert lines[4].startswith("error: ")
    assert lines[4].endswith("has 4 problem(s)")


def test_the_command_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(folder, _ROWS)
    assert main(["cohort", str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["all", "3", "4", "2", "1", "0"]
    assert rows[2] == ["site", "A", "1", "1", "1", "1", "0"]
