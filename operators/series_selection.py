"""Choosing the one CT series of a study that is read, by stated rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

from operators.ct_geometry import Plane, numbers, plane_of
from operators.ct_images import SliceImage, slices_of
from operators.ct_pixels import check_readable
from operators.refusal import InputRefused, ReasonCode
from operators.selection_rules import Selection, SelectionRules, meets
from operators.studies import CT_CLASSES, Series, Study

MIN_SLICES = 3
"""Fewer slices cannot show whether the gaps between them are uniform."""
MIN_EXTENT_MM = 100.0
"""A shorter stack of slices cannot hold both lungs of an adult."""
THICK_MM = 3.5
"""Thinner gaps all give the networks what they need; thicker ones do not."""
CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "TORSO", "WHOLEBODY")
_PROJECTIONS = {"PROJECTION IMAGE", "3D", "MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"}
"""Values of Image Type, and of Volume Based Calculation Technique (PS3.3, C.8.16.2.1.4), of what is no slice."""
_PROJECTING = {"MIP", "MINIP", "MIN_IP", "MAX_IP", "VOLREN", "SSD", "VRT"}
"""Words in a value of Image Type that say so: scanners write CT_SOM5 MIP."""
_COMPUTED = {"MAXIMUM", "MINIMUM", "STD_DEVIATION", "SUBTRACTION", "DIVISION", "MULTIPLICATION"}
"""Fourth values of Image Type of what was computed from slices and is none (PS3.3, C.8.16.1.4)."""
_COLOURS = 3


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """What a person knows a series by; no patient data, no free text but the kernel.

    Parameters
    ----------
    number : int or None
        Series Number.
    modality : str
        Modality.
    images : int
        Objects of the series.
    slices : int
        Slices among them: without localizers and pictures.
    size : tuple of int or None
        Columns and rows.
    spacing : tuple of float or None
        Millimetres between pixels along a row, along a column, and between slices.
    plane : str
        Plane of the slices.
    original : bool
        Whether the first value of Image Type is ORIGINAL.
    kernel : str
        Convolution Kernel.
    body_part : str
        Body Part Examined.
    """

    number: int | None
    modality: str
    images: int
    slices: int
    size: tuple[int, int] | None
    spacing: tuple[float, float, float] | None
    plane: Plane
    original: bool
    kernel: str
    body_part: str


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What became of one series.

    Parameters
    ----------
    series : Series
        The series.
    summary : SeriesSummary
        What a person knows it by.
    slices : tuple of SliceImage
        Its slices, in the order of their UIDs: nothing depends on the names of files.
    reason : str
        Why it is not read; empty for the one that is.
    refusal : InputRefused or None
        Why it could not be read, as far as the headers tell.
    """

    series: Series
    summary: SeriesSummary
    slices: tuple[SliceImage, ...]
    reason: str
    refusal: InputRefused | None = None

    @property
    def strays(self) -> int:
        """Localizers and pictures inside the series."""
        return self.summary.images - len({image.file.number for image in self.slices})


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The series of a study, each with its verdict, the one that is read, if any, and by which rules."""

    verdicts: tuple[Verdict, ...]
    chosen: Verdict | None
    rules: SelectionRules


def choose_series(study: Study, rules: SelectionRules) -> Choice:
    """Choose the series to read.

    Left out are series without CT images, without slices (localizers, colour pictures, projections: MIP and the
    like), of other values than Hounsfield units, slices oblique to the patient, fewer than :data:`MIN_SLICES` slices,
    and what no selection of the rules asks for. Of the others the first of these decides that differs: readable as
    far as the headers tell; axial before coronal before sagittal; original before derived; at least
    :data:`MIN_EXTENT_MM` long; not said to be another part of the body; gaps under :data:`THICK_MM`; preferred kernel;
    more slices; lower series number; lower UID.
    """
    verdicts = [_judge(series) for series in study.series]
    fit = [verdict for verdict in verdicts if not verdict.reason]
    selection = _selection(fit, rules)
    if selection is not None:
        wanted = [verdict for verdict in fit if meets(verdict.slices[0].header, selection)]
    else:
        wanted = [] if rules.selections else fit
    chosen = min(wanted, key=lambda verdict: _rank(verdict, rules), default=None)
    final = tuple(
        verdict if verdict.reason or verdict is chosen else _left_out(verdict, chosen, verdict in wanted, rules)
        for verdict in verdicts
    )
    return Choice(final, chosen, rules)


def chosen_series(choice: Choice) -> Verdict:
    """Return the series to read of those that :func:`choose_series` judged.

    Raises
    ------
    InputRefused
        ``NO_CT_SERIES``, with what was found instead; or why the only candidates cannot be read.
    """
    if choice.chosen is not None and choice.chosen.refusal is None:
        return choice.chosen
    refusals = [verdict.refusal for verdict in choice.verdicts if verdict.refusal is not None]
    if choice.chosen is not None or refusals:
        raise (choice.chosen and choice.chosen.refusal) or refusals[0]
    reasons = Counter(verdict.reason for verdict in choice.verdicts)
    found = "; ".join(f"{count} series: {reason}" for reason, count in reasons.most_common(4))
    message = f"The study holds no CT series that can be read ({found}); send an axial chest CT."
    raise InputRefused(ReasonCode.NO_CT_SERIES, message)


def _selection(verdicts: Sequence[Verdict], rules: SelectionRules) -> Selection | None:
    """Return the first selection that any series meets."""
    met = (s for s in rules.selections if any(meets(verdict.slices[0].header, s) for verdict in verdicts))
    return next(met, None)


def _judge(series: Series) -> Verdict:
    """Say whether a series can be read at all."""
    ct = [file for file in series.files if file.sop_class in CT_CLASSES]
    if not ct:
        return _verdict(series, (), "no CT images")
    try:
        images = slices_of(ct)
    except InputRefused as refusal:
        return replace(_verdict(series, (), refusal.message), refusal=refusal)
    slices = tuple(sorted((image for image in images if not _is_extra(image.header)), key=_identity))
    if not slices:
        return _verdict(series, slices, "localizers, projections or pictures only")
    verdict = _verdict(series, slices, "")
    reason = _unfit(verdict, slices[0].header)
    return replace(verdict, reason=reason, refusal=None if reason else _refusal(slices))


def _identity(image: SliceImage) -> tuple[str, int]:
    return str(image.header.get("SOPInstanceUID") or ""), image.frame


def _refusal(slices: Sequence[SliceImage]) -> InputRefused | None:
    """Say why a slice cannot be read, as far as the headers tell."""
    try:
        for image in slices:
            check_readable(image)
    except InputRefused as refusal:
        return refusal
    return None


def _unfit(verdict: Verdict, header: Dataset) -> str:
    summary = verdict.summary
    if str(header.get("RescaleType") or "HU").strip().upper() not in ("HU", "US"):
        return "values other than Hounsfield units"
    if summary.slices < MIN_SLICES:
        return f"fewer than {MIN_SLICES} slices"
    if summary.plane == "oblique":
        return "slices oblique to the patient"
    return ""


def _rank(verdict: Verdict, rules: SelectionRules) -> tuple[Any, ...]:
    """Sort key of a series: the lowest is read."""
    return (*(value for _, value in _criteria(verdict, rules)), verdict.series.uid)


def _criteria(verdict: Verdict, rules: SelectionRules) -> list[tuple[str, float]]:
    """List what decides between series, first things first: how to say it of the one left out, and its value."""
    s = verdict.summary
    extent = s.spacing[2] * s.slices if s.spacing else 0.0
    gap = s.spacing[2] if s.spacing else float("inf")
    planes: dict[str, int] = {"axial": 0, "unknown": 1, "coronal": 2, "sagittal": 3}
    elsewhere = bool(s.body_part) and not any(word in s.body_part.upper().replace(" ", "") for word in CHEST_WORDS)
    return [
        (verdict.refusal.message if verdict.refusal else "", verdict.refusal is not None),
        (f"{s.plane} slices", planes.get(s.plane, 4)),
        ("derived, not original", not s.original),
        ("too short to cover the lungs", extent < MIN_EXTENT_MM),
        ("said to show another part of the body", elsewhere),
        (f"gaps of {gap:.1f} mm", gap > THICK_MM),
        ("another kernel is preferred", rules.kernel_rank(s.kernel)),
        ("fewer slices", -s.slices),
        ("a later series of the same kind", s.number if s.number is not None else float("inf")),
    ]


def _left_out(verdict: Verdict, chosen: Verdict | None, wanted: bool, rules: SelectionRules) -> Verdict:
    """Say why a series that could be read is not."""
    if not wanted:  # nor is it why there is none
        return replace(verdict, reason="not what the selection rules ask for", refusal=None)
    reason = ""
    if chosen is not None:
        pairs = zip(_criteria(verdict, rules), _criteria(chosen, rules), strict=True)
        reason = next((name for (name, ours), (_, best) in pairs if ours != best), "another series of the same kind")
    return replace(verdict, reason=reason)


def _is_extra(header: Dataset) -> bool:
    """Tell whether a CT image is no slice: a localizer, a projection, or a colour picture such as a dose summary."""
    kinds = [word.upper() for word in _words(header.get("ImageType"))]
    technique = _words(header.get("VolumeBasedCalculationTechnique"))
    return (
        "LOCALIZER" in kinds[2:3]
        or bool(_PROJECTIONS & {*kinds, *technique})
        or bool(_PROJECTING & {word for kind in kinds for word in kind.split()})
        or bool(_COMPUTED & {*kinds[3:4]})
        or header.get("SamplesPerPixel") == _COLOURS
    )


def _words(value: Any) -> list[str]:
    """Return the values of an attribute of any multiplicity as text; a damaged file can give it any VR."""
    if value is None:
        return []
    return [str(word).strip() for word in (value if isinstance(value, MultiValue) else [value])]


def _printable(value: Any) -> str:
    """Return text of a header as one line that does nothing to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(_words(value)))


def kernel_of(header: Dataset) -> str:
    """Return the convolution kernel of a slice as one line; empty where none is named."""
    return _printable(header.get("ConvolutionKernel"))


def _verdict(series: Series, slices: tuple[SliceImage, ...], reason: str) -> Verdict:
    header = slices[0].header if slices else series.files[0].header
    types = [word.upper() for word in _words(header.get("ImageType"))]
    number = header.get("SeriesNumber")
    size = header.get("Columns"), header.get("Rows")
    summary = SeriesSummary(
        number=int(number) if isinstance(number, int) else None,
        modality=_printable(header.get("Modality")),
        images=len(series.files),
        slices=len(slices),
        size=(size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None,
        spacing=_spacing(slices),
        plane=_plane(slices),
        original=types[:1] != ["DERIVED"],
        kernel=kernel_of(header),
        body_part=_printable(header.get("BodyPartExamined")),
    )
    return Verdict(series, summary, slices, reason)


def _plane(slices: Sequence[SliceImage]) -> Plane:
    """Plane of most slices."""
    planes = Counter(plane_of(image.header) for image in slices)
    return planes.most_common(1)[0][0] if planes else "unknown"


def _spacing(slices: Sequence[SliceImage]) -> tuple[float, float, float] | None:
    """Pixel spacing and the median gap, where the slices say them."""
    try:
        headers = [image.header for image in slices]
        row, column = numbers(headers[0], "PixelSpacing", 2).tolist()
        orientation = numbers(headers[0], "ImageOrientationPatient", 6)
        normal = np.cross(orientation[:3], orientation[3:])
        places = np.unique(np.round([numbers(h, "ImagePositionPatient", 3) @ normal for h in headers], 3))
    except (InputRefused, IndexError):
        return None
    return (column, row, float(np.median(np.diff(places)))) if len(places) > 1 else None
