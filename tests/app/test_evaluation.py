"""``covid-ct evaluate explanation`` from its cases to what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.explanation_cases import MOST_SLICES, every_second, phantom_cases, slice_cases
from app.explanation_quality import METHODS
from app.outcome import ExitStatus, UsageError


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
    cases = list(slice_cases(annotated(tmp_path / "slices.npz", 9, volume_guess=studies), 5))
    assert [(len(case.inputs), case.mask) for case in cases] == [
        (5, "complete"),
        (5, "half"),
        (4, "complete"),
        (4, "half"),
    ]
    first = cases[0]
    assert first.inputs.dtype == np.float32
    assert np.median(first.inputs[:, 0][first.lungs & ~first.lesions]) == pytest.approx(150 / 1400, abs=0.05)
    assert first.inputs[:, 0][first.lesions].min() > 0.3
    assert not first.inputs[:, 0][~first.lungs].any()


def test_a_long_study_is_thinned(tmp_path: Path) -> None:
    complete, _ = slice_cases(annotated(tmp_path / "slices.npz", 2 * MOST_SLICES + 1), 1)
    assert len(complete.inputs) == 67


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(UsageError, match=r"docs/training\.md"):
        list(slice_cases(tmp_path / "other.npz", 1))


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
    by_chance = [s for s in scores if s["method"] == "random"]
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
        (["--phantoms", "0"], "nothing to evaluate on"),
        (["--slices", "nowhere.npz"], "nowhere.npz is not a file"),
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
