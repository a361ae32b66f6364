"""Pictures are read on any monitor, by anyone: sizes, contrast and colours of what is drawn."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from operators.codes import LEFT_LUNG_COLOR, LESION_TERMS, RIGHT_LUNG_COLOR
from operators.findings import Lesions, Lungs
from operators.page import DPI, RELEVANCE_COLORS, WIDTH, Page
from operators.rendering import Study, render_overlay
from operators.summary_page import Summary, render_summary
from operators.volume import CTVolume, Grid
from tests.operators.dicom_results import case, provenance

Color = npt.NDArray[np.float64]

# What dichromats see, on linear RGB, at full severity: Machado, Oliveira and Fernandes 2009,
# doi:10.1109/TVCG.2009.113.
DICHROMATS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: npt.ArrayLike) -> Color:
    """Linear RGB of sRGB from 0 to 1 (IEC 61966-2-1)."""
    values = np.asarray(color, dtype=np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Color) -> Color:
    """CIELAB of linear RGB."""
    white = _TO_XYZ @ np.ones(3)
    f = np.cbrt(np.maximum(_TO_XYZ @ rgb / white, 0.0))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: npt.ArrayLike, other: npt.ArrayLike, seen: Color) -> float:
    """Delta E 1976 of two sRGB colours as a person sees them."""
    first, second = (lab(np.clip(seen @ linear(color), 0, 1)) for color in (one, other))
    return float(np.linalg.norm(first - second))


def contrast(color: npt.ArrayLike) -> float:
    """Contrast to black (WCAG 2.2, 1.4.3)."""
    return float((np.array([0.2126, 0.7152, 0.0722]) @ linear(color) + 0.05) / 0.05)


@pytest.fixture(params=["key slice", "summary"])
def texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """All words on a page."""
    pages: list[Page] = []
    draw = Page.pixels
    monkeypatch.setattr(Page, "pixels", lambda page: pages.append(page) or draw(page))
    found = case()
    if request.param == "summary":
        render_summary(Summary(found.study, found.measurements, (), provenance().models.records))
    else:
        render_overlay(found.study, 5)
    return [text for text in pages[0].figure.findobj(Text) if text.get_text() and text.get_visible()]


def _place(text: Text) -> tuple[float, float]:
    x, y = text.get_position()
    return float(x), float(y)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[float, float]]]:
    """Of each panel that is drawn, the places of its words: to the right and up."""
    drawn: list[dict[str, tuple[float, float]]] = []
    draw = Page.plane

    def plane(page: Page, *what: Any) -> None:
        before = len(page.figure.texts)
        draw(page, *what)
        drawn.append({text.get_text(): _place(text) for text in page.figure.texts[before:]})

    monkeypatch.setattr(Page, "plane", plane)
    return drawn


def _letters(panel: dict[str, tuple[float, float]]) -> tuple[str, str]:
    """Letters of a panel: those beside it from left to right, those above and below it from the top."""
    letters = [word for word in panel if len(word) == 1]
    assert len(letters) == 4
    xs, ys = ({letter: panel[letter][axis] for letter in letters} for axis in (0, 1))
    by_x = sorted(letters, key=lambda letter: xs[letter])
    by_y = sorted(letters, key=lambda letter: -ys[letter])
    return by_x[0] + by_x[-1], by_y[0] + by_y[-1]


def _mirrored(study: Study) -> Study:
    """The same study whose columns run from the left of the patient to the right."""
    grid = study.volume.grid
    affine = np.array(grid.affine)
    affine[:, 3] = affine @ [0, 0, grid.shape[2] - 1, 1]
    affine[:3, 2] *= -1
    other = Grid(grid.shape, affine)
    return Study(
        CTVolume(np.ascontiguousarray(study.volume.hu[..., ::-1]), other, study.volume.headers),
        Lungs(np.ascontiguousarray(study.lungs.labels[..., ::-1]), other),
        Lesions(np.ascontiguousarray(study.lesions.labels[..., ::-1]), other),
        study.classification,
        study.explanation,
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_letters_of_a_key_slice_are_on_the_sides_that_they_name(
    panels: list[dict[str, tuple[float, float]]], mirrored: bool
) -> None:
    study = case().study
    render_overlay(_mirrored(study) if mirrored else study, 5)
    assert [_letters(panel) for panel in panels] == [("LR" if mirrored else "RL", "AP")] * 4


@pytest.mark.parametrize("mirrored", [False, True])
def test_letters_of_the_summary_are_on_the_sides_that_they_name(
    panels: list[dict[str, tuple[float, float]]], mirrored: bool
) -> None:
    """It shows any study as radiologists look at it: the patient's right is on the left, the head is up."""
    found = case()
    study = _mirrored(found.study) if mirrored else found.study
    render_summary(Summary(study, found.measurements, (), provenance().models.records))
    titles = [next(word for word in panel if len(word) > 1).partition("\n")[0] for panel in panels]
    named = {title: _letters(panel) for title, panel in zip(titles, panels, strict=True)}
    assert named == {
        "axial, lesions": ("RL", "AP"),
        "axial, relevance": ("RL", "AP"),
        "coronal, lesions": ("RL", "HF"),
        "coronal, relevance": ("RL", "HF"),
    }


def test_words_are_large_enough_on_a_screen_of_1024_pixels(texts: list[Text]) -> None:
    assert len(texts) > 20
    for text in texts:
        pixels = text.get_fontsize() * DPI / 72
        assert pixels * 1024 / WIDTH >= 10, text.get_text()


def test_words_are_within_the_page(texts: list[Text]) -> None:
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= WIDTH, text.get_text()


def test_words_stand_out_from_the_page(texts: list[Text]) -> None:
    """At least 4.5 to 1, but for the names of lesions that are not in the slice, which are grey on purpose."""
    absent = {term.label for term in LESION_TERMS.values()}
    for text in texts:
        needed = 3.0 if text.get_text() in absent or text.get_text() == "\u25cf" else 4.5
        assert contrast(to_rgb(text.get_color())) >= needed, text.get_text()


@pytest.mark.parametrize("who", DICHROMATS)
def test_colours_of_segments_can_be_told_apart_by_everyone(who: str) -> None:
    colors = {term.label: np.array(term.color) / 255 for term in LESION_TERMS.values()}
    colors |= {"left lung": np.array(LEFT_LUNG_COLOR) / 255, "right lung": np.array(RIGHT_LUNG_COLOR) / 255}
    for (one, first), (other, second) in combinations(colors.items(), 2):
        assert difference(first, second, DICHROMATS[who]) > 15, (one, other)


@pytest.mark.parametrize("who", DICHROMATS)
def test_relevance_for_and_against_can_be_told_apart_by_everyone(who: str) -> None:
    for size in (0.3, 0.6, 1.0):
        against, speaks_for = (RELEVANCE_COLORS((1 + sign * size) / 2)[:3] for sign in (-1, 1))
        assert difference(against, speaks_for, DICHROMATS[who]) > 15, size
