"""Series loader: a folder of DICOM to one CT volume, right or refused."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage

from operators.ct_geometry import is_axial, stack_slices
from operators.ct_pixels import read_hu
from operators.dicom_folder import DicomFile, read_folder
from operators.journal import Journal
from operators.refusal import InputRefused, ReasonCode
from operators.volume import CTVolume, Grid

MIN_SLICES = 3
"""Fewer slices cannot show whether the gaps between them are uniform."""
MIN_EXTENT_MM = 100.0
"""A shorter stack of slices cannot hold both lungs of an adult."""
_COLOURS = 3
_NEEDED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


def load_ct_series(folder: Path) -> CTVolume:
    """Load the chest CT series of a folder.

    The axial series with the most images is taken; localizers and objects other than CT images are passed
    over. Everything else that does not fit is refused: no slice is dropped, moved or guessed.

    Parameters
    ----------
    folder : Path
        Holds one study of one patient, in sub-folders if need be.

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
    series = select_series(read_folder(folder))
    _check_identity([file.header for file in series])
    order, grid = stack_slices([file.header for file in series])
    _check_coverage(grid)
    ordered = [series[index] for index in order]
    hu = np.empty(grid.shape, dtype=np.float32)
    for file, plane in zip(ordered, hu, strict=True):
        read_hu(pydicom.dcmread(file.path, force=True), plane)
    return CTVolume(hu, grid, tuple(file.header for file in ordered))


def select_series(files: Sequence[DicomFile]) -> list[DicomFile]:
    """Return the images of the one axial CT series with the most images.

    Parameters
    ----------
    files : sequence of DicomFile
        All objects of the folder.

    Raises
    ------
    InputRefused
        ``NO_CT_SERIES``, ``ENHANCED_CT``, ``MIXED_STUDIES``, ``MISSING_ATTRIBUTE`` or ``AMBIGUOUS_SERIES``.
    """
    images = [file for file in files if file.sop_class == CTImageStorage and not _is_extra(file.header)]
    if not images:
        raise _no_series(files)
    _refuse_mixed_studies(files)
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    for image in images:
        groups[_uid(image.header, "SeriesInstanceUID")].append(image)
    axial = [group for group in groups.values() if any(is_axial(image.header) for image in group)]
    most = max(map(len, axial), default=0)
    if most < MIN_SLICES:
        raise _no_series(files)
    largest = [group for group in axial if len(group) == most]
    if len(largest) > 1:
        message = f"{len(largest)} series have {most} axial images each; leave only the one to be read in the folder."
        raise InputRefused(ReasonCode.AMBIGUOUS_SERIES, message)
    return largest[0]


def _is_extra(header: Dataset) -> bool:
    """Tell whether a CT image is no slice: a localizer, or a colour picture such as a dose summary."""
    image_type = [str(value).strip().upper() for value in _values(header.get("ImageType"))]
    return "LOCALIZER" in image_type[2:3] or header.get("SamplesPerPixel") == _COLOURS


def _values(value: Any) -> list[Any]:
    """Return the values of an attribute of any multiplicity."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _no_series(files: Sequence[DicomFile]) -> InputRefused:
    if any(file.sop_class == EnhancedCTImageStorage for file in files):
        message = "The CT is an enhanced multi-frame object, which is not supported; send it as single CT images."
        return InputRefused(ReasonCode.ENHANCED_CT, message)
    message = f"The folder holds no CT series of at least {MIN_SLICES} axial images; send an axial chest CT."
    return InputRefused(ReasonCode.NO_CT_SERIES, message)


def _refuse_mixed_studies(files: Sequence[DicomFile]) -> None:
    """Refuse a folder whose objects are not all of one study and one patient."""
    headers = [file.header for file in files if file.header.get("StudyInstanceUID")]
    studies = {str(header.StudyInstanceUID) for header in headers}
    patients = {str(header.get("PatientID") or "") for header in headers}
    if len(studies) > 1 or len(patients) > 1:
        message = (
            f"The folder holds {len(studies)} studies of {len(patients)} patients; give each study its own folder."
        )
        raise InputRefused(ReasonCode.MIXED_STUDIES, message)


def _uid(header: Dataset, keyword: str) -> str:
    """Return a UID that the outputs will need."""
    value = UID(str(header.get(keyword) or ""))
    if not value.is_valid:
        message = f"A CT image has no valid {keyword}; send the original series of the scanner or PACS."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    return value


def _check_identity(headers: Sequence[Dataset]) -> None:
    """Refuse slices that outputs could not refer to, or that differ in frame of reference."""
    uids = {keyword: Counter(_uid(header, keyword) for header in headers) for keyword in _NEEDED_UIDS}
    if len(uids["FrameOfReferenceUID"]) > 1:
        message = "The slices differ in FrameOfReferenceUID; send one complete axial series."
        raise InputRefused(ReasonCode.INCONSISTENT_GEOMETRY, message)
    twice = len(headers) - len(uids["SOPInstanceUID"])
    if twice:
        message = f"{twice} image(s) bear the SOPInstanceUID of another one; send each image once."
        raise InputRefused(ReasonCode.DUPLICATE_INSTANCES, message)


def _check_coverage(grid: Grid) -> None:
    extent = grid.shape[0] * grid.spacing[0]
    if extent < MIN_EXTENT_MM:
        message = (
            f"{grid.shape[0]} slices cover {extent:.0f} mm, a chest needs at least {MIN_EXTENT_MM:.0f} mm;"
            " send the complete series."
        )
        raise InputRefused(ReasonCode.PARTIAL_COVERAGE, message)


def describe(volume: CTVolume) -> str:
    """Return number, size and spacing (x, y, z) of the slices for a person."""
    slices, rows, columns = volume.grid.shape
    z, y, x = volume.grid.spacing
    return f"{slices} slices {columns} x {rows}, {x:.2f} x {y:.2f} x {z:.1f} mm"


class SeriesLoaderOperator(Operator):
    """Load the CT series of the input folder.

    Named output ``volume``: the :class:`~operators.volume.CTVolume`.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, journal: Journal, **kwargs: Any) -> None:
        self._folder = folder
        self._journal = journal
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the port."""
        spec.output("volume")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Load the series, emit it."""
        with self._journal.node("Series loader") as found:
            volume = load_ct_series(self._folder)
            found(describe(volume))
        op_output.emit(volume, "volume")
