"""A file of predictions is read whole or refused with one line that names what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.evaluation.predictions import Cohort, read_predictions
from app.outcome import UsageError

_HEAD = "patient,study,label,probability,split,model,co_rads,involvement,site,age\n"


def _file(folder: Path, *rows: str, head: str = _HEAD) -> Path:
    path = folder / "predictions.csv"
    path.write_text(head + "".join(f"{row}\n" for row in rows), "utf-8")
    return path


def test_everything_is_read(tmp_path: Path) -> None:
    (one, other) = read_predictions(
        _file(tmp_path, "p1,s1,1,0.75,validation,ours,5,12.5,A,61", " p2 ,, 0 ,1e-3,,,,,,", head="\ufeff" + _HEAD)
    )
    assert (one.patient, one.study, one.label, one.probability) == ("p1", "s1", 1, 0.75)
    assert (one.split, one.model, one.co_rads, one.involvement) == ("validation", "ours", 5, 12.5)
    assert one.groups == {"site": "A", "age": "61"}
    assert (other.patient, other.study, other.label, other.probability) == ("p2", "3", 0, 0.001)
    assert (other.split, other.model, other.co_rads, other.involvement) == ("test", "model", None, None)
    assert other.groups == {}


def test_three_columns_suffice(tmp_path: Path) -> None:
    head = "probability,label,patient\n"
    predictions = read_predictions(_file(tmp_path, "0.5,0,a", "0.25,1,a", head=head))
    cohort = Cohort.of(predictions)
    assert cohort.labels.tolist() == [0, 1]
    assert cohort.probabilities.tolist() == [0.5, 0.25]
    assert cohort.patients.tolist() == ["a", "a"]
    assert len(cohort.where(lambda each: each.label == 1)) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (",s,1,0.5,,,,,,", "row 2: no patient"),
        ("p,s,2,0.5,,,,,,", "row 2: label is not 0 or 1"),
        ("p,s,1,1.5,,,,,,", "row 2: probability is not a number from 0 to 1"),
        ("p,s,1,nan,,,,,,", "row 2: probability is not a number from 0 to 1"),
        ("p,s,1,,,,,,,", "row 2: probability is not a number from 0 to 1"),
        ("p,s,1,0.5,train,,,,,", "row 2: split is not validation or test"),
        ("p,s,1,0.5,,,6,,,", "row 2: co_rads is not 1 to 5"),
        ("p,s,1,0.5,,,,101,,", "row 2: involvement is not a number from 0 to 100"),
    ],
)
def test_a_wrong_row_is_named(row: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        read_predictions(_file(tmp_path, row))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("p,s,1,0.5,,,,,,", "p,s,1,0.6,,,,,,"), "study s of patient p is there twice"),
        (("p,s,1,0.5,,a,,,,", "p,s,0,0.6,,b,,,,"), "study s of patient p has two labels"),
        (("p,s,1,0.5,test,,,,,", "p,t,0,0.6,validation,,,,,"), "patient p is in both splits"),
    ],
)
def test_contradictions_are_named(rows: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        read_predictions(_file(tmp_path, *rows))


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 6: no patient; and 3 more$"):
        read_predictions(_file(tmp_path, *[",s,1,0.5,,,,,,"] * 8))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    head = "patient,label,probability,probability\n"
    with pytest.raises(UsageError, match="the column probability is there several times"):
        read_predictions(_file(tmp_path, "p,1,0.9,0.1", head=head))


def test_rows_are_numbered_as_editors_number_lines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 5: no patient$"):
        read_predictions(_file(tmp_path, "", "p,s,1,0.5,,,,,,", "", ",s,1,0.5,,,,,,"))


def test_cells_without_a_column_are_no_silent_loss(tmp_path: Path) -> None:
    """As of a decimal comma: the rest of the number would be dropped."""
    head = "patient,label,probability,\n"
    assert read_predictions(_file(tmp_path, "p,1,0.5", "q,0,0.5,,", head=head))[1].probability == 0.5
    with pytest.raises(UsageError, match="row 2: more cells than columns"):
        read_predictions(_file(tmp_path, "p,1,0,5", head=head))


def test_columns_that_mean_nothing_here_are_left_alone(tmp_path: Path) -> None:
    head = ",patient,label,probability,remark\n"
    assert read_predictions(_file(tmp_path, "0,p,1,0.5,none", head=head))[0].patient == "p"


def test_columns_are_separated_by_commas(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="columns must be separated by commas, not by semicolons"):
        read_predictions(_file(tmp_path, "p;1;0,5", head="patient;label;probability\n"))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks the column label, probability"):
        read_predictions(_file(tmp_path, head="patient,study\n"))
    with pytest.raises(UsageError, match="holds no predictions"):
        read_predictions(_file(tmp_path))
    with pytest.raises(UsageError, match="cannot read"):
        read_predictions(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"patient,label,probability\n\xff\xfe")
    with pytest.raises(UsageError, match="cannot read"):
        read_predictions(tmp_path / "binary.csv")
