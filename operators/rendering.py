"""Pictures of a slice with its lesions and its relevance. Pure picture-making: no DICOM is written here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import affine_transform

from operators.codes import CLASS_NAMES, LESION_TERMS, RGB
from operators.findings import Classification, Explanation, Lesions, Lungs
from operators.orientation import explanation_like
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import BoolArray, CTVolume, FloatArray, Grid

RGBImage = npt.NDArray[np.uint8]

LUNG_WINDOW = (-600.0, 1500.0)
"""Center and width in HU."""

RELEVANCE_PERCENTILE = 99.5
_VISIBLE_FROM = 0.1
"""Relevance below this share of the limit is left transparent: it would only veil the CT."""

WIDTH = 1400
DPI = 100
_GAP = 12
_HEADER = 84
_STRIP = 46
_FOOTER = 44
_MARGIN_MM = 15.0
LUNG_OUTLINE = (0.75, 0.75, 0.75, 0.55)
NOTICE_COLOR = "#f0c000"

# Blue against, red for: both ends differ in hue and stay apart for colour-blind people (after ColorBrewer RdBu).
RELEVANCE_COLORS = LinearSegmentedColormap.from_list(
    "relevance", ["#5ad1ff", "#2b8ce6", "#1d4f9e", "#b03a2e", "#f4742f", "#ffd27a"]
)

_AXIS_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))


def window(hu: FloatArray) -> FloatArray:
    """Map Hounsfield units to grey values from 0 to 1 by the lung window."""
    center, width = LUNG_WINDOW
    return np.asarray(np.clip((hu - (center - width / 2)) / width, 0.0, 1.0), dtype=np.float32)


def direction_letter(direction: npt.NDArray[np.float64]) -> str:
    """Letter of the patient's side towards which ``direction`` (LPS) mostly points (PS3.3 C.7.6.1.1.1)."""
    axis = int(np.argmax(np.abs(direction)))
    return _AXIS_LETTERS[axis][int(direction[axis] < 0)]


def relevance_limit(relevance: FloatArray) -> float:
    """Limit of the colour scale: a high percentile of the absolute relevance where there is any, else 0."""
    magnitude = np.abs(relevance[relevance != 0])
    return float(np.percentile(magnitude, RELEVANCE_PERCENTILE)) if magnitude.size else 0.0


def relevance_on_slice(relevance: FloatArray, source: Grid, target: Grid, index: int) -> FloatArray:
    """Sample relevance at the pixels of one slice: nearest along the slices, linear in the plane.

    Parameters
    ----------
    relevance : ndarray of float32, shape ``source.shape``
        Relevance of each pixel of the classifier's grid.
    source : Grid
        Geometry of ``relevance``.
    target : Grid
        Geometry of the CT.
    index : int
        Slice of ``target``.

    Returns
    -------
    ndarray of float32, shape ``target.shape[1:]``
        0 where the slice lies beyond the slices of ``source``.
    """
    shape = target.shape[1:]
    to_source = np.linalg.inv(source.affine) @ target.affine
    center = np.array([index, (shape[0] - 1) / 2, (shape[1] - 1) / 2, 1.0])
    nearest = int(np.floor(to_source[0] @ center + 0.5))
    if not 0 <= nearest < source.shape[0]:
        return np.zeros(shape, dtype=np.float32)
    in_plane, offset = to_source[1:3, 1:3], to_source[1:3, [0, 3]] @ [index, 1.0]
    sampled = affine_transform(relevance[nearest], in_plane, offset, output_shape=shape, order=1, mode="nearest")
    return np.asarray(sampled, dtype=np.float32)


def relevance_rgba(relevance: FloatArray, limit: float) -> FloatArray:
    """Colour relevance by sign and size: shape (..., 4), transparent near 0, opaque towards the limit."""
    scaled = np.clip(relevance / limit, -1.0, 1.0) if limit > 0 else np.zeros_like(relevance)
    rgba = np.asarray(RELEVANCE_COLORS((scaled + 1.0) / 2.0), dtype=np.float32)
    size = np.abs(scaled)
    rgba[..., 3] = np.where(size < _VISIBLE_FROM, 0.0, 0.25 + 0.65 * np.sqrt(size))
    return rgba


def _around(occupied: BoolArray, spacing: float) -> slice:
    """Range of what is occupied, with a margin."""
    inside = np.flatnonzero(occupied)
    margin = round(_MARGIN_MM / spacing)
    return slice(max(0, int(inside[0]) - margin), min(occupied.size, int(inside[-1]) + 1 + margin))


@dataclass(frozen=True)
class Study:
    """All that the pictures of one study share.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs, lesions
        Findings on the grid of the CT.
    classification : Classification
        Probability, threshold and decision are written on every picture.
    explanation : Explanation
        Heatmaps at the classifier's resolution; kept arranged as the CT is.

    Raises
    ------
    ValueError
        If a finding is not on the grid of the CT, or there is no lung.
    """

    volume: CTVolume
    lungs: Lungs
    lesions: Lesions
    classification: Classification
    explanation: Explanation

    def __post_init__(self) -> None:
        if not (self.lungs.grid.matches(self.volume.grid) and self.lesions.grid.matches(self.volume.grid)):
            raise ValueError("findings must be on the grid of the CT")
        if not self.lungs.mask.any():
            raise ValueError("pictures need at least one lung")
        object.__setattr__(self, "explanation", explanation_like(self.explanation, self.volume.grid))

    @cached_property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns around the lungs, the same in all pictures."""
        _, dy, dx = self.volume.grid.spacing
        mask = self.lungs.mask
        return _around(np.any(mask, axis=(0, 2)), dy), _around(np.any(mask, axis=(0, 1)), dx)

    @cached_property
    def ct_limit(self) -> float:
        """Colour limit of the CT channel, the same in all pictures."""
        return relevance_limit(self.explanation.ct)

    @cached_property
    def lesions_limit(self) -> float:
        """Colour limit of the lesion-mask channel, the same in all pictures."""
        return relevance_limit(self.explanation.lesions)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie on the page, in pixels from the top left."""

    panel: tuple[int, int]

    @classmethod
    def of(cls, study: Study) -> _Layout:
        rows, columns = study.crop
        _, dy, dx = study.volume.grid.spacing
        height, width = (rows.stop - rows.start) * dy, (columns.stop - columns.start) * dx
        wide = (WIDTH - 3 * _GAP) // 2
        return cls((min(round(wide * height / width), wide), wide))

    @property
    def height(self) -> int:
        return _HEADER + 2 * (self.panel[0] + _STRIP) + _FOOTER

    def panel_box(self, row: int, column: int) -> tuple[float, float, float, float]:
        top = _HEADER + row * (self.panel[0] + _STRIP)
        return self._box(_GAP + column * (self.panel[1] + _GAP), top, self.panel[1], self.panel[0])

    def bar_box(self, column: int) -> tuple[float, float, float, float]:
        top = _HEADER + 2 * self.panel[0] + _STRIP + 8
        return self._box(_GAP + column * (self.panel[1] + _GAP) + 150, top, self.panel[1] - 300, 12)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Left, bottom, width, height in parts of the page, as matplotlib takes them."""
        return left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point to parts of the page."""
        return x / WIDTH, 1 - y / self.height


def hex_color(color: RGB) -> str:
    """Colour as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def points(pixels: float) -> float:
    """Length in typographic points."""
    return pixels * 72 / DPI


class _Page:
    """One picture in the making."""

    def __init__(self, study: Study, index: int) -> None:
        self.study = study
        self.index = index
        self.layout = _Layout.of(study)
        self.figure = Figure((WIDTH / DPI, self.layout.height / DPI), dpi=DPI, facecolor="black")
        self.canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, size: float = 16, color: str = "white", **style: Any) -> None:
        """Write words at a point of the page; ``size`` in pixels."""
        self.figure.text(*self.layout.at(x, y), words, fontsize=points(size), color=color, **style)

    def panel(self, row: int, column: int, title: str) -> Axes:
        """Draw the CT in lung window with its title and the patient's sides."""
        axes = self.figure.add_axes(self.layout.panel_box(row, column))
        axes.set_axis_off()
        image = window(self.study.volume.hu[self.index][self.study.crop])
        _, dy, dx = self.study.volume.grid.spacing
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bicubic", aspect=dy / dx)
        axes.set_anchor("C")
        directions = self.study.volume.grid.affine[:3, 1:3].T
        down, right = (direction_letter(direction) for direction in directions)
        up, left = (direction_letter(-direction) for direction in directions)
        style: dict[str, Any] = {
            "transform": axes.transAxes,
            "color": "white",
            "fontsize": points(18),
            "fontweight": "bold",
            "path_effects": [withStroke(linewidth=points(4), foreground="black")],
        }
        axes.text(0.012, 0.5, left, va="center", ha="left", **style)
        axes.text(0.988, 0.5, right, va="center", ha="right", **style)
        axes.text(0.5, 0.985, up, va="top", ha="center", **style)
        axes.text(0.5, 0.015, down, va="bottom", ha="center", **style)
        axes.text(0.012, 0.975, title, va="top", ha="left", **{**style, "fontsize": points(17)})
        return axes

    def outline(self, axes: Axes, mask: BoolArray, color: Any, width: float) -> None:
        """Draw the border of a mask."""
        cropped = mask[self.study.crop]
        if cropped.any() and not cropped.all():
            axes.contour(cropped.astype(np.float32), levels=[0.5], colors=[color], linewidths=points(width))

    def lesions(self, axes: Axes) -> None:
        """Outline the lungs, faintly, and each type of lesion; name their colours below the panel."""
        self.outline(axes, self.study.lungs.labels[self.index] > 0, LUNG_OUTLINE, 1.0)
        labels = self.study.lesions.labels[self.index]
        x = 2.0 * _GAP + self.layout.panel[1]
        y = _HEADER + self.layout.panel[0] + 28
        for kind, term in LESION_TERMS.items():
            here = labels == kind
            self.outline(axes, here, hex_color(term.color), 1.8)
            color = "white" if here.any() else "#8a8a8a"
            self.text(x, y, "\u25cf", 20, hex_color(term.color))
            self.text(x + 20, y, term.label, 14, color)
            x += 32 + 7.9 * len(term.label)
        self.text(x, y, "\u2014 lungs", 14, "#b0b0b0")

    def relevance(self, column: int, title: str, relevance: FloatArray, limit: float) -> None:
        """Draw the relevance of one channel over the CT, and its colour bar."""
        axes = self.panel(1, column, title)
        sampled = relevance_on_slice(relevance, self.study.explanation.grid, self.study.volume.grid, self.index)
        _, dy, dx = self.study.volume.grid.spacing
        colored = relevance_rgba(sampled[self.study.crop], limit)
        axes.imshow(colored, interpolation="bilinear", aspect=dy / dx)
        self.outline(axes, self.study.lungs.labels[self.index] > 0, LUNG_OUTLINE, 1.0)
        self.color_bar(column, limit)

    def color_bar(self, column: int, limit: float) -> None:
        """Draw the colour bar: what speaks against and for the class explained."""
        left = _GAP + column * (self.layout.panel[1] + _GAP)
        y = _HEADER + 2 * self.layout.panel[0] + _STRIP + 20
        if limit == 0:
            self.text(left, y, "no relevance in this channel", 15, "#c0c0c0")
            return
        bar = self.figure.add_axes(self.layout.bar_box(column))
        bar.set_axis_off()
        ramp = np.linspace(-1.0, 1.0, 256, dtype=np.float32)[None]
        bar.imshow(np.full((1, 256, 3), 0.25), aspect="auto")
        bar.imshow(relevance_rgba(ramp, 1.0), aspect="auto", interpolation="nearest")
        right = left + self.layout.panel[1]
        self.text(left + 142, y, "speaks against", 15, ha="right")
        self.text(right - 142, y, "speaks for", 15, ha="left")
        for x, words in ((left + 150, f"{-limit:.1e}"), (right - 150, f"{limit:.1e}")):
            self.text(x, y + 20, words, 14, "#c0c0c0", ha="center")
        self.text((left + right) / 2, y + 20, CLASS_NAMES[self.study.explanation.target], 14, "#c0c0c0", ha="center")

    def header(self) -> None:
        """Write the result, and which slice this is."""
        result = self.study.classification
        decision = "POSITIVE" if result.positive else "NEGATIVE"
        relation = "at or above" if result.positive else "below"
        self.text(_GAP, 34, f"COVID-19 {decision}", 26, fontweight="bold")
        self.text(
            _GAP,
            66,
            f"probability {result.probability:.3f}, {relation} the threshold {result.threshold:g}",
            17,
            "#d8d8d8",
        )
        grid = self.study.volume.grid
        header = self.study.volume.header_at(self.index)
        number = header.get("InstanceNumber") if header else None
        place = f"slice {self.index + 1} of {grid.shape[0]}" if number is None else f"image {number}"
        z = float((grid.affine @ [self.index, 0, 0, 1])[2])
        self.text(WIDTH - _GAP, 34, f"{place}, z = {z:.1f} mm", 20, ha="right")
        explained = CLASS_NAMES[self.study.explanation.target]
        self.text(WIDTH - _GAP, 66, f"Relevance for the class: {explained}", 17, "#d8d8d8", ha="right")

    def footer(self) -> None:
        """Write the notice that no picture may lack."""
        y = self.layout.height - 14
        self.text(_GAP, y, RESEARCH_NOTICE, 20, NOTICE_COLOR, fontweight="bold")
        self.text(WIDTH - _GAP, y, f"{NAME} {VERSION}", 15, "#b0b0b0", ha="right")

    def pixels(self) -> RGBImage:
        """Rasterise."""
        self.canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(self.canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return np.ascontiguousarray(pixels[..., :3])


def render_overlay(study: Study, index: int) -> RGBImage:
    """Draw one slice: CT, lesions, relevance of the CT and relevance of the lesion mask.

    Parameters
    ----------
    study : Study
        What to draw.
    index : int
        Slice of the CT.

    Returns
    -------
    ndarray of uint8, shape (rows, 1400, 3)
        RGB; the height follows from the shape of the chest.
    """
    page = _Page(study, index)
    page.header()
    page.panel(0, 0, "CT, lung window")
    page.text(_GAP, _HEADER + page.layout.panel[0] + 28, "window center {:g}, width {:g} HU".format(*LUNG_WINDOW), 14)
    present = bool(np.any(study.lesions.labels[index]))
    page.lesions(page.panel(0, 1, "Lesions" if present else "Lesions: none in this slice"))
    explanation = study.explanation
    page.relevance(0, "Relevance of the CT", explanation.ct, study.ct_limit)
    page.relevance(1, "Relevance of the lesion mask", explanation.lesions, study.lesions_limit)
    page.footer()
    return page.pixels()
