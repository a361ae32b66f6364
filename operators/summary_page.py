"""The first picture: the whole result on one page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from monai.deploy.core import InputContext
from scipy.ndimage import map_coordinates

from models.record import ModelRecord
from operators.codes import CLASS_NAMES, LESION_TERMS
from operators.measurements import Measurements
from operators.orientation import standard_lesions, standard_lungs, standard_volume
from operators.page import (
    LUNG_OUTLINE,
    NOTICE_COLOR,
    QUIET,
    WIDTH,
    Box,
    Page,
    Plane,
    RGBImage,
    hex_color,
    points,
)
from operators.remarks import Remark, RemarkCode
from operators.rendering import Study, stated
from operators.volume import FloatArray, Grid, plane_areas

_GAP = 14
_HEADER = 120
_FOOTER = 48
_VIEWS_WIDTH = 900
_LINE = 24
_MOST_LINES = 6
_LINE_LETTERS = 48
_NOTES = _HEADER + 440
_DOUBTS = (RemarkCode.EXPLANATION_UNRELIABLE, RemarkCode.INVOLVEMENT_DISAGREES)
"""Remarks on what the page shows, before those on the input: where there are too many, the last are left out."""
_NOTE_LINES = _MOST_LINES + 5
"""From the first of the notes to the line before the first model, with as many remarks as there can be."""
View = Literal["axial", "coronal"]
VIEWS: tuple[View, ...] = ("axial", "coronal")
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


_STUDY = ("volume", "lungs", "lesions", "classification", "explanation")
"""What makes a :class:`~operators.rendering.Study`, in its order."""
SUMMARY_INPUTS = (*_STUDY, "measurements", "remarks")
"""Ports by which an operator receives a summary."""


def receive_summary(op_input: InputContext, models: Sequence[ModelRecord]) -> Summary:
    """Put together a summary of what an operator receives at :data:`SUMMARY_INPUTS`."""
    study = Study(*(op_input.receive(name) for name in _STUDY))
    return Summary(study, op_input.receive("measurements"), op_input.receive("remarks"), models)


def most_affected(study: Study, plane: View) -> int:
    """Index along slices (axial) or rows (coronal) of the plane with most lesion, or without any, with most lung."""
    for labels in (study.lesions.labels, study.lungs.labels):
        area = plane_areas(labels, _AXIS[plane])
        if area.any():
            return int(area.argmax())
    raise ValueError("a summary needs at least one lung")


def relevance_on_plane(relevance: FloatArray, source: Grid, target: Grid, plane: View, index: int) -> FloatArray:
    """Sample relevance at the voxels of a plane of the CT: nearest along the slices, linear in them, as in key slices.

    0 beyond the slices of ``source``.

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
    shape = [axis.size for axis in ranges]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*ranges, indexing="ij")] + [np.ones(math.prod(shape))])
    places = (np.linalg.inv(source.affine) @ target.affine @ grid)[:3]
    places[0] = np.floor(places[0] + 0.5)
    beyond = (places[0] < 0) | (places[0] >= source.shape[0])
    sampled = np.where(beyond, 0.0, map_coordinates(relevance, places, order=1, mode="nearest"))
    return np.asarray(sampled, dtype=np.float32).reshape([size for k, size in enumerate(shape) if k != _AXIS[plane]])


def plane_of(study: Study, plane: View, index: int) -> Plane:
    """Cut an axial or a coronal plane out of an upright study, around the lungs; the head is up in a coronal one."""
    rows, columns = study.crop
    place = (index, rows, columns) if plane == "axial" else (slice(None, None, -1), index, columns)
    grid = study.volume.grid
    z, y, x = grid.spacing
    down = grid.affine[:3, 1] if plane == "axial" else -grid.affine[:3, 0]
    return Plane(
        hu=study.volume.hu[place],
        lungs=study.lungs.labels[place] > 0,
        lesions=study.lesions.labels[place],
        spacing=(y if plane == "axial" else z, x),
        down=down,
        right=grid.affine[:3, 2],
    )


class _SummaryPage(Page):
    """The page in the making."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.study = summary.study
        self.indices = {view: most_affected(self.study, view) for view in VIEWS}
        self.planes = {view: plane_of(self.study, view, index) for view, index in self.indices.items()}
        self.wide = (_VIEWS_WIDTH - _GAP) // 2
        self.high = max(round(self.wide * plane.ratio) for plane in self.planes.values())
        notes_end = _NOTES + (_NOTE_LINES + len(summary.models)) * _LINE + _GAP
        super().__init__(max(_HEADER + 2 * (self.high + _GAP), notes_end) + _FOOTER)

    def header(self) -> None:
        """Write the result and what it means."""
        result = self.study.classification
        decision = "POSITIVE" if result.positive else "NEGATIVE"
        relation = "at or above" if result.positive else "below"
        percent = self.summary.measurements.total.involvement.percent_of_lung
        involved = "" if percent is None else f", {percent:.1f} % of the lungs involved"
        self.centered(44, f"COVID-19 {decision}{involved}", 32, fontweight="bold")
        self.centered(76, f"probability {stated(result)}, {relation} the threshold {result.threshold:g}", 18, QUIET)
        self.centered(102, "the output of a research classifier, no clinical probability", 18, QUIET)

    def views(self) -> None:
        """Draw the most affected axial and coronal plane, with lesions and, below, with relevance."""
        reliable = self.study.explanation.reliable(self.study.explanation.ct)
        for column, (view, plane) in enumerate(self.planes.items()):
            left = _GAP + column * (self.wide + _GAP)
            above, below = (
                Box(left, _HEADER + row * (self.high + _GAP), self.wide, self.high).fitted(plane.ratio, top=True)
                for row in range(2)
            )
            self.plane(above, plane, f"{view}, lesions")
            self.outline(above, plane.lungs, LUNG_OUTLINE, 1.2)
            for kind, term in LESION_TERMS.items():
                self.outline(above, plane.lesions == kind, hex_color(term.color), 1.6)
            title = f"{view}, relevance\nof the CT"  # short lines: the letters are beside the first
            self.plane(below, plane, title if reliable else f"{title}: unreliable, see the remarks")
            self.relevance(below, self._relevance(view), self.study.ct_limit)
            self.outline(below, plane.lungs, LUNG_OUTLINE, 1.2)

    def _relevance(self, view: View) -> FloatArray:
        """Relevance of the CT at the pixels of the plane that is shown."""
        explanation, grid = self.study.explanation, self.study.volume.grid
        sampled = relevance_on_plane(explanation.ct, explanation.grid, grid, view, self.indices[view])
        rows, columns = self.study.crop
        return sampled[rows, columns] if view == "axial" else sampled[::-1, columns]

    def _axes(self, box: Box) -> Axes:
        left, bottom = box.left / WIDTH, 1 - (box.top + box.height) / self.height
        return self.figure.add_axes((left, bottom, box.width / WIDTH, box.height / self.height))

    def chart(self) -> None:
        """Draw the lesions of both lungs and of each, by type, as parts of the lung."""
        left = _VIEWS_WIDTH + 3 * _GAP
        sides = {"both": self.summary.measurements.total, "right": self.summary.measurements.right}
        sides["left"] = self.summary.measurements.left
        self.text(left, _HEADER + 20, "Lesions (3D model), % of the lung", 20, fontweight="bold")
        axes = self._axes(Box(left + 60, _HEADER + 36, WIDTH - left - 60 - 5 * _GAP, 170))
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
            self.text(WIDTH - 2 * _GAP, y, _millilitres(amount.volume_ml), 17, ha="right")
            y += _LINE
        involved = self.summary.measurements.total.involvement
        self.text(left, y, "Involved (2D model), any type", 17)
        self.text(WIDTH - 2 * _GAP, y, _millilitres(involved.volume_ml), 17, ha="right")
        self.text(left, y + _LINE, f"Lungs {self._liters()}", 17, QUIET)

    def _liters(self) -> str:
        found = self.summary.measurements
        total, right, left = (lung.volume_ml / 1000 for lung in (found.total, found.right, found.left))
        return f"{total:.1f} L: right {right:.1f} L, left {left:.1f} L"

    def notes(self) -> None:
        """Write repairs and doubts, and which models were used."""
        left, y = _VIEWS_WIDTH + 3 * _GAP, float(_NOTES)
        self.text(left, y, "Remarks", 20, fontweight="bold")
        remarks = sorted(self.summary.remarks, key=lambda remark: remark.code not in _DOUBTS)
        lines = [line for remark in remarks for line in textwrap.wrap(remark.message, _LINE_LETTERS)]
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 1], "... all remarks are in the report"]
        for line in lines or ["nothing to remark on"]:
            y += _LINE
            self.text(left, y, line, 16, NOTICE_COLOR if lines else QUIET)
        y += 2 * _LINE
        self.text(left, y, "Relevance", 20, fontweight="bold")
        y += _LINE
        explained = CLASS_NAMES[self.study.explanation.target]
        self.text(left, y, f"orange speaks for {explained}, blue against it", 16, QUIET)
        y += 2 * _LINE
        self.text(left, y, "Models, start of the weights' SHA-256", 20, fontweight="bold")
        for model in self.summary.models:
            y += _LINE
            self.text(left, y, f"{model.name} {model.version}, {model.sha256[:12]}", 16, QUIET)


def _millilitres(volume: float) -> str:
    return f"{volume:.1f} ml" if volume < 10 else f"{volume:.0f} ml"


def _upright(study: Study) -> Study:
    """Arrange a study so that its slices are axial, from the feet to the head."""
    volume, lungs, lesions = standard_volume(study.volume), standard_lungs(study.lungs), standard_lesions(study.lesions)
    return Study(volume, lungs, lesions, study.classification, study.explanation)


def _drawn(summary: Summary) -> _SummaryPage:
    page = _SummaryPage(replace(summary, study=_upright(summary.study)))
    page.header()
    page.views()
    page.chart()
    page.notes()
    page.footer()
    return page


def render_summary(summary: Summary) -> RGBImage:
    """Draw the page.

    Returns
    -------
    ndarray of uint8, shape (rows, 1400, 3)
        RGB; the height follows from the shape of the chest.
    """
    return _drawn(summary).pixels()


def render_document(summary: Summary) -> bytes:
    """Draw the page as a PDF document of one page."""
    return _drawn(summary).pdf()
