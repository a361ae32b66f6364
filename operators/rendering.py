"""Pictures of a slice with its lesions and its relevance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import affine_transform

from operators.codes import CLASS_NAMES, LESION_TERMS
from operators.findings import Classification, Explanation, Lesions, Lungs
from operators.orientation import explanation_like
from operators.page import LUNG_OUTLINE, LUNG_WINDOW, QUIET, WIDTH, Box, Page, Plane, RGBImage, hex_color
from operators.remarks import RemarkCode
from operators.volume import BoolArray, CTVolume, FloatArray, Grid

RELEVANCE_SHARE, RELEVANCE_PERCENTILE = 0.9, 95.0
"""The colours end at this percentile of the pixels that count: the strongest ones, which hold this share of all
relevance. Next to nothing lies on most pixels, black ones outside the lungs among them."""
FEWEST = 200
"""Pixels that count at least, so that a few extreme ones do not make all others vanish."""

_GAP = 12
_HEADER = 84
_STRIP = 46
_FOOTER = 44
_MARGIN_MM = 15.0
_WIDE = (WIDTH - 3 * _GAP) // 2


def relevance_limit(relevance: FloatArray) -> float:
    """Limit of the colour scale: a high percentile of what the pixels that count have; 0 without any."""
    magnitude = np.sort(np.abs(relevance), axis=None)[::-1]
    reached = np.cumsum(magnitude, dtype=np.float64)
    counting = magnitude[: max(int(np.searchsorted(reached, RELEVANCE_SHARE * reached[-1])) + 1, FEWEST)]
    return float(np.percentile(counting[counting > 0], RELEVANCE_PERCENTILE)) if counting.any() else 0.0


def stated(result: Classification) -> str:
    """Write the probability with three digits, or as many as tell on which side of the threshold it lies."""
    written = (f"{result.probability:.{digits}f}" for digits in range(3, 17))
    fitting = (each for each in written if (float(each) >= result.threshold) == result.positive)
    return next(fitting, repr(result.probability))


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
        if not self.lungs.labels.any():
            raise ValueError("pictures need at least one lung")
        object.__setattr__(self, "explanation", explanation_like(self.explanation, self.volume.grid))

    @cached_property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns around the lungs, the same in all pictures."""
        _, dy, dx = self.volume.grid.spacing
        shadow = np.any(self.lungs.labels, axis=0)
        return _around(np.any(shadow, axis=1), dy), _around(np.any(shadow, axis=0), dx)

    @cached_property
    def ct_limit(self) -> float:
        """Colour limit of the CT channel, the same in all pictures."""
        return relevance_limit(self.explanation.ct)

    @cached_property
    def lesions_limit(self) -> float:
        """Colour limit of the lesion-mask channel, the same in all pictures."""
        return relevance_limit(self.explanation.lesions)

    def slice_plane(self, index: int) -> Plane:
        """One slice, around the lungs."""
        place = (index, *self.crop)
        _, dy, dx = self.volume.grid.spacing
        down, right = self.volume.grid.affine[:3, 1:3].T
        lungs, lesions = self.lungs.labels[place] > 0, self.lesions.labels[place]
        return Plane(self.volume.hu[place], lungs, lesions, (dy, dx), down, right)


class _KeySlicePage(Page):
    """Four panels: CT, lesions, and the relevance of both channels."""

    def __init__(self, study: Study, index: int) -> None:
        self.study = study
        self.index = index
        self.shown = study.slice_plane(index)
        self.panel_height = min(round(_WIDE * self.shown.ratio), _WIDE)
        super().__init__(_HEADER + 2 * (self.panel_height + _STRIP) + _FOOTER)

    def panel(self, row: int, column: int, title: str) -> Box:
        """Draw the CT and return where it lies."""
        top = _HEADER + row * (self.panel_height + _STRIP)
        box = Box(self._left(column), top, _WIDE, self.panel_height).fitted(self.shown.ratio)
        self.plane(box, self.shown, title)
        return box

    def _left(self, column: int) -> int:
        return _GAP + column * (_WIDE + _GAP)

    def lesions(self) -> None:
        """Outline the lungs, faintly, and each type of lesion; name their colours below the panel."""
        present = bool(np.any(self.shown.lesions))
        box = self.panel(0, 1, "Lesions" if present else "Lesions: none in this slice")
        self.outline(box, self.shown.lungs, LUNG_OUTLINE, 1.0)
        x, y = self._left(1) + _GAP, _HEADER + self.panel_height + 28
        for kind, term in LESION_TERMS.items():
            here = self.shown.lesions == kind
            self.outline(box, here, hex_color(term.color), 1.8)
            self.text(x, y, "\u25cf", 20, hex_color(term.color))
            self.text(x + 20, y, term.label, 14, "white" if here.any() else "#8a8a8a")
            x += 32 + round(7.9 * len(term.label))
        self.text(x, y, "\u2014 lungs", 14, "#b0b0b0")

    def relevance_panel(self, column: int, title: str, relevance: FloatArray, limit: float) -> None:
        """Draw the relevance of one channel over the CT, and its colour bar."""
        reliable = self.study.explanation.reliable(relevance)
        box = self.panel(1, column, title if reliable else f"{title}\nunreliable, see the report")
        grid = self.study.explanation.grid
        sampled = relevance_on_slice(relevance, grid, self.study.volume.grid, self.index)
        self.relevance(box, sampled[self.study.crop], limit)
        self.outline(box, self.shown.lungs, LUNG_OUTLINE, 1.0)
        self.color_bar(column, limit)

    def color_bar(self, column: int, limit: float) -> None:
        """Draw the colour bar: what speaks against and for the class explained."""
        left, right = self._left(column), self._left(column) + _WIDE
        y = _HEADER + 2 * self.panel_height + _STRIP + 20
        if limit == 0:
            self.text(left, y, "no relevance in this channel", 15, "#c0c0c0")
            return
        self.color_ramp(Box(left + 150, y - 12, _WIDE - 300, 12))
        self.text(left + 142, y, "speaks against", 15, ha="right")
        self.text(right - 142, y, "speaks for", 15, ha="left")
        for x, words in ((left + 150, f"\u2264 {-limit:.1e}"), (right - 150, f"\u2265 {limit:.1e}")):
            self.text(x, y + 20, words, 14, "#c0c0c0", ha="center")
        words = f"{CLASS_NAMES[self.study.explanation.target]}, in logits"
        self.text((left + right) / 2, y + 20, words, 14, "#c0c0c0", ha="center")

    def place(self) -> str:
        """Say which slice this is: its number in the series, and where its first pixel lies along the slices."""
        volume = self.study.volume
        position = volume.grid.affine @ [self.index, 0, 0, 1]
        along = int(np.argmax(np.abs(volume.grid.affine[:3, 0])))
        where = f"{'xyz'[along]} = {position[along]:.1f} mm"
        name = self._source() or f"slice {self.index + 1} of {volume.grid.shape[0]}"
        return f"{name}, {where}"

    def _source(self) -> str | None:
        """Name the image that is shown, and say where it is none but was blended of the nearest."""
        volume = self.study.volume
        if self.index not in volume.places:
            return None
        source = volume.places.index(self.index)
        frame, header = volume.frames[source], volume.headers[source]
        number = f"image {header.InstanceNumber}" if header.get("InstanceNumber") is not None else None
        if frame:
            several = len({each.SOPInstanceUID for each in volume.headers}) > 1
            number = ", ".join(part for part in (number if several else None, f"frame {frame}") if part)
        blended = any(remark.code is RemarkCode.GAPS_RESAMPLED for remark in volume.remarks)
        return f"near {number}, interpolated" if number and blended else number

    def header(self) -> None:
        """Write the result, and which slice this is."""
        result = self.study.classification
        decision = "POSITIVE" if result.positive else "NEGATIVE"
        relation = "at or above" if result.positive else "below"
        meaning = f"probability {stated(result)}, {relation} the threshold {result.threshold:g}"
        explained = CLASS_NAMES[self.study.explanation.target]
        self.centered(34, f"COVID-19 {decision}: {meaning}", 22, fontweight="bold")
        self.centered(66, f"{self.place()}; relevance for the class {explained}", 17, QUIET)


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
    page = _KeySlicePage(study, index)
    page.header()
    page.panel(0, 0, "CT, lung window")
    y = _HEADER + page.panel_height + 28
    page.text(_GAP, y, "window center {:g}, width {:g} HU".format(*LUNG_WINDOW), 14)
    page.lesions()
    explanation = study.explanation
    page.relevance_panel(0, "Relevance of the CT", explanation.ct, study.ct_limit)
    page.relevance_panel(1, "Relevance of the lesion mask", explanation.lesions, study.lesions_limit)
    page.footer()
    return page.pixels()
