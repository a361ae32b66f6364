"""DICOM Segmentation of the lungs and of the lesions (PS3.3 A.51)."""

from __future__ import annotations

from dataclasses import dataclass
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

from models.store import ModelRecord
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
)
from operators.journal import Journal
from operators.volume import CTVolume, LabelArray

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "COVID-CT segmentation (research)"
FILE = Path("seg", "segmentation.dcm")

LEFT_LUNG_SEGMENT = 1
RIGHT_LUNG_SEGMENT = 2
LESION_SEGMENTS = {kind: RIGHT_LUNG_SEGMENT + kind for kind in LesionType}
LUNGS_SEGMENT = 7


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


def _segment_masks(lungs: Lungs, lesions: Lesions) -> LabelArray:
    """Stack the masks of all segments, in the order of their numbers: (slices, rows, columns, 7), 0 or 1.

    Each mask is contiguous in memory, since the writer takes them one by one.
    """
    masks = np.zeros((LUNGS_SEGMENT, *lungs.grid.shape), dtype=np.uint8)
    masks[LEFT_LUNG_SEGMENT - 1] = lungs.labels == Lung.LEFT
    masks[RIGHT_LUNG_SEGMENT - 1] = lungs.labels == Lung.RIGHT
    for kind, number in LESION_SEGMENTS.items():
        masks[number - 1] = lesions.labels == kind
    masks[LUNGS_SEGMENT - 1] = lungs.mask
    return np.moveaxis(masks, 0, -1)


def as_single_frames(volume: CTVolume) -> list[Dataset]:
    """Return the source headers; frames of a multi-frame image as if each were an image of its own."""
    headers = source_headers(volume)
    if not any(volume.frames):
        return headers
    return [with_values(header, SOPClassUID=CTImageStorage, NumberOfFrames=None) for header in headers]


def _refer_to_frames(segmentation: Segmentation, volume: CTVolume) -> None:
    """Correct the references to a multi-frame source, which was described to the writer as single frames."""
    if not any(volume.frames):
        return
    frames = {
        tuple(float(value) for value in header.ImagePositionPatient): frame
        for header, frame in zip(volume.headers, volume.frames, strict=True)
    }
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        position = tuple(float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient)
        for derivation in item.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                source.ReferencedSOPClassUID = volume.headers[0].SOPClassUID
                source.ReferencedFrameNumber = frames[position]
    for series in segmentation.ReferencedSeriesSequence:
        series.ReferencedInstanceSequence = series.ReferencedInstanceSequence[:1]
        series.ReferencedInstanceSequence[0].ReferencedSOPClassUID = volume.headers[0].SOPClassUID


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
    if not lungs.mask[list(volume.places)].any():
        raise ValueError("a segmentation needs at least one lung")
    segmentation = Segmentation(
        source_images=as_single_frames(volume),
        pixel_array=_segment_masks(lungs, lesions)[list(volume.places)],
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
        **equipment(provenance),
    )
    _refer_to_frames(segmentation, volume)
    segmentation.BodyPartExamined = "CHEST"
    dimensions = derived_uid(volume, provenance, "segmentation dimensions")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    sign(segmentation, volume, provenance)
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
    """

    def __init__(
        self, fragment: Fragment, *args: Any, journal: Journal, folder: Path, provenance: Provenance, **kwargs: Any
    ) -> None:
        self._journal = journal
        self._file = folder / FILE
        self._provenance = provenance
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
            segmentation = make_segmentation(volume, lungs, lesions, self._provenance)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            segmentation.save_as(self._file, enforce_file_format=True)
            found(f"{segmentation.NumberOfFrames} frames")
        op_output.emit(segmentation, "segmentation")
