"""What the lesion networks see: lungs and pleura."""

import numpy as np
import pytest
import torch

from models.lung_region import MARGIN_MM, margins, near_lungs, normalise


def test_intensities_are_clipped_scaled_and_blanked() -> None:
    hu = torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 900.0])
    near = torch.tensor([True, True, True, False, True])
    torch.testing.assert_close(normalise(hu, near), torch.tensor([0.0, 0.0, 0.5, 0.0, 1.0]))


@pytest.mark.parametrize("pixel", [(1.5, 1.5), (2.0, 1.25)])
def test_near_is_what_is_not_too_far_from_lung_in_its_slice(pixel: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    lung = rng.random((4, 40, 50)) > 0.998
    lung[2] = False
    found = near_lungs(lung, pixel)
    places = np.argwhere(np.ones(lung.shape[1:], bool)) * pixel
    for plane, near in zip(lung, found, strict=True):
        own = np.argwhere(plane) * pixel
        distance = np.linalg.norm(places[:, None] - own[None], axis=2).min(axis=1, initial=np.inf)
        np.testing.assert_array_equal(near.ravel(), distance <= MARGIN_MM)
    assert not found[2].any()
    assert 0.0 < found[0].mean() < 1.0


def test_lung_farther_than_the_margins_makes_nothing_near() -> None:
    pixel = (2.0, 1.25)
    y, x = margins(pixel)
    assert (y, x) == (8, 12)
    lung = np.zeros((1, 2 * y + 1, 2 * x + 1), bool)
    lung[0, y, x] = True
    near = near_lungs(np.pad(lung, [(0, 0), (3, 3), (3, 3)]), pixel)
    assert near.any()
    assert near.sum() == near_lungs(lung, pixel).sum()
