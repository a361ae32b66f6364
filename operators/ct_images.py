"""The slices of CT objects: one of a single-frame image, one for each frame of a multi-frame image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sequence import Sequence

from operators.dicom_folder import MULTI_FRAME_CT, DicomFile
from operators.refusal import InputRefused, ReasonCode

MAX_FRAMES = 10_000
"""Frames that no chest CT exceeds."""
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = {
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "CTAcquisitionDetailsSequence": {"GantryDetectorTilt": "GantryDetectorTilt"},
    "CTImageFrameTypeSequence": {
        "ImageType": "FrameType",
        "VolumeBasedCalculationTechnique": "VolumeBasedCalculationTechnique",
    },
    "FrameContentSequence": {
        "AcquisitionNumber": "FrameAcquisitionNumber",
        "TemporalPositionIdentifier": "TemporalPositionIndex",
    },
}
"""Functional group macros (PS3.3, C.7.6.16, C.8.15.3): attribute of a single-frame image, and that of the macro."""


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
        ``MISSING_ATTRIBUTE``, ``UNREADABLE`` or ``TOO_LARGE`` where the frames of a multi-frame object are not
        described.
    """
    return [
        image
        for file in files
        for image in (_frames(file) if file.sop_class in MULTI_FRAME_CT else [SliceImage(file, file.header)])
    ]


def _frames(file: DicomFile) -> list[SliceImage]:
    """Describe each frame of a multi-frame image as a single-frame image."""
    try:
        return _described(file)
    except InputRefused:
        raise
    except Exception as error:  # items of sequences are decoded only here: damaged ones raise what they like
        message = f"File {file.number}, a multi-frame CT, has damaged descriptions of its frames; send it again."
        raise InputRefused(ReasonCode.UNREADABLE, message) from error


def _described(file: DicomFile) -> list[SliceImage]:
    groups = _items(file.header, "PerFrameFunctionalGroupsSequence")
    shared = (_items(file.header, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if len(groups) > MAX_FRAMES:
        message = f"File {file.number} has {len(groups)} frames, which is no chest CT; send an axial chest CT."
        raise InputRefused(ReasonCode.TOO_LARGE, message)
    if not groups or len(groups) != file.header.get("NumberOfFrames"):
        message = f"File {file.number}, a multi-frame CT, does not describe each of its frames; send it again."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    common = with_values(file.header, **dict.fromkeys(_FUNCTIONAL_GROUPS))
    return [SliceImage(file, _flattened(common, shared, own), number) for number, own in enumerate(groups, start=1)]


def _flattened(common: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    """Return the attributes of a frame where a single-frame image has them."""
    values = {}
    for macro, keywords in _MACROS.items():
        for item in _items(own, macro)[:1] or _items(shared, macro)[:1]:
            for keyword, in_macro in keywords.items():
                value = item.get(in_macro)
                # a sequence in the place of a plain value, or the reverse, is as good as absent
                if in_macro in item and isinstance(value, Sequence) == in_macro.endswith("Sequence"):
                    values[keyword] = value
    return with_values(common, **values)


def with_values(header: Dataset, **values: object) -> Dataset:
    """Return a header with other values of some attributes, None to leave one out; the rest is shared, not copied."""
    replaced = {tag_for_keyword(keyword) for keyword in values}
    result = Dataset({tag: element for tag, element in header.items() if tag not in replaced})
    for keyword, value in values.items():
        if value is not None:
            setattr(result, keyword, value)
    return result


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent or no sequence."""
    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []
