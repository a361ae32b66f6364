"""``covid-ct evaluate explanation`` from its cases to what it writes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.cli import main
from app.cohort.slices import read_slices
from app.evaluation.explanation_cases import MOST_SLICES, Case, every_second, phantom_cases, slice_cases
from app.evaluation.explanation_quality import METHODS, Example, cascade, explanations, judge
from app.outcome import ExitStatus, UsageError
from models.classifier.network import Classifier
from models.relevance import baselines, quality
from models.relevance.explain import explain


def test_every_second_lesion_by_size() -> None:
    lesions = np.zeros((3, 10, 10), bool)
    lesions[0, :4, :4] = lesions[0, 6:9, 6:9] = lesions[2, :2, :2] = lesions[2, 9, 9] = True  # 16, 9, 4, 1 voxels
    missing = every_second(lesions)
    assert missing.sum() == 9 + 1
    assert missing[0, 6:9, 6:9].all()
    assert missing[2, 9, 9]


def test_of_a_single_lesion_every_second_slice() -> None:
    lesions = np.zeros((4, 5, 5), bool)
    lesions[:3, 2, 2] = True
    assert np.argwhere(every_second(lesions)).tolist() == [[1, 2, 2]]
    assert not every_second(np.zeros((4, 5, 5), bool)).any()


@pytest.mark.whole
def test_a_phantom_comes_with_both_masks() -> None:
    complete, half = phantom_cases(1, 64)
    assert (complete.mask, half.mask) == ("complete", "half")
    np.testing.assert_array_equal(complete.inputs[:, 0], half.inputs[:, 0])
    np.testing.assert_array_equal(complete.inputs[:, 1] > 0, complete.lesions)
    np.testing.assert_array_equal(complete.target, complete.lesions)
    np.testing.assert_array_equal(half.lesions, complete.lesions)
    np.testing.assert_array_equal(half.inputs[:, 1] > 0, half.lesions & ~half.target)
    assert 0 < half.target.sum() < half.lesions.sum()
    assert not complete.inputs[:, 0][~complete.lungs].any()
    assert (complete.lungs | ~complete.lesions).all()


def annotated(path: Path, slices: int, **more: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    lungs = np.zeros((slices, 32, 32), bool)
    lungs[:, 8:24, 4:28] = True
    infection = np.zeros_like(lungs)
    infection[:, 10:14, 6:12] = infection[:, 18:20, 20:24] = True
    ct = np.where(lungs, np.where(infection, 180, 60), 200) + rng.integers(0, 20, lungs.shape)
    np.savez(path, ct=ct.astype(np.uint8), lungs=np.packbits(lungs), infection=np.packbits(infection), **more)
    return path


def test_annotated_slices_by_study(tmp_path: Path) -> None:
    studies = np.array([0] * 5 + [1] * 4, np.uint8)
    cases = list(slice_cases(read_slices(annotated(tmp_path / "slices.npz", 9, volume_guess=studies)), 5, 64))
    assert [(case.name, case.data, len(case.inputs), case.mask) for case in cases] == [
        ("slices 1", "slices", 5, "complete"),
        ("slices 1", "slices", 5, "half"),
        ("slices 2", "slices", 4, "complete"),
        ("slices 2", "slices", 4, "half"),
    ]
    first = cases[0]
    assert first.inputs.dtype == np.float32
    assert np.median(first.inputs[:, 0][first.lungs & ~first.lesions]) == pytest.approx(150 / 1400, abs=0.05)
    assert first.inputs[:, 0][first.lesions].min() > 0.3
    assert not first.inputs[:, 0][~first.lungs].any()


def test_annotated_slices_are_seen_at_the_size_of_the_classifier(tmp_path: Path) -> None:
    """At another size it would be judged on pixels of another size than it learned from."""
    slices = read_slices(annotated(tmp_path / "slices.npz", 4))
    half, whole = (next(slice_cases(slices, 1, size)) for size in (16, 32))
    assert (half.inputs.shape, whole.inputs.shape) == ((4, 2, 16, 16), (4, 2, 32, 32))
    np.testing.assert_array_equal(whole.lungs, slices.lungs)
    np.testing.assert_array_equal(whole.lesions, slices.infection)
    np.testing.assert_array_equal(half.lungs, slices.lungs[:, ::2, ::2])


def test_a_long_study_is_thinned(tmp_path: Path) -> None:
    complete, _ = slice_cases(read_slices(annotated(tmp_path / "slices.npz", 2 * MOST_SLICES + 1)), 1, 64)
    assert len(complete.inputs) == 67


def test_a_study_without_lesions_or_without_healthy_lung_is_no_case(tmp_path: Path) -> None:
    slices = read_slices(annotated(tmp_path / "slices.npz", 4, volume_guess=np.array([0, 1, 2, 2])))
    slices.infection[0] = False
    slices.infection[1] = slices.lungs[1]
    assert {case.name for case in slice_cases(slices, 3, 64)} == {"slices 3"}


def test_a_study_without_lung_is_no_case(tmp_path: Path) -> None:
    """Neither without any, nor where so little is left at the size of the classifier."""
    slices = read_slices(annotated(tmp_path / "slices.npz", 4, volume_guess=np.array([0, 1, 2, 2])))
    for number, kept in ((0, 0), (1, 1)):
        slices.lungs[number] = slices.infection[number] = False
        slices.lungs[number, 12, 8 : 8 + kept] = True
    assert {case.name for case in slice_cases(slices, 3, 16)} == {"slices 3"}


def broken(path: Path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        content = annotated(path, 4).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "other arrays":
        np.savez(path, something=np.zeros(3))
    elif kind == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "not packed":
        np.savez(path, ct=np.zeros((2, 32, 32), np.uint8), lungs=np.zeros(2048), infection=np.zeros(2048))
    elif kind == "flat":
        np.savez(
            path, ct=np.zeros((32, 32), np.uint8), **dict.fromkeys(("lungs", "infection"), np.zeros(128, np.uint8))
        )
    else:
        annotated(path, 4, volume_guess=np.zeros(2, np.uint8))


@pytest.mark.parametrize("kind", ["empty", "cut", "other arrays", "an array", "not packed", "flat", "too few studies"])
def test_a_file_that_is_not_as_documented_is_refused(kind: str, tmp_path: Path) -> None:
    broken(tmp_path / "slices.npz", kind)
    with pytest.raises(UsageError, match=r"docs/evaluation\.md"):
        read_slices(tmp_path / "slices.npz")


def small_example() -> Example:
    """A study of 4 slices whose input mask lacks one of two lesions, explained by an untrained network."""
    rng = np.random.default_rng(0)
    lungs, lesions, missing = np.zeros((3, 4, 32, 32), bool)
    lungs[:, 8:24, 4:28] = True
    missing[1:3, 18:20, 20:24] = True
    lesions[1:3, 10:14, 6:12] = True
    lesions |= missing
    ct = np.where(lungs, rng.uniform(0.1, 0.9, lungs.shape), 0.0)
    inputs = np.stack([ct, lesions & ~missing], axis=1).astype(np.float32)
    case = Case("slices 1", "half", inputs, lungs, lesions, missing)
    return Example(case, explanations(untrained(), case))


def untrained() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier().eval()


def test_each_method_has_its_own_heatmap() -> None:
    example = small_example()
    case, heatmaps = example.case, example.heatmaps
    relevance = explain(untrained(), torch.from_numpy(case.inputs))
    healthy = quality.without_lesions(case.inputs, case.lungs, case.lesions)
    gradients = baselines.integrated_gradients(untrained(), case.inputs, healthy)
    expected = {
        "LRP, CT": relevance.ct.numpy(),
        "LRP, lesion mask": relevance.lesions.numpy(),
        "LRP, sum of both": (relevance.ct + relevance.lesions).numpy(),
        "Grad-CAM": baselines.grad_cam(untrained(), case.inputs),
        "integrated gradients, CT": gradients[:, 0],
        "integrated gradients, lesion mask": gradients[:, 1],
        "lesion mask itself": case.inputs[:, 1],
    }
    for name, heatmap in expected.items():
        np.testing.assert_allclose(heatmaps[name], heatmap, rtol=1e-4, atol=1e-5 * np.abs(heatmap).max(), err_msg=name)
    assert set(heatmaps) - set(expected) == {"random in the lungs"}
    assert not heatmaps["random in the lungs"][~case.lungs].any()


def test_scores_are_those_of_the_lungs_without_the_lesions_that_were_given() -> None:
    example = small_example()
    case = example.case
    perfect = replace(example, heatmaps={"perfect": np.where(case.target, 1.0, np.where(case.judged, -1.0, 5.0))})
    [score] = judge(untrained(), perfect)
    assert (score.mass_in_lungs, score.rank, score.pointing) == (1.0, 1.0, 1.0)
    assert score.mass < 0.1
    assert score.area == case.target.mean()
    assert score.area_in_lungs == pytest.approx(16 / (4 * 16 * 24 - 48))
    assert score.curve is None


def test_deletion_is_scored_where_the_mask_is_complete() -> None:
    example = small_example()
    whole = replace(example, case=replace(example.case, mask="complete", target=example.case.lesions))
    for score in judge(untrained(), whole):
        assert score.curve is not None
        assert score.deletion == quality.area_under(score.curve)
        heatmap = example.heatmaps[score.method]
        healthy = quality.without_lesions(whole.case.inputs, whole.case.lungs, whole.case.lesions)
        assert score.curve == quality.deletion(untrained(), whole.case.inputs, healthy, whole.case.lungs, heatmap)


def test_a_cascade_compares_with_the_true_heatmaps() -> None:
    example = small_example()
    found = cascade(untrained(), example, seed=1)
    lungs = example.case.lungs
    *_, (_, last) = quality.randomised(untrained(), 1)
    relevance = explain(last, torch.from_numpy(example.case.inputs))
    for name, heatmap in (("LRP, CT", relevance.ct.numpy()), ("LRP, lesion mask", relevance.lesions.numpy())):
        true, other = example.heatmaps[name][lungs], heatmap[lungs]
        assert len(found.signed[name]) == len(found.layers) == 6
        assert found.signed[name][-1] == pytest.approx(quality.similarity(true, other))
        assert found.absolute[name][-1] == pytest.approx(quality.similarity(np.abs(true), np.abs(other)))


@pytest.mark.slow
def test_evaluation_writes_tables_and_pictures(tmp_path: Path) -> None:
    slices = annotated(tmp_path / "slices.npz", 4)
    out = tmp_path / "out"
    arguments = ["--phantoms", "1", "--in-plane", "32", "--slices", str(slices), "--studies", "1"]
    assert main(["evaluate", "explanation", "-o", str(out), *arguments]) == 0
    content = json.loads((out / "explanation.json").read_text("utf-8"))
    scores = content["scores"]
    groups = [(data, mask) for data in ("phantom", "slices") for mask in ("complete", "half")]
    assert [(s["data"], s["mask"], s["method"]) for s in scores] == [
        (*group, name) for group in groups for name in METHODS
    ]
    itself = [s for s in scores if s["method"] == "lesion mask itself"]
    assert [s["mass"] for s in itself] == [1.0, 0.0, 1.0, 0.0]
    assert [s["rank"] for s in itself if s["mask"] == "complete"] == [1.0, 1.0]
    by_chance = [s for s in scores if s["method"] == "random in the lungs"]
    assert all(s["mass_in_lungs"] == pytest.approx(s["area_in_lungs"], rel=0.3) for s in by_chance)
    assert len(content["cascades"]) == 2
    table = (out / "explanation.md").read_text("utf-8")
    assert table.startswith("Research use only.")
    assert table.count("| LRP, CT |") == 4
    pictures = {path.name for path in out.glob("*.png")}
    examples = {f"example_{data}_{mask}.png" for data, mask in groups}
    assert pictures == {"deletion.png", "randomisation.png", *examples}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phantoms", "0"], "no study with lesions"),
        (["--slices", "nowhere.npz"], "nowhere.npz holds no annotated slices"),
        (["--upside-down", "7"], "--upside-down says how the slices of --slices lie"),
        (["-m", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_told_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "explanation", "-o", str(out), *arguments]) == ExitStatus.USAGE
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_studies_that_lie_upside_down_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slices = annotated(tmp_path / "slices.npz", 4)
    arguments = ["--slices", str(slices), "--upside-down", "0", "7"]
    assert main(["evaluate", "explanation", "-o", str(tmp_path / "out"), *arguments]) == ExitStatus.USAGE
    assert "there is no study 7 among the slices" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("--phantoms", "-1"), ("--studies", "0"), ("--in-plane", "3"), ("--studies", "x")]
)
def test_numbers_out_of_range_are_usage(arguments: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", "explanation", "-o", str(tmp_path / "out"), *arguments])
    assert exit_info.value.code == ExitStatus.USAGE


def test_an_output_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert main(["evaluate", "explanation", "-o", str(tmp_path)]) == ExitStatus.USAGE
    assert "is there already" in capsys.readouterr().err
    assert main(["evaluate", "explanation", "-o", str(tmp_path / "note.txt" / "out")]) == ExitStatus.USAGE
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_missing_captum_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    assert main(["evaluate", "explanation", "-o", str(tmp_path / "out")]) == ExitStatus.USAGE
    assert "pip install -c constraints.txt '.[evaluation]'" in capsys.readouterr().err
