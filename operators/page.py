"""A page that a person reads: planes of the CT with outlines and relevance, and words. No DICOM is written here."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from operators.codes import RGB
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import BoolArray, FloatArray, HuArray, LabelArray

RGBImage = npt.NDArray[np.uint8]
Direction = npt.NDArray[np.float64]

LUNG_WINDOW = (-600.0, 1500.0)
"""Center and width in HU."""
WIDTH = 1400
DPI = 100
LUNG_OUTLINE = (0.75, 0.75, 0.75, 0.55)
NOTICE_COLOR = "#f0c000"
QUIET = "#d8d8d8"
_VISIBLE_FROM = 0.1
"""Relevance below this share of the limit is left transparent: it would only veil the CT."""

# Blue against, red for: both ends differ in hue and stay apart for colour-blind people (after ColorBrewer RdBu).
RELEVANCE_COLORS = LinearSegmentedColormap.from_list(
    "relevance", ["#5ad1ff", "#2b8ce6", "#1d4f9e", "#b03a2e", "#f4742f", "#ffd27a"]
)

_AXIS_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))
_READABLE: dict[str, Any] = {"path_effects": [withStroke(linewidth=4 * 72 / DPI, foreground="black")], "color": "white"}


def window(hu: HuArray) -> FloatArray:
    """Map Hounsfield units to grey values from 0 to 1 by the lung window."""
    center, width = LUNG_WINDOW
    return np.asarray(np.clip((hu - (center - width / 2)) / width, 0.0, 1.0), dtype=np.float32)


def direction_letter(direction: Direction) -> str:
    """Letter of the patient's side towards which ``direction`` (LPS) mostly points (PS3.3 C.7.6.1.1.1)."""
    axis = int(np.argmax(np.abs(direction)))
    return _AXIS_LETTERS[axis][int(direction[axis] < 0)]


def relevance_rgba(relevance: FloatArray, limit: float) -> FloatArray:
    """Colour relevance by sign and size: shape (..., 4), transparent near 0, opaque towards the limit."""
    scaled = np.clip(relevance / limit, -1.0, 1.0) if limit > 0 else np.zeros_like(relevance)
    rgba = np.asarray(RELEVANCE_COLORS((scaled + 1.0) / 2.0), dtype=np.float32)
    size = np.abs(scaled)
    rgba[..., 3] = np.where(size < _VISIBLE_FROM, 0.0, 0.25 + 0.65 * np.sqrt(size))
    return rgba


def hex_color(color: RGB) -> str:
    """Colour as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def points(pixels: float) -> float:
    """Length in typographic points."""
    return pixels * 72 / DPI


class Box(NamedTuple):
    """Part of a page, in pixels from its top left."""

    left: int
    top: int
    width: int
    height: int

    def fitted(self, ratio: float, *, top: bool = False) -> Box:
        """Largest box in this one of height by width ``ratio``: in its middle, or at its ``top``."""
        width = min(self.width, max(1, round(self.height / ratio)))
        height = min(self.height, max(1, round(width * ratio)))
        spare = 0 if top else (self.height - height) // 2
        return Box(self.left + (self.width - width) // 2, self.top + spare, width, height)


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A plane of the CT as it is shown, with what was found in it.

    Parameters
    ----------
    hu : ndarray of int16 or float32, shape (rows, columns)
        Hounsfield units.
    lungs : ndarray of bool
        Both lungs.
    lesions : ndarray of uint8
        A :class:`~operators.findings.LesionType` or 0.
    spacing : tuple of float
        Between rows and between columns, in mm.
    down, right : ndarray, shape (3,)
        Where rows and columns run to in the patient (LPS).
    """

    hu: HuArray
    lungs: BoolArray
    lesions: LabelArray
    spacing: tuple[float, float]
    down: Direction
    right: Direction

    @property
    def ratio(self) -> float:
        """Height by width."""
        rows, columns = self.hu.shape
        return float(rows * self.spacing[0] / (columns * self.spacing[1]))


def _resized(values: FloatArray, box: Box, how: Image.Resampling) -> FloatArray:
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((box.width, box.height), how), dtype=np.float32)


class Page:
    """A page in the making: black, :data:`WIDTH` pixels wide. Places are in pixels from the top left.

    Its corners stay empty: viewers write there.
    """

    def __init__(self, height: int) -> None:
        self.height = height
        self._image = np.zeros((height, WIDTH, 3), dtype=np.float32)
        self.figure = Figure((WIDTH / DPI, height / DPI), dpi=DPI, facecolor="none")
        self._canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, size: float = 18, color: str = "white", **style: Any) -> None:
        """Write words; ``size`` in pixels."""
        self.figure.text(x / WIDTH, 1 - y / self.height, words, fontsize=points(size), **{"color": color, **style})

    def centered(self, y: float, words: str, size: float = 18, color: str = "white", **style: Any) -> None:
        """Write words in the middle of the width."""
        self.text(WIDTH / 2, y, words, size, color, ha="center", **style)

    def plane(self, box: Box, plane: Plane, title: str) -> None:
        """Draw the CT in lung window, its title and the patient's sides."""
        self._put(box, _resized(window(plane.hu), box, Image.Resampling.BICUBIC).clip(0.0, 1.0)[..., None])
        left, top, width, height = box
        bold = {**_READABLE, "fontweight": "bold"}
        middle, edge = top + height / 2, 8
        self.text(left + edge, middle, direction_letter(-plane.right), va="center", **bold)
        self.text(left + width - edge, middle, direction_letter(plane.right), va="center", ha="right", **bold)
        self.text(left + width / 2, top + edge, direction_letter(-plane.down), va="top", ha="center", **bold)
        self.text(left + width / 2, top + height - edge, direction_letter(plane.down), ha="center", **bold)
        self.text(left + edge, top + edge, title, 17, va="top", **_READABLE)

    def relevance(self, box: Box, relevance: FloatArray, limit: float) -> None:
        """Lay relevance, given at the pixels of the plane in ``box``, over the CT."""
        self._blend(box, relevance_rgba(_resized(relevance, box, Image.Resampling.BILINEAR), limit))

    def color_ramp(self, box: Box) -> None:
        """Draw the colours of relevance from the negative limit to the positive one."""
        self._put(box, np.full((1, 1, 1), 0.25, dtype=np.float32))
        ramp = relevance_rgba(np.linspace(-1.0, 1.0, box.width, dtype=np.float32), 1.0)
        self._blend(box, np.broadcast_to(ramp, (box.height, box.width, 4)))

    def outline(self, box: Box, mask: BoolArray, color: Any, width: float) -> None:
        """Draw the border of a mask, given at the pixels of the plane in ``box``; ``width`` in pixels."""
        if not mask.any():
            return
        rows, columns = mask.shape
        x = (box.left + (np.arange(-1, columns + 1) + 0.5) * box.width / columns) / WIDTH
        y = 1 - (box.top + (np.arange(-1, rows + 1) + 0.5) * box.height / rows) / self.height
        closed = np.pad(mask, 1).astype(np.float64)  # also where the mask reaches the end of the plane
        lines: Any = contour_generator(x, y, closed, line_type="Separate").lines(0.5)
        place = self.figure.transFigure
        self.figure.add_artist(LineCollection(lines, colors=[color], linewidths=points(width), transform=place))

    def footer(self) -> None:
        """Write the notice that no page may lack."""
        self.centered(self.height - 14, RESEARCH_NOTICE, 21, NOTICE_COLOR, fontweight="bold")
        self.text(WIDTH / 2 + 300, self.height - 14, f"{NAME} {VERSION}", 15, "#b0b0b0")

    def pixels(self) -> RGBImage:
        """Rasterise.

        Returns
        -------
        ndarray of uint8, shape (height, 1400, 3)
            RGB.
        """
        self._canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        page = np.rint(self._image * 255).astype(np.uint8)
        marked = drawn[..., 3] > 0
        alpha = drawn[marked, 3:] / np.float32(255)
        page[marked] = np.rint((1 - alpha) * page[marked] + alpha * drawn[marked, :3]).astype(np.uint8)
        return page

    def pdf(self) -> bytes:
        """Return the page as a PDF document: words stay words; the same page gives the same bytes."""
        painted = self.figure.figimage(np.rint(self._image * 255).astype(np.uint8), zorder=-1)
        target = io.BytesIO()
        with rc_context({"pdf.fonttype": 42}):  # whole fonts: letters can be searched and copied
            self.figure.savefig(target, format="pdf", dpi=DPI, facecolor="black", metadata={"CreationDate": None})
        painted.remove()
        return target.getvalue()

    def _place(self, box: Box) -> tuple[slice, slice]:
        return slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)

    def _put(self, box: Box, values: FloatArray) -> None:
        self._image[self._place(box)] = values

    def _blend(self, box: Box, rgba: FloatArray) -> None:
        alpha, place = rgba[..., 3:], self._place(box)
        self._image[place] = (1.0 - alpha) * self._image[place] + alpha * rgba[..., :3]
