"""From which masks a model learns, and is validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cohort.preparation import GivenSlices
from app.cohort.table import read_cohort
from app.outcome import UsageError
from app.training import data
from app.training.configuration import load_training_settings
from app.training.data import prepared
from app.training.tasks import TASKS
from tests.app.noise_slices import NoiseSlices, write_noise_cohort


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Noise instead of what is found."""
    (tmp_path / "cohort").mkdir()
    write_noise_cohort(tmp_path / "cohort", ["validation", "train", "train", "validation", "train", "train"])
    monkeypatch.setattr(data, "slice_preparation", lambda models, in_plane: NoiseSlices({}, f"found-{in_plane}"))
    return tmp_path / "cohort"


def folders(cohort: Path, task: str, *changes: str) -> list[str]:
    """Return the folders of the cache in which the studies come to lie, in the order of the table."""
    settings = load_training_settings(TASKS[task].settings, TASKS[task].recommended, None, ["in_plane=64", *changes])
    studies = read_cohort(cohort)
    cache = cohort.parent / "cache"
    made = prepared(studies, TASKS[task], settings, cache, models=cohort, workers=1, tell=lambda line: None)
    assert [each.label for each in made] == [study.label for study in studies]
    assert [each.path.name.partition("-")[0] for each in made] == [study.name for study in studies]
    return [each.path.parent.name.rpartition("-")[0] for each in made]


@pytest.mark.parametrize("task", ["cvae", "classifier", "covnet", "decovnet"])
def test_found_masks_are_learned_from_unless_the_given_ones_are_wanted(
    task: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(folders(cohort, task)) == {"found-64"}
    monkeypatch.setattr(GivenSlices, "make", NoiseSlices({}).make)
    found, given = "found-64", "given-64"
    assert folders(cohort, task, "masks=given") == [found, given, given, found, given, given]


def test_a_study_to_learn_from_without_masks_is_named(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cohort.preparation.load_study", lambda study: None)
    with pytest.raises(UsageError, match=r"4 of 4 studies cannot be used.*study ct1.nii.gz has no mask of the lungs"):
        folders(cohort, "classifier", "masks=given")
