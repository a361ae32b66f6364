"""DICOM Segmentation of the lungs and of the lesions (PS3.3 A.51)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage

from models.record import ModelRecord
from operators.codes import (
    ABNORMAL_STRUCTURE,
    ANATOMICAL_STRUCTURE,
    LEFT,
    LEFT_LUNG_COLOR,
    LESION_TERMS,
    LUNG,
    LUNGS_COLOR,
    RGB,
    RIGHT,
    RIGHT_LUNG_COLOR,
)
from operators.ct_images import with_values
from operators.findings import Lesions, LesionType, Lung, Lungs
from operators.identity import (
    ModelSet,
    Provenance,
    algorithm,
    contributing_equipment,
    derived_uid,
    equipment,
    sign,
    source_headers,
    source_references,
)
from operators.journal import Journal
from operators.remarks import RemarkCode
from operators.saving import save
from operators.volume import BoolArray, CTVolume, Grid

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "COVID-CT segmentation (research)"
FILE = Path("seg", "segmentation.dcm")

LEFT_LUNG_SEGMENT = 1
RIGHT_LUNG_SEGMENT = 2
LESION_SEGMENTS = {kind: RIGHT_LUNG_SEGMENT + kind for kind in LesionType}
LUNGS_SEGMENT = 7
_STAND_IN = "1."
_LUNG_OF_SEGMENT = {LEFT_LUNG_SEGMENT: Lung.LEFT, RIGHT_LUNG_SEGMENT: Lung.RIGHT}
_LESION_OF_SEGMENT = {number: kind for kind, number in LESION_SEGMENTS.items()}


@dataclass(frozen=True, slots=True)
class _Segment:
    label: str
    category: Code
    kind: Code
    modifiers: tuple[Code, ...]
    color: RGB
    model: ModelRecord


def _segments(models: ModelSet) -> list[_Segment]:
    """All segments, in the order of their numbers."""
    lungs = [
        _Segment("Left lung", ANATOMICAL_STRUCTURE, LUNG, (LEFT,), LEFT_LUNG_COLOR, models.lungs),
        _Segment("Right lung", ANATOMICAL_STRUCTURE, LUNG, (RIGHT,), RIGHT_LUNG_COLOR, models.lungs),
        _Segment("Lungs", ANATOMICAL_STRUCTURE, LUNG, (), LUNGS_COLOR, models.lungs),
    ]
    lesions = [
        _Segment(term.label, ABNORMAL_STRUCTURE, term.code, term.modifiers, term.color, models.lesions)
        for term in LESION_TERMS.values()
    ]
    return [*lungs[:2], *lesions, lungs[2]]


def segment_tracking(volume: CTVolume, provenance: Provenance, number: int) -> tuple[str, str]:
    """Tracking identifier and tracking UID of a segment: the report uses the same (PS3.16, TID 4108)."""
    label = _segments(provenance.models)[number - 1].label
    return label, derived_uid(volume, provenance, f"track segment {number}")


def _describe(number: int, segment: _Segment, tracking: tuple[str, str]) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(segment.model),
        tracking_id=tracking[0],
        tracking_uid=tracking[1],
        anatomic_regions=[LUNG] if segment.category == ABNORMAL_STRUCTURE else None,
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    if segment.modifiers:
        # Part of the item of the property type (PS3.3 C.8.20.4), not of the segment.
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(code) for code in segment.modifiers]
    return description


def _frame(lungs: Lungs, lesions: Lesions, segment: int, place: int) -> BoolArray:
    """Mask of a segment in a slice."""
    if segment == LUNGS_SEGMENT:
        return np.asarray(lungs.labels[place] > 0)
    if segment in _LUNG_OF_SEGMENT:
        return np.asarray(lungs.labels[place] == _LUNG_OF_SEGMENT[segment])
    return np.asarray(lesions.labels[place] == _LESION_OF_SEGMENT[segment])


def as_single_frames(volume: CTVolume, grid: Grid) -> list[Dataset]:
    """Return the source headers; frames of multi-frame images as if each were an image of its own.

    These have stand-ins for UIDs: :func:`refer_to_sources` is to put things right in what is made from them.

    All are oriented as the volume, and as far apart as the slices of ``grid``, on which the object to be made lies:
    the library takes both from them, compares the orientations digit by digit, and what headers say of the distances
    may be wrong, or missing.
    """
    z = grid.spacing[0]
    measured: dict[str, Any] = {
        "ImageOrientationPatient": volume.grid.orientation,
        "SliceThickness": z,
        "SpacingBetweenSlices": z,
    }
    headers = [with_values(header, **measured) for header in source_headers(volume)]
    if not any(volume.frames):
        return headers
    frame = {"SOPClassUID": CTImageStorage, "NumberOfFrames": None}
    return [with_values(header, **frame, SOPInstanceUID=_STAND_IN + str(k)) for k, header in enumerate(headers)]


_Position = tuple[float, ...]


def _position(frame: Dataset) -> _Position:
    return tuple(float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient)


def _pack_frames(segmentation: Segmentation, volume: CTVolume, lungs: Lungs, lesions: Lesions) -> None:
    """Give the frames their pixels, one bit each, without a gap between frames (PS3.5, 8.1.1)."""
    positions = (tuple(float(value) for value in header.ImagePositionPatient) for header in volume.headers)
    places: dict[_Position, int] = dict(zip(positions, volume.places, strict=True))
    masks = (
        _frame(lungs, lesions, item.SegmentIdentificationSequence[0].ReferencedSegmentNumber, places[_position(item)])
        for item in segmentation.PerFrameFunctionalGroupsSequence
    )
    packed = bytearray()
    while eight := list(islice(masks, 8)):  # always whole bytes
        packed += np.packbits(np.stack(eight), axis=None, bitorder="little").tobytes()
    segmentation.PixelData = bytes(packed) + b"\0" * (len(packed) % 2)
    _, segmentation.Rows, segmentation.Columns = volume.grid.shape


def _evenly_spaced(volume: CTVolume) -> bool:
    """Tell whether the frames lie on the slices of the volume: else no one spacing is theirs (PS3.3, C.7.6.16.2.1)."""
    return all(remark.code != RemarkCode.GAPS_RESAMPLED for remark in volume.remarks)


def refer_to_sources(dataset: Dataset, volume: CTVolume) -> None:
    """Correct the references to multi-frame sources, whose frames were described by :func:`as_single_frames`.

    Each object is referred to once, as what it is, and its frames by their numbers.
    """
    if not any(volume.frames):
        return
    dataset.SourceImageSequence = source_references(volume)
    for series in dataset.ReferencedSeriesSequence:
        series.ReferencedInstanceSequence = source_references(volume)
    derivations = (each for item in dataset.PerFrameFunctionalGroupsSequence for each in item.DerivationImageSequence)
    sources = {id(source): source for each in derivations for source in each.SourceImageSequence}  # frames share them
    for source in sources.values():
        index = int(source.ReferencedSOPInstanceUID.removeprefix(_STAND_IN))
        source.ReferencedSOPInstanceUID = volume.headers[index].SOPInstanceUID
        source.ReferencedSOPClassUID = volume.headers[index].SOPClassUID
        if volume.frames[index]:
            source.ReferencedFrameNumber = volume.frames[index]


def make_segmentation(volume: CTVolume, lungs: Lungs, lesions: Lesions, provenance: Provenance) -> Segmentation:
    """Make the segmentation: binary, in the geometry of the source images, without empty frames.

    Segments: 1 left lung, 2 right lung, 3 ground-glass opacity, 4 consolidation, 5 crazy paving,
    6 combined pattern, 7 lungs. Any of them but the last may be empty.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs, lesions
        Findings on the grid of the CT.
    provenance : Provenance
        What produces the segmentation.

    Returns
    -------
    Segmentation
        Explicit VR Little Endian.

    Raises
    ------
    ValueError
        If a finding is not on the grid of the CT, or there is no lung at all.
    """
    if not (lungs.grid.matches(volume.grid) and lesions.grid.matches(volume.grid)):
        raise ValueError("findings must be on the grid of the CT")
    segments = range(1, LUNGS_SEGMENT + 1)
    occupied = np.array([[_frame(lungs, lesions, n, place).any() for n in segments] for place in volume.places])
    if not occupied[:, LUNGS_SEGMENT - 1].any():
        raise ValueError("a segmentation needs at least one lung")
    # The library takes and checks whole masks of all segments at once, more than a GB. It is shown images of 1 x 8
    # pixels, to say which frames there are and where; the frames themselves are packed one by one.
    small = [with_values(header, Rows=1, Columns=8) for header in as_single_frames(volume, volume.grid)]
    segmentation = Segmentation(
        source_images=small,
        pixel_array=np.repeat(occupied[:, None, None], 8, axis=2).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(number, segment, segment_tracking(volume, provenance, number))
            for number, segment in enumerate(_segments(provenance.models), start=1)
        ],
        series_instance_uid=derived_uid(volume, provenance, "segmentation series"),
        series_number=SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=derived_uid(volume, provenance, "segmentation"),
        instance_number=1,
        content_label="COVID_CT",
        content_description="Lungs and lesions by type",
        contributing_equipment=contributing_equipment(provenance),
        **equipment(volume, provenance),
    )
    _pack_frames(segmentation, volume, lungs, lesions)
    refer_to_sources(segmentation, volume)
    if not _evenly_spaced(volume):
        del segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    segmentation.BodyPartExamined = "CHEST"
    dimensions = derived_uid(volume, provenance, "segmentation dimensions")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    sign(segmentation, volume, provenance)
    return segmentation


def write_segmentation(
    volume: CTVolume, lungs: Lungs, lesions: Lesions, provenance: Provenance, folder: Path, *, deflate: bool = False
) -> Segmentation:
    """Make the segmentation and save it as :data:`FILE` in ``folder``; returns what :func:`make_segmentation` does."""
    segmentation = make_segmentation(volume, lungs, lesions, provenance)
    save(segmentation, folder / FILE, deflate=deflate)
    return segmentation


class SegWriterOperator(Operator):
    """Write the segmentation to ``seg/segmentation.dcm``.

    Named inputs ``volume``, ``lungs``, ``lesions``; named output ``segmentation``, for the report.

    Parameters
    ----------
    folder : Path
        Folder of the outputs.
    provenance : Provenance
        What produces the segmentation.
    deflate : bool
        Write it in Deflated Explicit VR Little Endian.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        folder: Path,
        provenance: Provenance,
        deflate: bool = False,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._folder = folder
        self._provenance = provenance
        self._deflate = deflate
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("volume", "lungs", "lesions"):
            spec.input(name)
        spec.output("segmentation")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, make and write the segmentation, emit it."""
        volume, lungs, lesions = (op_input.receive(name) for name in ("volume", "lungs", "lesions"))
        with self._journal.node("Segmentation writer") as found:
            segmentation = write_segmentation(
                volume, lungs, lesions, self._provenance, self._folder, deflate=self._deflate
            )
            found(f"{segmentation.NumberOfFrames} frames")
        op_output.emit(segmentation, "segmentation")
