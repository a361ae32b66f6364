import itertools
import json

import numpy as np
import pydantic
import pytest

from operators.findings import Involvement, Lesions, LesionType, Lung, Lungs
from operators.measurements import AGREEMENT, Amount, LungMeasurements, Measurements, check_agreement, measure
from operators.remarks import RemarkCode
from operators.volume import CTVolume, LabelArray
from tests.builders import ct_volume

SHAPE = (4, 6, 5)
SPACING = (2.5, 0.75, 0.625)


def random_case(spacing: tuple[float, float, float] = SPACING) -> tuple[CTVolume, Lungs, Lesions, Involvement]:
    random = np.random.default_rng(3)
    volume = ct_volume(random.uniform(-1000, 200, SHAPE), spacing)
    lungs = random.integers(0, 3, SHAPE, dtype=np.uint8)
    lesions = np.where(lungs > 0, random.integers(0, 5, SHAPE), 0).astype(np.uint8)
    affected = random.random(SHAPE) < 0.4
    return volume, Lungs(lungs, volume.grid), Lesions(lesions, volume.grid), Involvement(affected, volume.grid)


def naive(
    volume: CTVolume, lungs: Lungs, lesions: Lesions, involvement: Involvement, sides: set[int]
) -> dict[str, float]:
    """One voxel after the other."""
    ml = SPACING[0] * SPACING[1] * SPACING[2] / 1000
    sums = dict.fromkeys(("lung", "hu", "affected", *(kind.name.lower() for kind in LesionType)), 0.0)
    for index in itertools.product(*map(range, SHAPE)):
        if int(lungs.labels[index]) not in sides:
            continue
        sums["lung"] += ml
        sums["hu"] += float(volume.hu[index])
        sums["affected"] += ml if involvement.mask[index] else 0.0
        if lesions.labels[index]:
            sums[LesionType(int(lesions.labels[index])).name.lower()] += ml
    sums["hu"] /= sums["lung"] / ml
    return sums


def assert_equal(measured: LungMeasurements, expected: dict[str, float]) -> None:
    assert measured.volume_ml == pytest.approx(expected["lung"], rel=1e-12)
    assert measured.mean_hu == pytest.approx(expected["hu"], rel=1e-9)
    amounts = {kind.name.lower(): measured.lesion(kind) for kind in LesionType}
    expected["all"] = sum(expected[name] for name in amounts)
    for name, amount in {**amounts, "affected": measured.involvement, "all": measured.all_lesions}.items():
        assert amount.volume_ml == pytest.approx(expected[name], rel=1e-12)
        assert amount.percent_of_lung == pytest.approx(100 * expected[name] / expected["lung"], rel=1e-12)


def test_agrees_with_counting_one_voxel_after_the_other() -> None:
    case = random_case()
    measured = measure(*case)
    assert_equal(measured.total, naive(*case, {Lung.LEFT, Lung.RIGHT}))
    assert_equal(measured.left, naive(*case, {Lung.LEFT}))
    assert_equal(measured.right, naive(*case, {Lung.RIGHT}))


def test_left_and_right_add_up_to_the_total() -> None:
    measured = measure(*random_case())
    for kind in LesionType:
        sides = measured.left.lesion(kind).volume_ml + measured.right.lesion(kind).volume_ml
        assert measured.total.lesion(kind).volume_ml == pytest.approx(sides)
    assert measured.total.volume_ml == pytest.approx(measured.left.volume_ml + measured.right.volume_ml)


def test_volumes_scale_with_the_voxel_and_percentages_do_not() -> None:
    once, twice = measure(*random_case()).total, measure(*random_case((5.0, 0.75, 0.625))).total
    assert twice.volume_ml == pytest.approx(2 * once.volume_ml)
    assert twice.all_lesions.volume_ml == pytest.approx(2 * once.all_lesions.volume_ml)
    assert twice.all_lesions.percent_of_lung == pytest.approx(once.all_lesions.percent_of_lung)
    assert twice.mean_hu == pytest.approx(once.mean_hu)


def test_a_missing_lung_has_no_percentage_and_no_mean() -> None:
    volume, lungs, lesions, involvement = random_case()
    right: LabelArray = np.where(lungs.labels == Lung.RIGHT, lungs.labels, 0).astype(np.uint8)
    inside = Lesions(np.where(right > 0, lesions.labels, 0).astype(np.uint8), volume.grid)
    measured = measure(volume, Lungs(right, volume.grid), inside, involvement)
    nothing = Amount(volume_ml=0.0, percent_of_lung=None)
    assert measured.left.mean_hu is None
    assert measured.left.volume_ml == 0.0
    assert measured.left.involvement == measured.left.all_lesions == measured.left.ground_glass == nothing
    assert measured.right == measured.total


@pytest.mark.parametrize(("by_unet", "by_2ds"), [(0.0, 0.0), (12.0, 9.0), (9.0, 12.0), (50.0, 48.0)])
def test_networks_that_agree_are_not_remarked_on(by_unet: float, by_2ds: float) -> None:
    assert not check_agreement(_measured(by_unet, by_2ds))


@pytest.mark.parametrize(("by_unet", "by_2ds"), [(3.5, 0.0), (1.4, 20.0)])
def test_networks_that_disagree_are(by_unet: float, by_2ds: float) -> None:
    (remark,) = check_agreement(_measured(by_unet, by_2ds))
    assert remark.code == RemarkCode.INVOLVEMENT_DISAGREES
    assert f"{by_unet:.1f} % by the 3D U-Net, {by_2ds:.1f} % by 2DS" in remark.message
    assert AGREEMENT == 3.0


def _measured(by_unet: float, by_2ds: float) -> Measurements:
    """Lungs of 1000 voxels, so many percent of which are affected by each network."""
    shape = (10, 10, 10)
    volume = ct_volume(np.full(shape, -800.0), SPACING)
    places = np.arange(1000).reshape(shape)
    lesions = Lesions((places < 10 * by_unet).astype(np.uint8), volume.grid)
    return measure(
        volume, Lungs(np.ones(shape, np.uint8), volume.grid), lesions, Involvement(places < 10 * by_2ds, volume.grid)
    )


def test_survives_json_which_holds_no_nan() -> None:
    volume, _, _, _ = random_case()
    empty = np.zeros(SHAPE, dtype=np.uint8)
    none = Lungs(empty, volume.grid), Lesions(empty.copy(), volume.grid), Involvement(empty > 0, volume.grid)
    for measured in (measure(*random_case()), measure(volume, *none)):
        text = measured.model_dump_json()
        assert "NaN" not in text
        assert Measurements.model_validate(json.loads(text)) == measured


def test_is_immutable() -> None:
    measured = measure(*random_case())
    with pytest.raises(pydantic.ValidationError):
        measured.total.volume_ml = 1.0  # type: ignore[misc]


def test_rejects_a_lesion_outside_the_lungs() -> None:
    volume, lungs, lesions, involvement = random_case()
    labels = lesions.labels.copy()
    labels[tuple(np.argwhere(lungs.labels == 0)[0])] = LesionType.CONSOLIDATION
    with pytest.raises(ValueError, match="within the lungs"):
        measure(volume, lungs, Lesions(labels, volume.grid), involvement)


def test_rejects_findings_on_another_grid() -> None:
    volume, lungs, lesions, involvement = random_case()
    other = ct_volume(volume.hu, (3.0, 0.75, 0.625))
    with pytest.raises(ValueError, match="grid"):
        measure(other, lungs, lesions, involvement)
