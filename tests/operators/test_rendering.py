import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from operators.codes import LESION_TERMS
from operators.findings import Explanation, Lesions, LesionType
from operators.page import RELEVANCE_COLORS, Page, direction_letter, relevance_rgba, window
from operators.remarks import Remark, RemarkCode
from operators.rendering import Study, _KeySlicePage, relevance_limit, relevance_on_slice, render_overlay, stated
from operators.volume import CTVolume, Grid
from tests.builders import axial_grid
from tests.operators.dicom_results import SHAPE, case, multi_frame, no_lesions

Image = npt.NDArray[np.uint8]


def test_the_window_is_minus_600_and_1500() -> None:
    hu = np.array([-3000, -1350, -600, 150, 3000], dtype=np.float32)
    np.testing.assert_allclose(window(hu), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("direction", "letter"),
    [((1, 0.1, 0), "L"), ((-1, 0, 0.2), "R"), ((0, 1, 0), "P"), ((0, -1, 0), "A"), ((0, 0, 1), "H"), ((0, 0, -1), "F")],
)
def test_sides_follow_the_patient_coordinate_system(direction: tuple[float, ...], letter: str) -> None:
    assert direction_letter(np.array(direction)) == letter


@pytest.mark.parametrize("outlier", [100.0, 1e6])
def test_the_limit_ignores_next_to_nothing_and_outliers(outlier: float) -> None:
    """Of 40 000 pixels 1000 have relevance; the rest has a tenth of all, as black pixels may."""
    relevance = np.full(40_000, 1e-3, np.float32)
    relevance[:1000] = np.tile([-1.0, 1.0], 500)
    relevance[0] = outlier
    assert relevance_limit(relevance.reshape(2, 200, 100)) == 1.0
    assert relevance_limit(np.array([0.0, -2.0, 0.0], np.float32)) == 2.0
    assert relevance_limit(np.zeros((3, 3), dtype=np.float32)) == 0.0


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
def test_sizes_are_told_apart_however_small_the_lesion(share: float) -> None:
    """No more than a tenth of what a lesion has lies at the ends of the colours."""
    rng = np.random.default_rng(0)
    relevance = rng.normal(0, 1e-8, 100_000).astype(np.float32)
    lesion = round(share * relevance.size)
    relevance[:lesion] = rng.uniform(-1e-4, 1e-4, lesion)
    limit, size = relevance_limit(relevance), np.abs(relevance[:lesion])
    assert 0.5e-4 < limit < 1e-4
    assert size[size > limit].sum() < 0.1 * size.sum()
    assert not np.any(np.abs(relevance[lesion:]) > 0.01 * limit)


def linear_field(grid: Grid) -> npt.NDArray[np.float32]:
    """At each voxel a linear function of its place in the patient."""
    index = np.stack([*np.mgrid[tuple(slice(n) for n in grid.shape)], np.ones(grid.shape)])
    place = np.tensordot(grid.affine, index, axes=1)
    return (2.0 * place[0] - 3.0 * place[1]).astype(np.float32)


def test_relevance_lands_on_its_place_in_the_patient() -> None:
    ct = axial_grid((9, 32, 40), (1.5, 0.8, 0.7), (-30.0, 12.0, 100.0))
    classifier = ct.resampled((5, 16, 20))
    sampled = relevance_on_slice(linear_field(classifier), classifier, ct, 4)
    expected = linear_field(ct)[4]
    np.testing.assert_allclose(sampled[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-4, atol=1e-3)


def test_relevance_comes_from_the_nearest_slice_and_is_zero_beyond_the_ends() -> None:
    ct = axial_grid((12, 4, 4), (1.0, 1.0, 1.0))
    whole = ct.resampled((4, 4, 4))
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, 0]
    kept = Grid((2, 4, 4), affine)  # the two slices in the middle: CT slices 3 to 8
    relevance = np.stack([np.full((4, 4), value, dtype=np.float32) for value in (1.0, 2.0)])
    seen = [float(relevance_on_slice(relevance, kept, ct, index)[2, 2]) for index in range(12)]
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]


def test_relevance_lands_on_its_place_in_an_oblique_volume() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() @ np.diag([3.0, 0.8, 0.7])
    ct = Grid((5, 24, 20), affine)
    classifier = ct.resampled((5, 12, 10))
    sampled = relevance_on_slice(linear_field(classifier), classifier, ct, 2)
    np.testing.assert_allclose(sampled[1:-1, 1:-1], linear_field(ct)[2][1:-1, 1:-1], rtol=1e-4, atol=1e-3)


def test_colours_keep_sign_and_size_and_leave_zero_transparent() -> None:
    rgba = relevance_rgba(np.array([-9.0, -1.0, -0.5, 0.0, 0.01, 0.5, 1.0, 9.0], dtype=np.float32), 1.0)
    red, blue, alpha = rgba[:, 0], rgba[:, 2], rgba[:, 3]
    assert (blue[:3] > red[:3]).all()
    assert (red[5:] > blue[5:]).all()
    assert alpha[3] == alpha[4] == 0
    assert alpha[5] < alpha[6] == alpha[7] == alpha[0] == alpha[1] <= 1
    assert not relevance_rgba(np.ones(3, dtype=np.float32), 0.0)[..., 3].any()


def pixels_near(image: Image, color: tuple[int, int, int], tolerance: int = 40) -> int:
    return int((np.abs(image.astype(int) - color).max(axis=-1) <= tolerance).sum())


def without(study: Study, **changes: object) -> Study:
    fields = {name: getattr(study, name) for name in ("volume", "lungs", "lesions", "classification", "explanation")}
    return Study(**{**fields, **changes})


def test_the_picture_has_the_size_of_a_page_and_two_rows_of_panels() -> None:
    image = render_overlay(case().study, 5)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (1400, 3)
    assert 900 < image.shape[0] < 1700


def test_each_lesion_type_is_outlined_in_its_colour() -> None:
    study = case().study
    bare = without(study, explanation=_silent(study.explanation))
    for kind, term in LESION_TERMS.items():
        index = int(np.argmax(np.any(study.lesions.labels == kind, axis=(1, 2))))
        kept = np.where(study.lesions.labels == kind, study.lesions.labels, 0).astype(np.uint8)
        drawn = render_overlay(without(bare, lesions=Lesions(kept, study.lesions.grid)), index)
        empty = render_overlay(without(bare, lesions=Lesions(np.zeros_like(kept), study.lesions.grid)), index)
        assert pixels_near(drawn, term.color) > pixels_near(empty, term.color) + 100


def test_an_outline_does_not_hide_the_lesion() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5, 12:28, 8:18] = LesionType.CONSOLIDATION
    study = case(lesions=labels).study
    bare = without(study, explanation=_silent(study.explanation))
    drawn = render_overlay(bare, 5)
    empty = render_overlay(without(bare, lesions=Lesions(np.zeros_like(labels), study.lesions.grid)), 5)
    changed = np.any(drawn != empty, axis=-1)
    rows, columns = np.nonzero(
        changed & (np.arange(changed.shape[1]) > 700) & (np.arange(changed.shape[0]) < 500)[:, None]
    )
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 0 < rows.size < 0.1 * box


def _silent(explanation: Explanation) -> Explanation:
    nothing = np.zeros_like(explanation.ct)
    return replace(explanation, ct=nothing, lesions=nothing.copy())


def test_only_the_panels_of_the_relevance_change_with_it() -> None:
    study = case().study
    changed = np.any(
        render_overlay(study, 5) != render_overlay(without(study, explanation=_silent(study.explanation)), 5), -1
    )
    height = changed.shape[0]
    assert not changed[: height // 3].any()
    lower = changed[height // 2 :]
    assert lower[:, :690].any()
    assert lower[:, 710:].any()


def test_a_blob_of_relevance_is_drawn_where_it_lies() -> None:
    study = case().study
    ct = np.zeros_like(study.explanation.ct)
    ct[5, 8:10, 6:8] = 1.0  # rows 16-19, columns 12-15 of the CT: in the right lung, on the left of the picture
    blob = Explanation(ct, np.zeros_like(ct), study.explanation.grid, 1, 1.0, residual_limit=np.inf)
    drawn = render_overlay(without(study, explanation=blob), 5)
    empty = render_overlay(without(study, explanation=_silent(blob)), 5)
    changed = np.any(drawn != empty, axis=-1)
    rows_of_panels = np.flatnonzero(np.any(changed[:, :200], axis=1))
    assert rows_of_panels.size
    where = np.argwhere(changed[: -2 * 46 - 44])
    assert (where[:, 1] < 350).all()
    assert (where[:, 0] > drawn.shape[0] // 2).all()


def test_an_unreliable_heatmap_is_called_so() -> None:
    study = case().study
    reliable, strict = (replace(study.explanation, residual_limit=limit) for limit in (np.inf, 1e-9))
    pages = [render_overlay(without(study, explanation=each), 5) for each in (reliable, strict)]
    rows, columns = np.nonzero(np.any(pages[0] != pages[1], axis=-1))
    middle = pages[0].shape[0] // 2
    assert (abs(rows - middle) < 80).all()  # the titles of the lower panels
    assert columns.min() < 690
    assert columns.max() > 710


def test_a_channel_without_relevance_has_no_colour_scale() -> None:
    study = case().study
    orange = (244, 116, 47)
    strip = slice(-90, -44)
    assert pixels_near(render_overlay(study, 5)[strip], orange) > 100
    silent = render_overlay(without(study, explanation=_silent(study.explanation)), 5)[strip]
    assert pixels_near(silent, orange) == 0
    assert silent.any()


def _opacity(drawn: Image, bare: Image, color: npt.ArrayLike) -> float:
    """How opaque a colour lies over the middle of where two pictures differ."""
    inside = binary_erosion(np.any(drawn != bare, axis=-1), iterations=30)
    assert inside.sum() > 100
    over, under = drawn[inside].astype(float), bare[inside].astype(float)
    full = 255.0 * np.asarray(color) - under
    return float(np.median(((over - under) * full).sum(axis=-1) / (full**2).sum(axis=-1)))


def test_the_scale_is_that_of_the_volume_not_of_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 pixels each, those in slice 2 have four times the relevance of those in slice 5, which is shown."""
    study = case().study
    heatmaps = [np.zeros_like(study.explanation.ct) for _ in range(2)]
    for heatmap, most in zip(heatmaps, (1.0, 2.0), strict=True):
        heatmap[2, 6:16, 6:16] = most
        heatmap[5, 6:16, 6:16] = most / 4
    ct, lesions = heatmaps
    explanation = replace(study.explanation, ct=ct, lesions=lesions, residual_limit=np.inf)
    shown = without(study, explanation=explanation)
    assert (shown.ct_limit, shown.lesions_limit) == (1.0, 2.0)

    words: list[str] = []
    write = Page.text

    def text(page: Page, x: float, y: float, what: str, *style: Any, **more: Any) -> None:
        words.append(what)
        write(page, x, y, what, *style, **more)

    monkeypatch.setattr(Page, "text", text)
    drawn = render_overlay(shown, 5)
    assert [word for word in words if word[0] in "\u2264\u2265"] == [
        "\u2264 -1.0e+00",
        "\u2265 1.0e+00",
        "\u2264 -2.0e+00",
        "\u2265 2.0e+00",
    ]
    bare = render_overlay(without(study, explanation=replace(explanation, ct=0 * ct, lesions=0 * lesions)), 5)
    color = RELEVANCE_COLORS((1 + 1 / 4) / 2)[:3]
    for half in (slice(0, 700), slice(700, 1400)):
        panel = slice(drawn.shape[0] // 2, -90), half
        assert _opacity(drawn[panel], bare[panel], color) == pytest.approx(0.25 + 0.65 * (1 / 4) ** 0.5, abs=0.02)


def test_the_notice_is_on_every_picture_also_without_lesions() -> None:
    for study in (case().study, no_lesions().study):
        image = render_overlay(study, 5)
        assert pixels_near(image[-44:], (240, 192, 0)) > 500


def test_the_corners_stay_empty_for_what_viewers_write() -> None:
    image = render_overlay(case().study, 5)
    for rows in (slice(0, 80), slice(-40, None)):
        for columns in (slice(0, 250), slice(-250, None)):
            assert not image[rows, columns].any()


def test_another_decision_gives_another_header() -> None:
    positive, negative = (render_overlay(case(probability=p).study, 5) for p in (0.9, 0.1))
    assert (positive[:84] != negative[:84]).any()
    np.testing.assert_array_equal(positive[84:], negative[84:])


def test_the_same_study_gives_the_same_pixels() -> None:
    np.testing.assert_array_equal(render_overlay(case().study, 5), render_overlay(case().study, 5))


def test_rejects_findings_on_another_grid() -> None:
    study = case().study
    grid = axial_grid(SHAPE, (9.0, 1.5, 1.5))
    with pytest.raises(ValueError, match="grid"):
        without(study, lesions=Lesions(np.zeros(SHAPE, dtype=np.uint8), grid))


def test_a_slice_is_named_as_the_viewer_names_it_and_placed_along_the_slices() -> None:
    study = case().study
    assert _KeySlicePage(study, 4).place() == f"image {study.volume.headers[4].InstanceNumber}, z = 12.0 mm"
    assert _KeySlicePage(without(study, volume=multi_frame()), 4).place() == "frame 5, z = 12.0 mm"
    volume = study.volume
    some = CTVolume(volume.hu, volume.grid, (*volume.headers[:4], *volume.headers[5:]), (*range(4), *range(5, 12)))
    assert _KeySlicePage(without(study, volume=some), 4).place() == "slice 5 of 12, z = 12.0 mm"


def test_a_slice_that_is_no_image_of_the_series_is_not_named_as_one() -> None:
    study = case().study
    blended = replace(study.volume, remarks=(Remark(RemarkCode.GAPS_RESAMPLED, "The gaps varied."),))
    number = study.volume.headers[4].InstanceNumber
    assert _KeySlicePage(without(study, volume=blended), 4).place() == f"near image {number}, interpolated, z = 12.0 mm"
    nameless = [copy.deepcopy(header) for header in study.volume.headers]
    nameless[4].InstanceNumber = None
    del nameless[5].InstanceNumber
    volume = replace(study.volume, headers=tuple(nameless))
    for index in (4, 5):
        place = _KeySlicePage(without(study, volume=volume), index).place()
        assert place.startswith(f"slice {index + 1} of 12, z = ")


def test_a_frame_is_named_with_its_image_where_there_are_several() -> None:
    study, volume = case().study, multi_frame()
    headers = [copy.deepcopy(header) for header in volume.headers]
    headers[-1].SOPInstanceUID += ".1"
    place = _KeySlicePage(without(study, volume=replace(volume, headers=tuple(headers))), 4).place()
    assert place == f"image {headers[4].InstanceNumber}, frame 5, z = 12.0 mm"


@pytest.mark.parametrize(
    ("probability", "threshold", "words"),
    [(0.4996, 0.5, "0.4996"), (0.49999996, 0.5, "0.49999996"), (0.5, 0.5, "0.500"), (0.91234, 0.5, "0.912")],
)
def test_what_is_written_lies_on_the_side_of_the_threshold_that_is_told(
    probability: float, threshold: float, words: str
) -> None:
    result = replace(case().classification, probability=probability, threshold=threshold)
    assert stated(result) == words
