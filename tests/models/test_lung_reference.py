"""The reference lungs: what counts as lung, and what air does not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from app.phantom import make_phantom
from models.lungs.reference import air_in_body, airways, reference_lungs
from models.morphology import dilate

SPACING = (3.0, 2.0, 2.0)
MM = tuple[float, float, float]


def _ball(shape: tuple[int, ...], centre: MM, radius: float) -> np.ndarray:
    """Voxels within ``radius`` mm of ``centre`` (mm from the first voxel)."""
    axes = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)], indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def _tube(shape: tuple[int, ...], start: MM, end: MM, radius: float) -> np.ndarray:
    """Voxels within ``radius`` mm of a straight line."""
    return np.any([_ball(shape, tuple(p), radius) for p in np.linspace(start, end, 40)], axis=0)  # type: ignore[arg-type]


def _chest() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU of a plain chest, its lungs (1 left, 2 right) and the lumen of its trachea and main bronchi."""
    hu, lungs, trunk = _made_chest()
    return hu.copy(), lungs.copy(), trunk.copy()


@cache
def _made_chest() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (80, 130, 150)
    z, y, x = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)], indexing="ij")
    hu = np.where(((y - 130) / 110) ** 2 + ((x - 150) / 135) ** 2 < 1, 40.0, -1000.0)
    lungs = np.zeros(shape, np.uint8)
    for side, middle in ((2, 85.0), (1, 215.0)):
        lungs[((z - 115) / 85) ** 2 + ((y - 130) / 75) ** 2 + ((x - middle) / 48) ** 2 < 1] = side
    hu[lungs > 0] = -850.0
    trunk = _tube(shape, (237.0, 130.0, 150.0), (125.0, 130.0, 150.0), 8.0)
    for end in (115.0, 185.0):
        trunk |= _tube(shape, (125.0, 130.0, 150.0), (105.0, 130.0, end), 6.0)
    trunk &= lungs == 0
    hu[trunk] = -1000.0
    hu += np.random.default_rng(0).normal(0, 8, shape)
    return hu.astype(np.float32), lungs, trunk


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_lungs_of_a_plain_chest_are_found_side_by_side() -> None:
    hu, lungs, _ = _chest()
    found = reference_lungs(hu, SPACING)
    for side in (1, 2):
        assert _dice(found == side, lungs == side) > 0.97


def test_trachea_and_main_bronchi_are_airways_and_no_lung() -> None:
    hu, lungs, trunk = _chest()
    lumen = airways(hu, SPACING)
    assert lumen[trunk].mean() > 0.8
    assert lumen[lungs > 0].mean() < 0.01
    assert not reference_lungs(hu, SPACING)[trunk & lumen].any()


def test_a_chest_without_a_trachea_has_no_airways() -> None:
    hu, _, trunk = _chest()
    hu[trunk] = 40.0
    assert not airways(hu, SPACING).any()


def test_air_around_the_body_is_not_in_it() -> None:
    hu, lungs, _ = _chest()
    air = air_in_body(hu, SPACING)
    assert air[lungs > 0].mean() > 0.95
    assert not air[:, :5].any()


def test_vessels_and_small_dense_disease_at_the_pleura_belong_to_the_lung() -> None:
    hu, lungs, _ = _chest()
    vessel = _tube(hu.shape, (115.0, 130.0, 60.0), (115.0, 130.0, 110.0), 4.0)
    disease = _ball(hu.shape, (115.0, 202.0, 85.0), 5.0) & (lungs == 2)
    assert disease.sum() > 10
    hu[vessel | disease] = 40.0
    found, open_ = (reference_lungs(hu, SPACING, closing) == 2 for closing in (10.0, 0.0))
    assert found[vessel].all()
    assert found[disease].mean() > 0.65
    assert open_[disease].mean() < 0.4


def test_gas_in_the_stomach_under_the_diaphragm_is_no_lung() -> None:
    hu, lungs, _ = _chest()
    stomach = _ball(hu.shape, (38.0, 130.0, 240.0), 24.0) & (lungs == 0)
    hu[stomach] = -1000.0
    # only a thin sheet parts them: the partial volume of 2 mm leaves a bridge of air
    bridge = _ball(hu.shape, (60.0, 130.0, 232.0), 6.0)
    hu[bridge & (lungs == 0)] = -900.0
    found = reference_lungs(hu, SPACING) > 0
    assert found[stomach].mean() < 0.15
    assert found[lungs == 1].mean() > 0.9


def test_gas_behind_a_thin_diaphragm_that_the_closing_reaches_is_no_lung() -> None:
    """Between lung and gas lie 6 mm of tissue that a closing of 10 mm fills, and with it a part of the gas."""
    hu, lungs, _ = _chest()
    lung = lungs == 1
    away = dilate(lung, 6.0, SPACING)
    gas = dilate(lung, 40.0, SPACING) & ~away & _ball(hu.shape, (45.0, 130.0, 215.0), 45.0)
    hu[gas] = -1000.0
    found = reference_lungs(hu, SPACING) > 0
    assert not found[gas].any()
    assert found[lung].mean() > 0.97
    assert found[away & ~lung].mean() < 0.15


def test_a_light_lung_stays() -> None:
    """Emphysema is no gas of the bowel."""
    hu, lungs, _ = _chest()
    hu[lungs == 1] -= 100.0
    assert _dice(reference_lungs(hu, SPACING) == 1, lungs == 1) > 0.97


def test_one_lung_alone_is_found() -> None:
    hu, lungs, _ = _chest()
    hu[lungs == 1] = 40.0
    found = reference_lungs(hu, SPACING)
    assert _dice(found == 2, lungs == 2) > 0.97
    assert not (found == 1).any()


def test_a_body_without_lungs_is_an_error() -> None:
    hu = _chest()[0]
    hu[hu < -300] = 40.0
    hu[:, :6] = -1000.0
    with pytest.raises(ValueError, match="no lungs"):
        reference_lungs(hu, SPACING)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_lungs_of_a_phantom_are_found(seed: int) -> None:
    phantom = make_phantom(seed, SPACING)
    found = reference_lungs(phantom.hu, SPACING)
    assert _dice(found > 0, phantom.lungs > 0) > 0.95
    assert not np.logical_and(found == 1, phantom.lungs == 2).any()
