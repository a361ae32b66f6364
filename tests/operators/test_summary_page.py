"""The summary page shows what was found, where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pypdfium2
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import binary_dilation

from operators.codes import LESION_TERMS
from operators.findings import Lesions, LesionType, Lungs
from operators.measurements import Amount, Measurements
from operators.page import DPI, Page, RGBImage, hex_color
from operators.remarks import Remark, RemarkCode
from operators.rendering import Study, relevance_on_slice
from operators.summary_page import Summary, most_affected, relevance_on_plane, render_document, render_summary
from operators.volume import CTVolume, Grid
from tests.builders import axial_grid
from tests.operators.dicom_results import CASES, Case, case, no_lesions, one_lung, provenance

NOTICE = (240, 192, 0)


def _page(found: Case, *remarks: Remark) -> RGBImage:
    return render_summary(Summary(found.study, found.measurements, remarks, provenance().models.records))


def _share(page: RGBImage, color: tuple[int, int, int]) -> float:
    return float((np.abs(page.astype(int) - color).max(axis=-1) < 6).mean())


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_a_page(name: str) -> None:
    page = _page(CASES[name]())
    assert page.dtype == np.uint8
    assert page.shape[1:] == (1400, 3)
    np.testing.assert_array_equal(page, _page(CASES[name]()))


def test_bars_are_as_long_as_there_is_disease() -> None:
    colors = [LESION_TERMS[kind].color for kind in LesionType]
    with_, without = _page(case()), _page(no_lesions())
    for color in colors:
        assert _share(with_, color) > 1.5 * _share(without, color), "without lesions the legend alone has the colour"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures of the pages that are drawn."""
    drawn: list[Figure] = []
    draw = Page.pixels

    def pixels(page: Page) -> RGBImage:
        drawn.append(page.figure)
        return draw(page)

    monkeypatch.setattr(Page, "pixels", pixels)
    return drawn


def test_each_bar_is_that_of_the_lung_beside_it(figures: list[Figure]) -> None:
    found = case()
    _page(found)
    ((axes,),) = [figure.axes for figure in figures]
    lungs = {"both": found.measurements.total, "right": found.measurements.right, "left": found.measurements.left}
    rows = {label.get_text(): place for label, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    written = {text.get_position()[1]: text.get_text().strip() for text in axes.texts}
    for name, lung in lungs.items():
        percents = {
            hex_color(LESION_TERMS[kind].color): lung.lesion(kind).percent_of_lung or 0.0 for kind in LesionType
        }
        drawn = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        bars = [bar for bar in drawn if bar.get_y() < rows[name] < bar.get_y() + bar.get_height()]
        assert {to_hex(bar.get_facecolor()): bar.get_width() for bar in bars} == pytest.approx(percents)
        ends = [0.0]
        for bar in bars:
            assert bar.get_x() == pytest.approx(ends[-1]), "they follow each other"
            ends.append(bar.get_x() + bar.get_width())
        assert ends[-1] == pytest.approx(lung.all_lesions.percent_of_lung)
        assert written[rows[name]] == f"{lung.all_lesions.percent_of_lung:.1f} %"
    for kind in LesionType:
        right, left = (lungs[name].lesion(kind).percent_of_lung for name in ("right", "left"))
        assert right != pytest.approx(left), "else one could stand for the other"


def test_a_side_without_lung_is_the_one_that_is_called_so(figures: list[Figure]) -> None:
    _page(one_lung())
    (axes,) = figures[0].axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert {rows[round(text.get_position()[1])] for text in axes.texts if "no lung" in text.get_text()} == {"left"}


def test_each_figure_is_beside_what_it_measures() -> None:
    found = case()
    lungs = dict(zip(("total", "left", "right"), (4000.0, 1700.0, 2300.0), strict=True))
    amounts = dict(zip(LesionType, (31.0, 42.0, 5.3, 64.0), strict=True))
    amount = {kind.name.lower(): Amount(volume_ml=ml, percent_of_lung=1.0) for kind, ml in amounts.items()}
    amount["involvement"] = Amount(volume_ml=77.4, percent_of_lung=1.94)
    sides = {
        name: getattr(found.measurements, name).model_copy(
            update={"volume_ml": ml} | (amount if name == "total" else {})
        )
        for name, ml in lungs.items()
    }
    words = _words(replace(found, measurements=Measurements(**sides)))
    assert "Lungs 4.0 L: right 2.3 L, left 1.7 L" in words
    assert "COVID-19 POSITIVE, 1.9 % of the lungs involved" in words
    assert "Involved (2D model), any type 77 ml" in words
    for kind, ml in zip(LesionType, ("31 ml", "42 ml", "5.3 ml", "64 ml"), strict=True):
        assert f"{LESION_TERMS[kind].label} {ml}" in words


def test_notice_and_remarks_are_on_the_page() -> None:
    plain = _page(case())
    remark = Remark(RemarkCode.ONE_LUNG, "Only one lung was found.")
    assert _share(plain[-60:], NOTICE) > 0.005
    assert _share(_page(case(), remark)[:-60], NOTICE) > _share(plain[:-60], NOTICE)
    many = [remark] * 40
    assert _page(case(), *many).shape == plain.shape


def _words(found: Case, *remarks: Remark) -> str:
    document = render_document(Summary(found.study, found.measurements, remarks, provenance().models.records))
    (sheet,) = pypdfium2.PdfDocument(document)
    return " ".join(str(sheet.get_textpage().get_text_range()).split())


def test_doubts_about_what_the_page_shows_come_before_all_that_is_said_of_the_input() -> None:
    many = [Remark(RemarkCode.ONE_LUNG, "Only one lung was found.")] * 40
    doubts = [
        Remark(
            RemarkCode.INVOLVEMENT_DISAGREES, "Check how much of the lungs is affected: 9.1 % by one, 3.0 % by two."
        ),
        Remark(RemarkCode.EXPLANATION_UNRELIABLE, f"Do not rely on the relevance: {'and so on ' * 8}end."),
    ]
    words = _words(case(), *many, *doubts)
    for doubt in doubts:
        assert doubt.message in words


@pytest.mark.parametrize("reliable", [True, False])
def test_relevance_is_called_unreliable_where_it_is(monkeypatch: pytest.MonkeyPatch, reliable: bool) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Page, "plane", lambda page, box, plane, title: titles.append(title))
    found = case()
    explanation = found.explanation
    ct = np.full_like(explanation.ct, explanation.logit / explanation.ct.size * (1 if reliable else 9))
    _page(replace(found, explanation=replace(explanation, ct=ct)))
    shown = [title.partition("\n")[2] for title in titles if "relevance" in title]
    assert shown == ["of the CT" if reliable else "of the CT: unreliable, see the remarks"] * 2


def test_the_last_model_is_above_the_notice_however_many_remarks_there_are() -> None:
    found, models = case(), provenance().models.records
    remarks = [Remark(RemarkCode.ONE_LUNG, "Only one lung was found.")] * 40
    (sheet,) = pypdfium2.PdfDocument(render_document(Summary(found.study, found.measurements, remarks, models)))
    words = sheet.get_textpage()
    models_end = min(words.get_charbox(words.search(model.sha256[:12]).get_next()[0])[1] for model in models)
    _, _, _, notice_top = words.get_charbox(words.search("Research use only").get_next()[0])
    assert models_end > notice_top > 0


@pytest.mark.parametrize("name", CASES)
def test_the_corners_stay_empty_for_what_viewers_write(name: str) -> None:
    page = _page(CASES[name]())
    for rows in (slice(0, 110), slice(-40, None)):
        for columns in (slice(0, 250), slice(-250, None)):
            assert not page[rows, columns].any()


def test_a_document_looks_like_the_page_and_its_words_are_text() -> None:
    found = case()
    summary = Summary(found.study, found.measurements, (), provenance().models.records)
    document = render_document(summary)
    assert document == render_document(summary)
    (sheet,) = pypdfium2.PdfDocument(document)
    words = sheet.get_textpage().get_text_range()
    assert "Research use only. Not for diagnostic use." in words
    assert f"probability {found.classification.probability:.3f}" in words
    page = render_summary(summary)
    drawn = np.asarray(sheet.render(scale=DPI / 72).to_pil().convert("RGB"))
    assert drawn.shape == page.shape
    assert np.corrcoef(drawn.ravel(), page.ravel())[0, 1] > 0.95
    for term in LESION_TERMS.values():  # outlines lie where they do on the page
        near = binary_dilation(np.abs(page.astype(int) - term.color).max(axis=-1) < 40, iterations=2)
        there = np.abs(drawn.astype(int) - term.color).max(axis=-1) < 40
        assert there.sum() > 200
        assert near[there].mean() > 0.95


def test_decision_and_probability_change_the_page() -> None:
    found = case()
    lower = replace(found, classification=replace(found.classification, probability=0.125))
    assert (_page(lower)[:120] != _page(found)[:120]).any()
    np.testing.assert_array_equal(_page(lower)[130:], _page(found)[130:])


def test_most_affected_plane_has_most_lesion_or_else_most_lung() -> None:
    found = case()
    lesions = np.zeros_like(found.lesions.labels)
    k, i, j = np.argwhere(found.lungs.mask)[100]
    lesions[k, i, j] = LesionType.GROUND_GLASS
    study = replace(found.study, lesions=Lesions(lesions, found.lesions.grid))
    assert (most_affected(study, "axial"), most_affected(study, "coronal")) == (k, i)
    areas = [plane.sum() for plane in found.lungs.mask]
    assert most_affected(no_lesions().study, "axial") == areas.index(max(areas))


def test_relevance_is_sampled_where_it_lies() -> None:
    """A field that is linear in the slices is interpolated exactly."""
    found = case()
    source, target = found.explanation.grid, found.volume.grid
    field = np.array([2.0, -3.0, 0.0])

    def value(affine: np.ndarray, index: tuple[int, ...]) -> float:
        return float(field @ (affine @ [*index, 1.0])[:3])

    relevance = np.array([value(source.affine, index) for index in np.ndindex(source.shape)], np.float32)
    relevance = relevance.reshape(source.shape)
    middle = tuple(size // 2 for size in target.shape)
    for plane, index, place in (
        ("axial", middle[0], (middle[1], middle[2])),
        ("coronal", middle[1], (middle[0], middle[2])),
    ):
        sampled = relevance_on_plane(relevance, source, target, plane, index)  # type: ignore[arg-type]
        assert sampled[place] == pytest.approx(value(target.affine, middle), rel=1e-4)


def test_relevance_of_a_plane_is_that_of_key_slices() -> None:
    """Neighbours of opposite sign do not cancel, and the outermost slices keep theirs."""
    target = axial_grid((12, 8, 8), (1.0, 1.0, 1.0))
    source = target.resampled((4, 8, 8))
    relevance = np.broadcast_to(np.float32([1, -1, 1, -1])[:, None, None], source.shape).copy()
    expected = np.repeat(np.float32([1, -1, 1, -1]), 3)
    coronal = relevance_on_plane(relevance, source, target, "coronal", 4)
    np.testing.assert_allclose(coronal, np.broadcast_to(expected[:, None], (12, 8)))
    for index in range(12):
        axial = relevance_on_plane(relevance, source, target, "axial", index)
        np.testing.assert_allclose(axial, relevance_on_slice(relevance, source, target, index))
    beyond = Grid((2, 8, 8), source.affine)
    np.testing.assert_array_equal(relevance_on_plane(relevance[:2], beyond, target, "coronal", 4)[6:], 0.0)


def test_another_arrangement_gives_the_same_page() -> None:
    """A CT whose columns run to the right and whose slices run to the feet shows the same axial and coronal planes."""
    found = case()
    grid = found.volume.grid
    affine = np.array(grid.affine)
    affine[:, 3] = affine @ [grid.shape[0] - 1, 0, grid.shape[2] - 1, 1]
    affine[:3, [0, 2]] *= -1
    other = Grid(grid.shape, affine)

    def turned(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values[::-1, :, ::-1])

    study = Study(
        CTVolume(turned(found.volume.hu), other, found.volume.headers[::-1]),
        Lungs(turned(found.lungs.labels), other),
        Lesions(turned(found.lesions.labels), other),
        found.classification,
        found.explanation,
    )
    again = render_summary(Summary(study, found.measurements, (), provenance().models.records))
    np.testing.assert_array_equal(again, _page(found))
