"""The first picture: the whole result on one page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import map_coordinates

from models.store import ModelRecord
from operators.codes import CLASS_NAMES, LESION_TERMS
from operators.measurements import Measurements
from operators.orientation import standard_lesions, standard_lungs, standard_volume
from operators.remarks import Remark
from operators.rendering import (
    DPI,
    LUNG_OUTLINE,
    NOTICE_COLOR,
    WIDTH,
    RGBImage,
    Study,
    direction_letter,
    hex_color,
    points,
    relevance_rgba,
    window,
)
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import FloatArray, Grid

MIN_HEIGHT = 900
"""The chart and the notes need so much."""
_GAP = 14
_HEADER = 120
_FOOTER = 48
_VIEWS_WIDTH = 900
_LINE = 24
_MOST_LINES = 6
_LINE_LETTERS = 48
Plane = Literal["axial", "coronal"]
Direction = npt.NDArray[np.float64]
PLANES: tuple[Plane, ...] = ("axial", "coronal")
_AXIS = {"axial": 0, "coronal": 1}


@dataclass(frozen=True, slots=True)
class Summary:
    """All that the page states.

    Parameters
    ----------
    study : Study
        CT, findings, classification and explanation.
    measurements : Measurements
        Volumes and percentages.
    remarks : sequence of Remark
        What was repaired in the input or makes the results less certain.
    models : sequence of ModelRecord
        The weights in use.
    """

    study: Study
    measurements: Measurements
    remarks: Sequence[Remark]
    models: Sequence[ModelRecord]


def most_affected(study: Study, plane: Plane) -> int:
    """Index along slices (axial) or rows (coronal) of the plane with most lesion, or without any, with most lung."""
    others = tuple({0, 1, 2} - {_AXIS[plane]})
    for mask in (study.lesions.mask, study.lungs.mask):
        area = np.count_nonzero(mask, axis=others)
        if area.any():
            return int(area.argmax())
    raise ValueError("a summary needs at least one lung")


def relevance_on_plane(relevance: FloatArray, source: Grid, target: Grid, plane: Plane, index: int) -> FloatArray:
    """Sample relevance linearly at the voxels of a plane of the CT; 0 beyond the ends of ``source``.

    Parameters
    ----------
    relevance : ndarray of float32, shape ``source.shape``
        Relevance of each pixel of the classifier's grid.
    source, target : Grid
        Geometry of ``relevance`` and of the CT.
    plane : str
        ``axial`` or ``coronal``; the slices of the CT are axial.
    index : int
        Slice or row of the CT.

    Returns
    -------
    ndarray of float32, shape (rows, columns) or (slices, columns)
    """
    ranges = [np.arange(size, dtype=np.float64) for size in target.shape]
    ranges[_AXIS[plane]] = np.array([float(index)])
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*ranges, indexing="ij")] + [np.ones(_points_of(ranges))])
    places = (np.linalg.inv(source.affine) @ target.affine @ grid)[:3]
    sampled = map_coordinates(relevance, places, order=1, mode="constant", cval=0.0)
    shape = [axis.size for k, axis in enumerate(ranges) if k != _AXIS[plane]]
    return np.asarray(sampled, dtype=np.float32).reshape(shape)


def _points_of(ranges: Sequence[np.ndarray[Any, Any]]) -> int:
    return int(np.prod([axis.size for axis in ranges]))


def _ratio(study: Study, plane: Plane) -> float:
    """Height of a view by its width: the rows, or the slices, around the lungs by the columns."""
    rows, columns = study.crop
    z, y, x = study.volume.grid.spacing
    height = (rows.stop - rows.start) * y if plane == "axial" else study.volume.grid.shape[0] * z
    return float(height / ((columns.stop - columns.start) * x))


class _Page:
    """The page in the making."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.study = summary.study
        self.wide = (_VIEWS_WIDTH - _GAP) // 2
        self.high = max(round(self.wide * _ratio(self.study, plane)) for plane in PLANES)
        self.height = max(_HEADER + 2 * (self.high + _GAP) + _FOOTER, MIN_HEIGHT)
        self.figure = Figure((WIDTH / DPI, self.height / DPI), dpi=DPI, facecolor="black")
        self.canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, size: float = 18, color: str = "white", **style: Any) -> None:
        """Write words at a point of the page, in pixels from the top left."""
        self.figure.text(x / WIDTH, 1 - y / self.height, words, fontsize=points(size), color=color, **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes in a box, in pixels from the top left."""
        return self.figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        )

    def header(self) -> None:
        """Write the result and what it means."""
        result = self.study.classification
        decision = "POSITIVE" if result.positive else "NEGATIVE"
        relation = "at or above" if result.positive else "below"
        self.text(_GAP, 44, f"COVID-19 {decision}", 36, fontweight="bold")
        self.text(
            _GAP,
            80,
            f"probability {result.probability:.3f}, {relation} the threshold {result.threshold:g}: the output of a"
            " research classifier, no clinical probability",
            18,
            "#d8d8d8",
        )
        total = self.summary.measurements.total
        percent = total.involvement.percent_of_lung
        involved = "" if percent is None else f"{percent:.1f} % of the lungs involved"
        self.text(WIDTH - _GAP, 44, involved, 30, ha="right", fontweight="bold")

    def views(self) -> None:
        """Draw the most affected axial and coronal plane, with lesions and with relevance."""
        explained = CLASS_NAMES[self.study.explanation.target]
        for column, plane in enumerate(PLANES):
            left = _GAP + column * (self.wide + _GAP)
            index = most_affected(self.study, plane)
            for row, title in enumerate((f"{plane}, lesions", f"{plane}, relevance: {explained}")):
                axes = self.axes(left, _HEADER + row * (self.high + _GAP), self.wide, self.high)
                self.view(axes, plane, index, title, relevance=bool(row))

    def view(self, axes: Axes, plane: Plane, index: int, title: str, *, relevance: bool) -> None:
        """Draw one plane of the CT in lung window."""
        take = [slice(None)] * 3
        take[_AXIS[plane]] = slice(index, index + 1)
        grid, kept = self.study.volume.grid, [k for k in range(3) if k != _AXIS[plane]]
        directions: Direction = grid.affine[:3, kept] / np.array(grid.spacing)[kept]
        flip = plane == "coronal"  # the head is up

        def cut(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            flat = values[tuple(take)].squeeze(_AXIS[plane])
            return flat[::-1] if flip else flat

        aspect = grid.spacing[kept[0]] / grid.spacing[kept[1]]
        axes.set_axis_off()
        axes.set_anchor("N")
        axes.imshow(window(cut(self.study.volume.hu)), cmap="gray", vmin=0, vmax=1, aspect=aspect)
        if relevance:
            explanation = self.study.explanation
            sampled = relevance_on_plane(explanation.ct, explanation.grid, grid, plane, index)
            axes.imshow(relevance_rgba(sampled[::-1] if flip else sampled, self.study.ct_limit), aspect=aspect)
        self._outline(axes, cut(self.study.lungs.mask), LUNG_OUTLINE, 1.2)
        if not relevance:
            for kind, term in LESION_TERMS.items():
                self._outline(axes, cut(self.study.lesions.labels == kind), hex_color(term.color), 1.6)
        rows, columns = np.nonzero(cut(np.broadcast_to(self._body(plane), grid.shape)))
        axes.set_xlim(columns.min() - 0.5, columns.max() + 0.5)
        axes.set_ylim(rows.max() + 0.5, rows.min() - 0.5)
        self._letters(axes, -directions[:, 0] if flip else directions[:, 0], directions[:, 1], title)

    def _body(self, plane: Plane) -> np.ndarray[Any, Any]:
        """Show rows and columns around the lungs, and in a coronal view all slices."""
        box = np.zeros(self.study.volume.grid.shape[1:], dtype=bool)
        box[self.study.crop] = True
        if plane == "coronal":
            return np.broadcast_to(box.any(axis=0), box.shape)[None]
        return box[None]

    def _outline(self, axes: Axes, mask: np.ndarray[Any, Any], color: Any, width: float) -> None:
        if mask.any() and not mask.all():
            axes.contour(mask.astype(np.float32), levels=[0.5], colors=[color], linewidths=points(width))

    def _letters(self, axes: Axes, down: Direction, right: Direction, title: str) -> None:
        style: dict[str, Any] = {
            "transform": axes.transAxes,
            "color": "white",
            "fontsize": points(18),
            "path_effects": [withStroke(linewidth=points(4), foreground="black")],
        }
        axes.text(0.012, 0.5, direction_letter(-right), va="center", fontweight="bold", **style)
        axes.text(0.988, 0.5, direction_letter(right), va="center", ha="right", fontweight="bold", **style)
        axes.text(0.988, 0.985, direction_letter(-down), va="top", ha="right", fontweight="bold", **style)
        axes.text(0.012, 0.985, title, va="top", **style)

    def chart(self) -> None:
        """Draw the lesions of both lungs and of each, by type, as parts of the lung."""
        left = _VIEWS_WIDTH + 3 * _GAP
        sides = {"both": self.summary.measurements.total, "right": self.summary.measurements.right}
        sides["left"] = self.summary.measurements.left
        self.text(left, _HEADER + 20, "Lesions, percent of the lung", 20, fontweight="bold")
        axes = self.axes(left + 60, _HEADER + 36, WIDTH - left - 60 - 5 * _GAP, 170)
        axes.set_facecolor("black")
        totals = []
        for row, lung in enumerate(sides.values()):
            start = 0.0
            for kind, term in LESION_TERMS.items():
                percent = lung.lesion(kind).percent_of_lung or 0.0
                axes.barh(row, percent, left=start, color=hex_color(term.color), height=0.62)
                start += percent
            totals.append(start)
            words = "no lung" if lung.volume_ml == 0 else f"{start:.1f} %"
            axes.text(start, row, f"  {words}", color="white", va="center", fontsize=points(17))
        axes.set_yticks(range(len(sides)), list(sides), color="white", fontsize=points(18))
        axes.set_xlim(0.0, max(*totals, 1.0) * 1.3)
        axes.invert_yaxis()
        axes.tick_params(colors="#b0b0b0", labelsize=points(14), length=0)
        axes.tick_params(axis="y", labelsize=points(18))
        for spine in axes.spines.values():
            spine.set_visible(False)
        y = _HEADER + 262.0
        for kind, term in LESION_TERMS.items():
            amount = self.summary.measurements.total.lesion(kind)
            self.text(left, y, "\u25cf", 22, hex_color(term.color))
            self.text(left + 24, y, term.label, 17)
            self.text(WIDTH - 2 * _GAP, y, f"{amount.volume_ml:.0f} ml", 17, ha="right")
            y += _LINE
        self.text(left, y, f"Lungs {self._liters()}", 17, "#d8d8d8")

    def _liters(self) -> str:
        found = self.summary.measurements
        total, right, left = (lung.volume_ml / 1000 for lung in (found.total, found.right, found.left))
        return f"{total:.1f} L: right {right:.1f} L, left {left:.1f} L"

    def notes(self) -> None:
        """Write repairs and doubts, and which models were used."""
        left, y = _VIEWS_WIDTH + 3 * _GAP, _HEADER + 440.0
        self.text(left, y, "Quality of the input", 20, fontweight="bold")
        lines = [line for remark in self.summary.remarks for line in textwrap.wrap(remark.message, _LINE_LETTERS)]
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 1], "... all remarks are in the report"]
        for line in lines or ["nothing to remark on"]:
            y += _LINE
            self.text(left, y, line, 16, NOTICE_COLOR if lines else "#d8d8d8")
        y += 2 * _LINE
        self.text(left, y, "Relevance", 20, fontweight="bold")
        y += _LINE
        self.text(left, y, "orange speaks for the class, blue against it", 16, "#d8d8d8")
        y += 2 * _LINE
        self.text(left, y, "Models, start of the weights' SHA-256", 20, fontweight="bold")
        for model in self.summary.models:
            y += _LINE
            self.text(left, y, f"{model.name} {model.version}, {model.sha256[:12]}", 16, "#d8d8d8")

    def footer(self) -> None:
        """Write the notice that no picture may lack."""
        self.text(_GAP, self.height - 16, RESEARCH_NOTICE, 22, NOTICE_COLOR, fontweight="bold")
        self.text(WIDTH - _GAP, self.height - 16, f"{NAME} {VERSION}", 15, "#b0b0b0", ha="right")

    def pixels(self) -> RGBImage:
        """Rasterise."""
        self.canvas.draw()  # type: ignore[no-untyped-call]
        return np.ascontiguousarray(np.asarray(self.canvas.buffer_rgba())[..., :3])  # type: ignore[no-untyped-call]


def _upright(study: Study) -> Study:
    """Arrange a study so that its slices are axial, from the feet to the head."""
    volume, lungs, lesions = standard_volume(study.volume), standard_lungs(study.lungs), standard_lesions(study.lesions)
    return Study(volume, lungs, lesions, study.classification, study.explanation)


def render_summary(summary: Summary) -> RGBImage:
    """Draw the page.

    Returns
    -------
    ndarray of uint8, shape (rows, 1400, 3)
        RGB; the height follows from the shape of the chest.
    """
    page = _Page(replace(summary, study=_upright(summary.study)))
    page.header()
    page.views()
    page.chart()
    page.notes()
    page.footer()
    return page.pixels()
