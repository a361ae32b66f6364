"""The slices in which masks differ most, and their picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cohort.images import bare_volume, without_headers
from app.evaluation.differences import MISSED, WRONG, draw_differences, greatest_differences
from app.evaluation.segmentation import Masks
from operators.orientation import arrangement_towards
from operators.volume import CTVolume

SHAPE = (6, 40, 50)
TURNED = ((0, -1.0), (2, -1.0), (1, 1.0))
"""A sagittal arrangement."""


def _masks() -> tuple[Masks, Masks]:
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[:, 5:35, 5:20], lungs[:, 5:35, 30:45] = 2, 1
    lesions, affected, found_lungs = np.zeros_like(lungs), np.zeros(SHAPE, bool), lungs.copy()
    lesions[2, 10:20, 8:12] = lesions[4, 10:30, 8:16] = 3
    affected[4, 10:30, 8:16] = affected[0, 10:20, 32:40] = True
    found_lungs[5, 5:35, 30:45] = 0
    return Masks(lungs, lesions), Masks(found_lungs, np.where(lesions == 3, 1, 0).astype(np.uint8), affected)


def _volume() -> CTVolume:
    rng = np.random.default_rng(0)
    return bare_volume(rng.normal(-800, 50, SHAPE).astype(np.float32), (5.0, 2.0, 1.0))


def test_the_slice_with_most_difference_is_shown_of_every_part_that_differs() -> None:
    volume, (truth, found) = _volume(), _masks()
    assert truth.lesions is not None
    lungs, affected = greatest_differences(volume, truth, found)  # lesions agree: types do not count
    assert (lungs.part, lungs.number, lungs.slices, lungs.aspect) == ("lungs", 6, 6, 2.0)
    assert (affected.part, affected.number) == ("affected lung by 2DS", 1)
    np.testing.assert_array_equal(lungs.hu, volume.hu[5])
    np.testing.assert_array_equal(lungs.truth, truth.lungs[5] > 0)
    np.testing.assert_array_equal(lungs.found, found.lungs[5] > 0)
    nothing = Masks(found.lungs, None, None)
    assert [one.part for one in greatest_differences(volume, truth, nothing)] == ["lungs"]
    assert greatest_differences(volume, truth, truth) == []


def test_any_arrangement_gives_the_same_axial_slices() -> None:
    volume, masks = _volume(), _masks()
    turn = arrangement_towards(volume.grid, TURNED)
    turned = without_headers(np.ascontiguousarray(turn.apply(volume.hu)), turn.apply_to_grid(volume.grid))
    truth, found = (Masks(*(None if each is None else turn.apply(each) for each in parts[:3])) for parts in masks)
    for one, other in zip(
        greatest_differences(volume, *masks), greatest_differences(turned, truth, found), strict=True
    ):
        assert (one.part, one.number, one.aspect) == (other.part, other.number, other.aspect)
        np.testing.assert_array_equal(one.hu, other.hu)
        np.testing.assert_array_equal(one.found, other.found)


def test_what_was_missed_and_what_is_wrong_have_their_colours(tmp_path: Path) -> None:
    truth, found = _masks()
    draw_differences(greatest_differences(_volume(), truth, found), tmp_path / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)

    def tinted(colour: str) -> np.ndarray:
        wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
        grey = 255 * 0.4 * (1350 - 800) / 1500  # what shows through of the CT
        return np.argwhere(np.abs(picture[:-60] - 0.6 * wanted - grey).max(axis=2) < 30)

    half = picture.shape[1] / 2
    missed, wrong = tinted(MISSED), tinted(WRONG)
    assert len(missed) > 1000
    assert (missed[:, 1] < half).mean() == pytest.approx(1.0)  # a lung in the first panel
    assert len(wrong) > 1000
    assert (wrong[:, 1] > half).mean() == pytest.approx(1.0)  # affected lung in the second
    draw_differences([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
