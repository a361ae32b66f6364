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
    _, lungs = _chest()
    air = ct_volume(np.full(SHAPE, -1000.0), SPACING)
    with pytest.raises(InputRefused, match="Soft tissue lies at nan HU") as refused:
        check_content(air, lungs)
    assert refused.value.code is ReasonCode.IMPLAUSIBLE_HU


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


@pytest.mark.parametrize(
    "other",
    [
        ct_volume(np.zeros((40, 50, 61)), SPACING),
        ct_volume(np.zeros(SHAPE), (6.0, 6.0, 5.9)),
        ct_volume(np.zeros(SHAPE), SPACING, origin=(0.0, 6.0, 0.0)),
    ],
    ids=["shape", "spacing", "place"],
)
def test_lungs_must_be_on_the_grid_of_the_ct(other: CTVolume) -> None:
    _, lungs = _chest()
    with pytest.raises(ValueError, match="grid"):
        check_content(other, lungs)


LAYERS, ROWS, COLUMNS = 40, 15, 14
"""Of the box in which each lung of :func:`_boxes` lies."""


def _boxes(left: int, right: int, lung_hu: float = -850.0, tissue_hu: float = 40.0) -> tuple[CTVolume, Lungs]:
    """Tissue with lungs of so many voxels of 1 ml: whole layers of a box from its lowest one, and a part of one more.

    They touch no end. One voxel beside them is emptier than they are, so that they do not pass for padding.
    """
    labels = np.zeros((LAYERS + 2, ROWS + 6, 2 * COLUMNS + 8), np.uint8)
    for side, count, first in ((Lung.RIGHT, right, 3), (Lung.LEFT, left, COLUMNS + 5)):
        box = np.zeros((LAYERS, ROWS, COLUMNS), np.uint8)
        box.ravel()[:count] = side
        labels[1:-1, 3:-3, first : first + COLUMNS] = box
    return _with_lungs(labels, (10.0, 10.0, 10.0), lung_hu, tissue_hu)


def _with_lungs(
    labels: np.ndarray, spacing: tuple[float, float, float], lung_hu: float = -850.0, tissue_hu: float = 40.0
) -> tuple[CTVolume, Lungs]:
    """Tissue with these lungs, and a voxel of air in a corner."""
    hu = np.where(labels > 0, lung_hu, tissue_hu)
    hu[0, 0, 0] = -1024.0
    volume = ct_volume(hu, spacing)
    return volume, Lungs(labels, volume.grid)


def _found(volume: CTVolume, lungs: Lungs) -> list[str]:
    """The remarks, or the reason of the refusal."""
    try:
        return [str(remark.code) for remark in check_content(volume, lungs)]
    except InputRefused as refused:
        return [str(refused.code)]


@pytest.mark.parametrize(
    ("ml", "found"),
    [
        (499, ["NOT_CHEST_CT"]),
        (501, ["LUNG_VOLUME"]),
        (1499, ["LUNG_VOLUME"]),
        (1501, []),
        (8999, []),
        (9001, ["LUNG_VOLUME"]),
        (11_999, ["LUNG_VOLUME"]),
        (12_001, ["NOT_CHEST_CT"]),
    ],
)
def test_lungs_hold_from_half_a_litre_to_12_litres_and_usually_from_1_5_to_9(ml: int, found: list[str]) -> None:
    volume, lungs = _boxes(ml // 2, ml - ml // 2)
    assert np.count_nonzero(lungs.labels) == ml
    assert _found(volume, lungs) == found


@pytest.mark.parametrize(("left", "right"), [(199, 2500), (2500, 199)])
def test_below_8_percent_of_the_other_there_is_one_lung(left: int, right: int) -> None:
    assert _found(*_boxes(left, right)) == ["ONE_LUNG"]
    assert _found(*_boxes(max(left, 201), max(right, 201))) == []


@pytest.mark.parametrize(("crumb", "found"), [(199, []), (201, ["LUNG_IN_PIECES"])])
@pytest.mark.parametrize("side", list(Lung))
def test_from_8_percent_of_the_largest_on_a_piece_is_one(side: Lung, crumb: int, found: list[str]) -> None:
    labels = np.array(_boxes(2500, 2500)[1].labels)
    columns = np.flatnonzero((labels == side).any(axis=(0, 1)))
    layer = np.zeros((ROWS, COLUMNS), np.uint8)
    layer.ravel()[:crumb] = side
    labels[20, 3:-3, columns[0] : columns[-1] + 1] = layer
    assert np.count_nonzero(labels == side) == 2500 + crumb
    assert _found(*_with_lungs(labels, (10.0, 10.0, 10.0))) == found


@pytest.mark.parametrize(("step", "found"), [(1.0, []), (1.01, ["LUNG_IN_PIECES"])])
def test_gaps_are_looked_for_every_2_mm_in_fine_slices(step: float, found: list[str]) -> None:
    """A slice of tissue is not seen between two that are looked at, and is where each is."""
    labels = np.array(_boxes(ROWS * COLUMNS * 40, ROWS * COLUMNS * 40)[1].labels)
    labels[19] = np.where(labels[19] == Lung.LEFT, 0, labels[19])
    assert _found(*_with_lungs(labels, (step, 20.0, 20.0))) == found


@pytest.mark.parametrize(
    ("hu", "found"),
    [
        (-932.0, ["LUNG_ATTENUATION"]),
        (-928.0, []),
        (-502.0, []),
        (-498.0, ["LUNG_ATTENUATION"]),
    ],
)
def test_lungs_usually_lie_from_minus_930_to_minus_500_hu(hu: float, found: list[str]) -> None:
    assert _found(*_boxes(2000, 2000, lung_hu=hu)) == found


@pytest.mark.parametrize(
    ("hu", "found"), [(-151.0, ["IMPLAUSIBLE_HU"]), (-149.0, []), (149.0, []), (151.0, ["IMPLAUSIBLE_HU"])]
)
def test_tissue_lies_from_minus_150_to_150_hu(hu: float, found: list[str]) -> None:
    assert _found(*_boxes(2000, 2000, tissue_hu=hu)) == found


@pytest.mark.parametrize(("hu", "found"), [(-298.0, ["IMPLAUSIBLE_HU"]), (-302.0, [])])
def test_what_lies_below_minus_300_hu_is_no_tissue(hu: float, found: list[str]) -> None:
    """It fills more than half of all that is no lung."""
    volume, lungs = _boxes(2000, 2000)
    values = np.array(volume.hu)
    values[12:][lungs.labels[12:] == 0] = hu
    assert np.count_nonzero(values == np.float32(hu)) > 2 * np.count_nonzero(values == 40.0)
    assert _found(replace(volume, hu=values), lungs) == found


@pytest.mark.parametrize(
    ("voxels", "found"),
    [(9, "whole"), (10, "cut"), (11, "cut"), (79, "cut"), (80, "PARTIAL_COVERAGE"), (81, "PARTIAL_COVERAGE")],
)
@pytest.mark.parametrize(("end", "cut"), [(0, "LUNGS_CUT_BELOW"), (-1, "LUNGS_CUT_ABOVE")])
def test_lungs_may_reach_an_end_with_5_percent_of_their_section_and_are_refused_from_40_on(
    end: int, cut: str, voxels: int, found: str
) -> None:
    labels = np.zeros((14, 16, 36), np.uint8)
    labels[1:-1, 3:13, 4:14], labels[1:-1, 3:13, 20:30] = Lung.RIGHT, Lung.LEFT
    inner = labels[1] > 0
    assert np.count_nonzero(inner) == 200
    places = tuple(np.argwhere(inner)[:voxels].T)
    labels[end][places] = labels[1][places]
    expected = {"whole": [], "cut": [cut]}.get(found, [found])
    assert _found(*_with_lungs(labels, (10.0, 10.0, 10.0))) == expected


def _sections(rows: int, shifted: int = 0) -> np.ndarray:
    """A right lung of 15 x 12 and a left one of so many rows x 12 in 20 slices, in some of them shifted by a pixel."""
    labels = np.zeros((22, 22, 34), np.uint8)
    labels[1:-1, 3:18, 2:14] = Lung.RIGHT
    labels[1:-1, 3 : 3 + rows, 18:30] = Lung.LEFT
    labels[1 : 1 + shifted] = np.roll(labels[1 : 1 + shifted], -1, axis=2)
    return labels


def _share_at_edge(labels: np.ndarray, edge: np.ndarray) -> float:
    """Of the pixels of lung that have a neighbour without lung, the share of those that have one at the edge."""
    outline = beside = 0
    for plane in labels:
        for y, x in np.argwhere(plane > 0):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            if not all(plane[place] for place in around):
                outline += 1
                beside += any(edge[place] for place in around)
    return beside / outline


EDGES = [
    pytest.param(0.0075, [], id="less than 1 %"),
    pytest.param(0.015, ["LUNGS_CUT_BY_FIELD_OF_VIEW"], id="more than 1 %"),
    pytest.param(0.1425, ["LUNGS_CUT_BY_FIELD_OF_VIEW"], id="less than 15 %"),
    pytest.param(0.15, ["PARTIAL_COVERAGE"], id="15 %"),
]


@pytest.mark.parametrize(("share", "found"), EDGES)
def test_lungs_may_reach_the_first_column_with_1_percent_of_their_outline_and_are_refused_from_15_on(
    share: float, found: list[str]
) -> None:
    labels = _sections(15, shifted=round(share * 2000 / 15))
    edge = np.ones(labels.shape[1:], bool)
    edge[1:-1, 1:-1] = False
    assert _share_at_edge(labels, edge) == share
    assert _found(*_with_lungs(labels, (10.0, 10.0, 10.0))) == found


@pytest.mark.parametrize(
    ("rows", "padded", "found"),
    [
        (16, 1, []),
        (15, 1, ["LUNGS_CUT_BY_FIELD_OF_VIEW"]),
        (16, 15, ["LUNGS_CUT_BY_FIELD_OF_VIEW"]),
        (15, 15, ["PARTIAL_COVERAGE"]),
    ],
)
def test_padding_is_an_edge_for_as_much_of_the_outline(rows: int, padded: int, found: list[str]) -> None:
    """Pixels that are air in every slice; those that are so in all but one are none."""
    labels = _sections(rows)
    volume, lungs = _with_lungs(labels, (10.0, 10.0, 10.0))
    hu = np.array(volume.hu)
    hu[:, 3 : 3 + padded, 14] = -1024.0
    share = _share_at_edge(labels, (hu == -1024.0).all(axis=0))
    assert share == padded / (100 if rows == 15 else 102)
    assert _found(replace(volume, hu=hu), lungs) == found
    hu = np.array(hu)
    hu[4, 3 : 3 + padded, 14] = -1000.0
    assert _found(replace(volume, hu=hu), lungs) == []
