"""What is no whole chest is refused or remarked on, in any orientation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from operators.content_check import check_content
from operators.findings import Lung, Lungs
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import RemarkCode
from operators.volume import CTVolume, Grid
from tests.builders import ct_volume

SHAPE, SPACING = (40, 50, 60), (6.0, 6.0, 6.0)  # 240 x 300 x 360 mm


def _chest(lung_hu: float = -850.0, offset: float = 0.0) -> tuple[CTVolume, Lungs]:
    """An elliptic body in air, with two lungs of 1.9 L each."""
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 6.0 for n in SHAPE], indexing="ij")
    hu = np.where((y / 130) ** 2 + (x / 165) ** 2 < 1, 40.0, -1024.0)
    labels = np.zeros(SHAPE, np.uint8)
    for side, middle in ((Lung.RIGHT, -75.0), (Lung.LEFT, 75.0)):
        labels[(z / 105) ** 2 + (y / 85) ** 2 + ((x - middle) / 52) ** 2 < 1] = side
    hu[labels > 0] = lung_hu
    volume = ct_volume(np.maximum(hu + offset, -1024.0), SPACING)
    return volume, Lungs(labels, volume.grid)


def _part(volume: CTVolume, lungs: Lungs, box: tuple[slice, ...]) -> tuple[CTVolume, Lungs]:
    """Cut both to a box."""
    hu = np.ascontiguousarray(volume.hu[box])
    cut = ct_volume(hu, SPACING)
    return cut, Lungs(np.ascontiguousarray(lungs.labels[box]), cut.grid)


def _codes(volume: CTVolume, lungs: Lungs) -> list[RemarkCode]:
    return [remark.code for remark in check_content(volume, lungs)]


def _refusal(volume: CTVolume, lungs: Lungs) -> ReasonCode:
    with pytest.raises(InputRefused) as refused:
        check_content(volume, lungs)
    assert "\n" not in refused.value.message
    return refused.value.code


def test_a_whole_chest_passes_without_a_word() -> None:
    assert _codes(*_chest()) == []


@pytest.mark.parametrize("offset", [1024.0, -300.0])
def test_shifted_hounsfield_units_are_refused(offset: float) -> None:
    assert _refusal(*_chest(offset=offset)) is ReasonCode.IMPLAUSIBLE_HU


def test_a_volume_without_tissue_is_refused() -> None:
    volume, lungs = _chest()
    air = ct_volume(np.full(SHAPE, -1000.0), SPACING)
    assert _refusal(air, lungs) is ReasonCode.IMPLAUSIBLE_HU
    assert volume.grid.matches(lungs.grid)


def test_what_is_too_small_for_lungs_is_refused() -> None:
    volume, lungs = _chest()
    tiny = np.array(lungs.labels)
    tiny[:, :, :] = 0
    tiny[18:22, 20:30, 20:30] = Lung.LEFT
    assert _refusal(volume, Lungs(tiny, volume.grid)) is ReasonCode.NOT_CHEST_CT


def test_one_lung_is_remarked_on() -> None:
    volume, lungs = _chest()
    one = np.where(lungs.labels == Lung.LEFT, Lung.LEFT, 0).astype(np.uint8)
    assert _codes(volume, Lungs(one, volume.grid)) == [RemarkCode.ONE_LUNG]
    right = np.argwhere(lungs.labels == Lung.RIGHT)
    crumb = right[len(right) // 2 :][:50]
    with_crumb = one.copy()
    with_crumb[tuple(crumb.T)] = Lung.RIGHT
    assert _codes(volume, Lungs(with_crumb, volume.grid)) == [RemarkCode.ONE_LUNG]


@pytest.mark.parametrize(("crumb", "codes"), [(False, [RemarkCode.LUNG_IN_PIECES]), (True, [])])
def test_a_lung_in_pieces_is_remarked_on(crumb: bool, codes: list[RemarkCode]) -> None:
    volume, lungs = _chest()
    parted = np.array(lungs.labels)
    slices = np.flatnonzero((parted == Lung.LEFT).any(axis=(1, 2)))
    cut = slices[1 if crumb else len(slices) // 2]
    parted[cut][parted[cut] == Lung.LEFT] = 0
    assert _codes(volume, Lungs(parted, volume.grid)) == codes


@pytest.mark.parametrize("hu", [-980.0, -400.0])
def test_unusual_attenuation_is_remarked_on(hu: float) -> None:
    assert _codes(*_chest(lung_hu=hu)) == [RemarkCode.LUNG_ATTENUATION]


@pytest.mark.parametrize(
    ("kept", "code"), [(slice(5, 40), RemarkCode.LUNGS_CUT_BELOW), (slice(0, 35), RemarkCode.LUNGS_CUT_ABOVE)]
)
def test_lungs_that_reach_an_end_are_remarked_on(kept: slice, code: RemarkCode) -> None:
    assert _codes(*_part(*_chest(), (kept,))) == [code]


@pytest.mark.parametrize("kept", [slice(16, 40), slice(0, 24)])
def test_lungs_cut_in_the_middle_are_refused(kept: slice) -> None:
    assert _refusal(*_part(*_chest(), (kept,))) is ReasonCode.PARTIAL_COVERAGE


def test_lungs_at_the_edge_of_the_images_are_remarked_on() -> None:
    assert _codes(*_part(*_chest(), (slice(None), slice(None), slice(10, 60)))) == [
        RemarkCode.LUNGS_CUT_BY_FIELD_OF_VIEW
    ]


def test_half_of_a_chest_is_refused() -> None:
    assert _refusal(*_part(*_chest(), (slice(None), slice(24, 50)))) is ReasonCode.PARTIAL_COVERAGE


def test_the_circle_of_the_reconstruction_is_an_edge_too() -> None:
    volume, lungs = _chest()
    _, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 6.0 for n in SHAPE], indexing="ij")
    circle = x**2 + y**2 < 129.0**2
    hu = np.where(circle, volume.hu, np.float32(-1024.0))
    inside = np.where(circle, lungs.labels, 0).astype(np.uint8)
    cut = replace(volume, hu=hu)
    assert RemarkCode.LUNGS_CUT_BY_FIELD_OF_VIEW in _codes(cut, Lungs(inside, cut.grid))


def test_ends_are_those_of_the_patient_in_a_coronal_acquisition() -> None:
    volume, lungs = _part(*_chest(), (slice(5, 40),))
    axes = (1, 0, 2)
    affine = np.array(volume.grid.affine)
    affine[:3, :3] = affine[:3, axes]
    labels = np.ascontiguousarray(lungs.labels.transpose(axes))
    grid = Grid(labels.shape, affine)
    coronal = CTVolume(np.ascontiguousarray(volume.hu.transpose(axes)), grid, volume.headers[:1], (0,))
    assert _codes(coronal, Lungs(labels, grid)) == [RemarkCode.LUNGS_CUT_BELOW]


def test_lungs_must_be_on_the_grid_of_the_ct() -> None:
    volume, lungs = _chest()
    other = ct_volume(np.zeros((40, 50, 61)), SPACING)
    with pytest.raises(ValueError, match="grid"):
        check_content(other, lungs)
    assert volume is not other
