"""The slices of CT objects: one of a single-frame image, one for each frame of a multi-frame image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydicom import Dataset

from operators.dicom_folder import DicomFile
from operators.refusal import InputRefused, ReasonCode
from operators.studies import MULTI_FRAME_CT

MAX_FRAMES = 10_000
"""Frames that no chest CT exceeds."""
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
    "FrameAnatomySequence": ("AnatomicRegionSequence",),
}
"""Functional group macros (PS3.3, C.7.6.16 and C.8.15.3) and the attributes that a single-frame image has of them."""


@dataclass(frozen=True, slots=True, eq=False)
class SliceImage:
    """One slice.

    Parameters
    ----------
    file : DicomFile
        The object that holds it.
    header : Dataset
        Attributes of the slice as in a single-frame CT image.
    frame : int
        Frame number in a multi-frame object, from 1; 0 for a single-frame image.
    """

    file: DicomFile
    header: Dataset
    frame: int = 0


def slices_of(files: Iterable[DicomFile]) -> list[SliceImage]:
    """Return the slices of CT objects, in the order of the files and frames.

    Raises
    ------
    InputRefused
        ``MISSING_ATTRIBUTE`` or ``TOO_LARGE`` where the frames of a multi-frame object are not described.
    """
    return [
        image
        for file in files
        for image in (_frames(file) if file.sop_class in MULTI_FRAME_CT else [SliceImage(file, file.header)])
    ]


def _frames(file: DicomFile) -> list[SliceImage]:
    """Describe each frame of a multi-frame image as a single-frame image."""
    groups = _items(file.header, "PerFrameFunctionalGroupsSequence")
    shared = (_items(file.header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if len(groups) > MAX_FRAMES:
        message = f"File {file.number} has {len(groups)} frames, which is no chest CT; send an axial chest CT."
        raise InputRefused(ReasonCode.TOO_LARGE, message)
    if not groups or len(groups) != file.header.get("NumberOfFrames"):
        message = f"File {file.number}, a multi-frame CT, does not describe each of its frames; send it again."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    common = Dataset({e.tag: e for e in file.header if e.keyword not in _FUNCTIONAL_GROUPS})
    return [SliceImage(file, _flattened(common, shared, own), number) for number, own in enumerate(groups, start=1)]


def _flattened(common: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    header = Dataset({element.tag: element for element in common})
    for macro, keywords in _MACROS.items():
        for item in _items(own, macro)[:1] or _items(shared, macro)[:1]:
            for keyword in keywords:
                if keyword in item:
                    header[keyword] = item[keyword]
    for item in _items(own, "CTImageFrameTypeSequence")[:1] or _items(shared, "CTImageFrameTypeSequence")[:1]:
        if "FrameType" in item:
            header.ImageType = item.FrameType
    for item in _items(own, "FrameContentSequence")[:1]:
        for keyword, macro_keyword in (
            ("AcquisitionNumber", "FrameAcquisitionNumber"),
            ("TemporalPositionIdentifier", "TemporalPositionIndex"),
        ):
            if macro_keyword in item:
                setattr(header, keyword, item[macro_keyword].value)
    return header


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent or no sequence."""
    element = dataset.get(keyword)
    return list(element) if isinstance(element, list) or (hasattr(element, "__getitem__") and element) else []
