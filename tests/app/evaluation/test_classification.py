"""The protocol: every figure against a count by hand, thresholds from validation alone, the page and the files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.evaluation.classification import Classification, compare, evaluate_all, evaluate_model
from app.evaluation.predictions import Cohort, Prediction
from app.evaluation.roc import auc

_REPLICATES = 300


def _prediction(number: int, label: int, probability: float, **more: object) -> Prediction:
    values = {
        **{"patient": f"p{number}", "study": f"s{number}", "split": "test", "model": "ours"},
        **{"co_rads": None, "involvement": None, "groups": {}},
    }
    return Prediction(label=label, probability=probability, **{**values, **more})  # type: ignore[arg-type]


def _cohort(seed: int, n: int = 120, better: float = 1.5, **more: object) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    logits = rng.normal((labels - 0.5) * better)
    probabilities = 1 / (1 + np.exp(-logits))
    return [_prediction(k, int(labels[k]), float(probabilities[k]), **more) for k in range(n)]


@pytest.fixture(scope="module")
def result() -> Classification:
    test = Cohort.of(_cohort(0))
    validation = Cohort.of(_cohort(1, split="validation"))
    return evaluate_model("ours", test, validation, replicates=_REPLICATES)


def test_the_figures_are_those_of_a_count(result: Classification) -> None:
    labels, values = result.cohort.labels, result.cohort.probabilities
    for point in result.points:
        called = values >= point.threshold
        assert point.accuracy.value == pytest.approx(np.mean(called == labels))
        assert point.sensitivity.value == pytest.approx(np.mean(called[labels == 1]))
        assert point.specificity.value == pytest.approx(np.mean(~called[labels == 0]))
    assert result.auc.value == pytest.approx(auc(labels, values))
    for estimate in (result.auc, result.fpr_at_95, *(point.accuracy for point in result.points)):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low <= estimate.value <= estimate.high


def test_thresholds_come_from_validation_and_are_measured_on_test(result: Classification) -> None:
    validation = Cohort.of(_cohort(1, split="validation"))
    half, youden, sensitive = result.points
    assert (half.threshold, half.chosen_on) == (0.5, "beforehand")
    assert youden.chosen_on == sensitive.chosen_on == "validation"
    values, positive = validation.probabilities, validation.labels == 1

    def informedness(threshold: float) -> float:
        return float(np.mean(values[positive] >= threshold) - np.mean(values[~positive] >= threshold))

    assert informedness(youden.threshold) == max(informedness(each) for each in values)
    assert np.mean(values[positive] >= sensitive.threshold) >= 0.95
    above = values[values > sensitive.threshold].min()
    assert np.mean(values[positive] >= above) < 0.95, "no higher threshold would do"


def test_without_validation_the_page_can_say_so() -> None:
    found = evaluate_model("ours", Cohort.of(_cohort(0)), Cohort.of([]), replicates=_REPLICATES)
    assert [point.chosen_on for point in found.points] == ["beforehand", "the same cases", "the same cases"]
    assert found.calibration.temperature is None


def test_a_test_split_of_one_class_is_refused() -> None:
    positives = Cohort.of(each for each in _cohort(0) if each.label == 1)
    with pytest.raises(ValueError, match="both classes"):
        evaluate_model("ours", positives, Cohort.of([]))


def test_co_rads_and_groups_are_counted() -> None:
    def classed(each: Prediction, number: int) -> Prediction:
        unusable = ("many", "nan", "-1", "inf")[number % 4]
        groups = {"site": "AB"[number % 2], "age": str(30 + number), "slice_thickness": unusable if number else "1.0"}
        return _prediction(number, each.label, each.probability, co_rads=1 + number % 3, groups=groups)

    predictions = [classed(each, k) for k, each in enumerate(_cohort(2, n=60))]
    found = evaluate_model("ours", Cohort.of(predictions), Cohort.of([]), replicates=_REPLICATES)
    assert [row.name for row in found.co_rads] == ["1", "2", "3", "4", "5"]
    for row in found.co_rads:
        part = [each for each in predictions if each.co_rads == int(row.name)]
        right = [(each.probability >= 0.5) == (each.label == 1) for each in part]
        assert row.positives + row.negatives == len(part)
        assert row.accuracy.value == (pytest.approx(np.mean(right)) if part else None)
    assert found.co_rads[4].sensitivity.text == "undefined"
    assert [row.name for row in found.subgroups["age"]] == [
        *("below 40", "40 to 50", "50 to 60", "60 to 70", "70 to 80", "80 and above"),
    ]
    assert sum(row.positives + row.negatives for row in found.subgroups["age"]) == 60
    assert [row.name for row in found.subgroups["slice_thickness"]] == ["1 to 2", "unknown"]
    (only_negative, only_positive) = found.subgroups["site"]
    assert (only_negative.positives, only_positive.negatives) == (0, 0)
    assert only_negative.auc.text == "undefined"


def test_a_group_of_all_studies_has_the_interval_of_all() -> None:
    """Its replicates are as many, and drawn from the same seed."""
    whole = Cohort.of(_cohort(2, groups={"site": "A"}))
    found = evaluate_model("ours", whole, Cohort.of([]), replicates=_REPLICATES, seed=7)
    assert found.subgroups["site"][0].auc == found.auc


def test_studies_of_a_patient_are_not_independent() -> None:
    """Each study ten times is no new information: the interval stays as wide as with one of each."""
    once = _cohort(3, n=60)
    tenfold = [_prediction(k, e.label, e.probability, study=f"{k}.{i}") for k, e in enumerate(once) for i in range(10)]
    widths = []
    for predictions in (once, tenfold):
        found = evaluate_model("ours", Cohort.of(predictions), Cohort.of([]), replicates=1000).auc
        assert found.high is not None
        assert found.low is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_differences_are_paired() -> None:
    """Two models that differ by little but agree on each study differ by less than their intervals are wide."""
    base = _cohort(4, n=200)
    rng = np.random.default_rng(0)
    better = [
        _prediction(k, e.label, float(np.clip(e.probability + 0.02 * (2 * e.label - 1) + 0.005 * rng.normal(), 0, 1)))
        for k, e in enumerate(base)
    ]
    first, second = (
        evaluate_model(name, Cohort.of(each), Cohort.of([]), replicates=1000)
        for name, each in (("first", base), ("second", better))
    )
    found = compare(first, second, replicates=1000)
    assert found.auc.value == pytest.approx((second.auc.value or 0) - (first.auc.value or 0))
    assert found.auc.low is not None
    assert found.auc.low > 0
    assert found.delong_p_value < 0.01
    assert first.auc.high is not None
    assert second.auc.value is not None
    assert second.auc.value < first.auc.high, "unpaired, it would not show"
    back = compare(second, first, replicates=1000)
    assert back.auc.value == pytest.approx(-found.auc.value)


def test_studies_of_one_patient_have_no_p_value_that_takes_them_for_independent() -> None:
    once = _cohort(4, n=40)
    again = [_prediction(k, e.label, e.probability / 2, study="again") for k, e in enumerate(once[:1])]
    alone, repeated = (
        [evaluate_model(name, Cohort.of(each), Cohort.of([]), replicates=100) for name in ("first", "second")]
        for each in (once, once + again)
    )
    assert compare(*alone, replicates=100).delong_p_value == pytest.approx(1.0)
    assert compare(*repeated, replicates=100).delong_p_value is None


def test_only_the_same_studies_are_compared() -> None:
    first, second = (
        evaluate_model("m", Cohort.of(_cohort(seed, n)), Cohort.of([]), replicates=_REPLICATES)
        for seed, n in ((0, 20), (0, 22))
    )
    with pytest.raises(ValueError, match="not measured on the same studies"):
        compare(first, second)


def test_models_are_told_apart() -> None:
    predictions = [*_cohort(0, model="a"), *_cohort(0, better=0.1, model="b")]
    first, second = evaluate_all(predictions, replicates=_REPLICATES)
    assert (first.model, second.model) == ("a", "b")
    assert (first.auc.value or 0) > (second.auc.value or 0) + 0.1


def _write(path: Path, change: Callable[[dict[str, str]], object] = lambda row: None) -> Path:
    rows = []
    for model, better in (("plain <b>", 0.8), ("ours", 2.0)):
        for split, seed in (("test", 5), ("validation", 6)):
            for each in _cohort(seed, 60, better):
                row = {
                    **{"patient": f"{split}{each.patient}", "study": each.study, "label": str(each.label)},
                    **{"probability": str(each.probability), "split": split, "model": model, "site": "A"},
                    **{"co_rads": str(1 + each.label * 4), "involvement": "3.5"},
                }
                change(row)
                rows.append(row)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def test_the_command_writes_page_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = _write(tmp_path / "predictions.csv"), tmp_path / "out"
    command = ["evaluate", "classification", "--predictions", str(source), "-o", str(output), "--replicates", "200"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{output / 'index.html'}\n"
    page = (output / "index.html").read_text("utf-8")
    assert "Research use only" in page
    assert "plain &lt;b&gt;" in page
    assert "plain <b>" not in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert (output / name).read_text("utf-8").startswith("<?xml")
        assert (output / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((output / "classification.json").read_text("utf-8"))
    assert [each["model"] for each in content["models"]] == ["plain <b>", "ours"]
    assert content["differences"][0]["auc"]["value"] == pytest.approx(
        content["models"][1]["auc"]["value"] - content["models"][0]["auc"]["value"]
    )
    with (output / "classification.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["measure"]) == ("ours", "auc")]
    assert float(rows[0]["value"]) == pytest.approx(content["models"][1]["auc"]["value"])
    assert f"{content['models'][1]['auc']['value']:.2f} [" in page


def test_what_is_undefined_is_null(tmp_path: Path) -> None:
    """As DeLong's p of a single positive study; NaN would be no JSON."""
    path = tmp_path / "predictions.csv"
    values = {"a": (0.9, 0.1, 0.4), "b": (0.7, 0.3, 0.8)}
    rows = [f"p{k},s,{int(k == 0)},{value},{model}" for model, of in values.items() for k, value in enumerate(of)]
    path.write_text("\n".join(["patient,study,label,probability,model", *rows]))
    output = tmp_path / "out"
    assert main(["evaluate", "classification", "--predictions", str(path), "-o", str(output)]) == 0
    content = json.loads((output / "classification.json").read_text(), parse_constant=pytest.fail)
    assert content["differences"][0]["delong_p_value"] is None
    assert '<td class="n">undefined</td>' in (output / "index.html").read_text()


def test_the_same_predictions_and_seed_give_the_same_files(tmp_path: Path) -> None:
    source = _write(tmp_path / "predictions.csv")
    for name in ("one", "two"):
        output = str(tmp_path / name)
        assert (
            main(["evaluate", "classification", "--predictions", str(source), "-o", output, "--replicates", "100"]) == 0
        )
    for path in (tmp_path / "one").iterdir():
        if path.suffix != ".png":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row.update(label="1"), "both classes"),
        (lambda row: row.update(probability="nan"), "probability is not a number"),
        (lambda row: row.update(study=row["study"] + row["model"]), "not measured on the same studies"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_leaves_nothing(
    change: Callable[[dict[str, str]], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "predictions.csv", change)
    command = ["evaluate", "classification", "--predictions", str(source), "-o", str(tmp_path / "out")]
    assert main([*command, "--replicates", "100"]) == 64
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
