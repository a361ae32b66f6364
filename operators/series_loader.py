"""Series loader: the objects of a study to one CT volume, right or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext

from operators.ct_geometry import MAX_GAP_MM, Stack, numbers, stack_slices
from operators.ct_images import SliceImage
from operators.ct_pixels import read_hu
from operators.dicom_folder import scan_folder
from operators.journal import Journal
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import Remark, RemarkCode
from operators.selection_rules import ANY_SERIES, SelectionRules
from operators.series_cleaning import clean_series
from operators.series_selection import MIN_EXTENT_MM, MIN_SLICES, Choice, Verdict, choose_series, chosen_series
from operators.studies import Study, check_patient, check_study, group_studies
from operators.volume import CTVolume, FloatArray, Grid, HuArray

SPARSE = 1.5
"""Gaps more than this many slice thicknesses wide leave tissue unseen."""


def load_ct_series(folder: Path) -> CTVolume:
    """Load the chest CT series of a folder that holds one study with CT images, by the default rules.

    Raises
    ------
    InputRefused
        ``MIXED_STUDIES`` where there are several, and as :func:`load_study`.
    """
    return load_study(the_study(group_studies(scan_folder(folder))), ANY_SERIES)


def the_study(studies: Sequence[Study]) -> Study:
    """Return the only study that holds CT images, or, where none does, the first.

    Raises
    ------
    InputRefused
        ``UNREADABLE`` where there is no study at all, ``MIXED_STUDIES`` where several hold CT images.
    """
    if not studies:
        raise InputRefused(ReasonCode.UNREADABLE, "All DICOM files of the folder are damaged; send the study again.")
    with_ct = [study for study in studies if study.has_ct]
    if len(with_ct) > 1:
        message = f"The folder holds {len(with_ct)} studies with CT images; give each study its own folder."
        raise InputRefused(ReasonCode.MIXED_STUDIES, message)
    return with_ct[0] if with_ct else studies[0]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedVolume:
    """What will be read, found from the headers alone.

    Parameters
    ----------
    chosen : Verdict
        The series.
    slices : tuple of SliceImage
        Its slices, ascending along the normal.
    stack : Stack
        Where they lie.
    remarks : tuple of Remark
        What was repaired.
    """

    chosen: Verdict
    slices: tuple[SliceImage, ...]
    stack: Stack
    remarks: tuple[Remark, ...]


def plan_volume(study: Study, choice: Choice, max_gap_mm: float = MAX_GAP_MM) -> PlannedVolume:
    """Lay out the slices of the chosen series of a study, without decoding pixels.

    Other parameters and errors as for :func:`load_study`.
    """
    check_study(study)
    chosen = chosen_series(choice)
    clean = clean_series(chosen.slices, chosen.strays, choice.rules.kernel_rank)
    check_patient(image.file for image in clean.slices)
    if len(clean.slices) < MIN_SLICES:  # the others were the same once more
        message = f"The series has {len(clean.slices)} different slice(s), too few for a chest; send all slices."
        raise InputRefused(ReasonCode.PARTIAL_COVERAGE, message)
    stack = stack_slices([image.header for image in clean.slices], max_gap_mm)
    _check_coverage(stack.grid)
    ordered = tuple(clean.slices[index] for index in stack.order)
    return PlannedVolume(chosen, ordered, stack, (*clean.remarks, *_geometry_remarks(stack, ordered)))


def load_study(study: Study, rules: SelectionRules, max_gap_mm: float = MAX_GAP_MM) -> CTVolume:
    """Load the chest CT series of a study.

    Which series is read is for :func:`operators.series_selection.choose_series` to say, which of its images for
    :func:`operators.series_cleaning.clean_series`. Everything that was repaired is remarked on, everything else that
    does not fit is refused: no slice is dropped, moved or guessed in silence.

    Parameters
    ----------
    study : Study
        Of one patient.
    rules : SelectionRules
        What the user wants.
    max_gap_mm : float
        Where the gaps between slices are not uniform, the greatest one that is interpolated.

    Returns
    -------
    CTVolume
        HU by each slice's own rescale; padding and everything below -1024 HU is -1024 HU (air). Slices ascend
        along the normal of the image plane. The headers hold everything but Pixel Data.

    Raises
    ------
    InputRefused
        With the reason code that applies.
    """
    plan = plan_volume(study, choose_series(study, rules), max_gap_mm)
    hu = _filled(plan.slices, plan.stack)
    headers = tuple(image.header for image in plan.slices)
    places = tuple(int(place + 0.5) for place in plan.stack.places)
    frames = tuple(image.frame for image in plan.slices)
    texts = plan.slices[0].file.texts
    return CTVolume(hu, plan.stack.grid, headers, places, frames, plan.remarks, texts)


def _filled(ordered: Sequence[SliceImage], stack: Stack) -> HuArray:
    """Decode the slices into the grid; what no image shows is interpolated linearly between its neighbours."""
    hu: HuArray = np.empty(stack.grid.shape, np.int16)
    for k, plane in _planes(ordered, stack):
        if hu.dtype == np.int16 and not _whole(plane):
            hu = hu.astype(np.float32)
        hu[k] = plane
    return hu


def _planes(ordered: Sequence[SliceImage], stack: Stack) -> Iterator[tuple[int, FloatArray]]:
    """Yield each slice of the grid, ascending."""
    before, before_place = np.empty((0, 0), np.float32), -1.0
    for plane, place in zip(read_hu(ordered), stack.places, strict=True):
        for k in range(int(np.floor(before_place)) + 1, int(np.ceil(place))):
            share = (k - before_place) / (place - before_place)
            yield k, (1.0 - share) * before + share * plane
        if place.is_integer():
            yield int(place), plane
        before, before_place = plane, place


def _whole(plane: FloatArray) -> bool:
    """Say whether int16 holds a slice exactly."""
    return bool(plane.max() <= np.iinfo(np.int16).max and np.array_equal(plane, np.rint(plane)))


def _geometry_remarks(stack: Stack, ordered: Sequence[SliceImage]) -> list[Remark]:
    remarks = []
    slices, gap = stack.grid.shape[0], stack.grid.spacing[0]
    if not stack.uniform:
        message = f"The gaps between slices vary; the volume was resampled to {slices} slices {gap:.2f} mm apart."
        remarks.append(Remark(RemarkCode.GAPS_RESAMPLED, message))
    elif stack.interpolated:
        message = f"{stack.interpolated} of {slices} slices are missing and were interpolated."
        remarks.append(Remark(RemarkCode.SLICES_INTERPOLATED, message))
    try:
        thickness = float(numbers(ordered[0].header, "SliceThickness", 1)[0])
    except InputRefused:
        return remarks
    if 0.0 < SPARSE * thickness < gap:
        message = f"Slices of {thickness:g} mm lie {gap:.1f} mm apart: what is between them was not seen."
        remarks.append(Remark(RemarkCode.SPARSE_SLICES, message))
    return remarks


def _check_coverage(grid: Grid) -> None:
    extent = grid.shape[0] * grid.spacing[0]
    if extent < MIN_EXTENT_MM:
        message = (
            f"{grid.shape[0]} slices cover {extent:.0f} mm, a chest needs at least {MIN_EXTENT_MM:.0f} mm;"
            " send the complete series."
        )
        raise InputRefused(ReasonCode.PARTIAL_COVERAGE, message)


def describe(grid: Grid) -> str:
    """Return number, size and spacing (x, y, z) of the slices for a person."""
    slices, rows, columns = grid.shape
    z, y, x = grid.spacing
    return f"{slices} slices {columns} x {rows}, {x:.2f} x {y:.2f} x {z:.2f} mm"


class SeriesLoaderOperator(Operator):
    """Load the CT series of a study.

    Named output ``volume``: the :class:`~operators.volume.CTVolume`.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        study: Study,
        rules: SelectionRules,
        max_gap_mm: float,
        journal: Journal,
        **kwargs: Any,
    ) -> None:
        self._study = study
        self._rules = rules
        self._max_gap_mm = max_gap_mm
        self._journal = journal
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.output("volume")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Load the series, emit it."""
        with self._journal.node("Series loader") as found:
            volume = load_study(self._study, self._rules, self._max_gap_mm)
            found(describe(volume.grid))
            for remark in volume.remarks:
                found(remark.message)
        op_output.emit(volume, "volume")
