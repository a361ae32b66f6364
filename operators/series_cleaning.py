"""Repairing what can be repaired in a series without guessing, and saying so."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from pydicom.uid import UID

from operators.ct_geometry import SAME_POSITION_MM, Vectors, numbers, plane_of
from operators.ct_images import SliceImage, with_values
from operators.dicom_folder import DicomFile, read_object
from operators.identity import frame_of_reference_uid
from operators.pixel_data import transfer_syntax
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import Remark, RemarkCode
from operators.series_selection import MIN_SLICES, kernel_of

MAX_STRAYS = 3
"""More images of another plane than this are no strays."""
_PIXEL_ATTRIBUTES = (
    *("Rows", "Columns", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "ConvolutionKernel", "BitsStored"),
    *("BitsAllocated", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)
"""What makes equal pixels equal images."""
_ACQUISITIONS = ("AcquisitionNumber", "TemporalPositionIdentifier", "ConvolutionKernel", "AcquisitionTime")
"""Attributes that may tell acquisitions or reconstructions of one place apart, the first that does is used."""


@dataclass(frozen=True, slots=True, eq=False)
class CleanSeries:
    """Slices that belong together, and what was done to get them."""

    slices: tuple[SliceImage, ...]
    remarks: tuple[Remark, ...]


def clean_series(
    slices: Sequence[SliceImage], strays: int = 0, kernel_rank: Callable[[str], int] = lambda kernel: 0
) -> CleanSeries:
    """Drop what is there twice or does not belong, choose one acquisition, complete the frame of reference.

    Parameters
    ----------
    slices : sequence of SliceImage
        Slices of one series.
    strays : int
        Localizers and pictures of the series that were passed over before.
    kernel_rank : callable
        Lowest for the kernel to take where a series holds reconstructions with several that are as long.

    Raises
    ------
    InputRefused
        ``MISSING_ATTRIBUTE``, ``INCONSISTENT_GEOMETRY``, ``DUPLICATE_INSTANCES`` or ``DUPLICATE_POSITIONS``.
    """
    for image in slices:
        _check_uid(image)
    remarks: list[Remark] = []
    kept, doubles = _without_doubles(slices)
    kept, others = _in_one_plane(kept)
    if doubles:
        remarks.append(Remark(RemarkCode.DUPLICATES_DROPPED, f"{doubles} image(s) were there twice and left out."))
    if strays + others:
        message = f"{strays + others} image(s) of the series that are no slices of it were left out."
        remarks.append(Remark(RemarkCode.STRAY_IMAGES_DROPPED, message))
    kept, chosen = _one_acquisition(kept, kernel_rank)
    kept, named = _with_frame_of_reference(kept)
    return CleanSeries(tuple(kept), (*remarks, *chosen, *named))


def _check_uid(image: SliceImage) -> None:
    """Refuse a slice that outputs could not refer to."""
    if not UID(str(image.header.get("SOPInstanceUID") or "")).is_valid:
        message = f"File {image.file.number} has no valid SOPInstanceUID; send the original series of the PACS."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)


# --- images that are there twice ---


def _without_doubles(slices: Sequence[SliceImage]) -> tuple[list[SliceImage], int]:
    """Drop images that equal another one of the same UID, or of the same place; refuse those that differ."""
    contents = _Contents()
    kept: list[SliceImage] = []
    for group in _grouped(slices, lambda image: (str(image.header.SOPInstanceUID), image.frame)):
        same = all(contents.same_attributes(group[0].file, image.file) for image in group[1:])
        if not same or len(contents.differing(group)) > 1:
            numbers_ = ", ".join(str(image.file.number) for image in group[:2])
            message = f"Files {numbers_} differ but bear the same SOPInstanceUID; send the original series."
            raise InputRefused(ReasonCode.DUPLICATE_INSTANCES, message)
        kept.append(group[0])
    again = [image for group in _grouped(kept, _place) for image in contents.differing(group)]
    order = {id(image): k for k, image in enumerate(slices)}
    return sorted(again, key=lambda image: order[id(image)]), len(slices) - len(again)


def _grouped(slices: Sequence[SliceImage], key: Callable[[SliceImage], Hashable]) -> list[list[SliceImage]]:
    groups: dict[Hashable, list[SliceImage]] = defaultdict(list)
    for image in slices:
        groups[key(image)].append(image)
    return list(groups.values())


def _place(image: SliceImage) -> Hashable:
    """Return where the slice lies; an own place for one that does not say."""
    try:
        position = numbers(image.header, "ImagePositionPatient", 3)
        orientation = numbers(image.header, "ImageOrientationPatient", 6)
    except InputRefused:
        return id(image)
    return tuple(np.round(np.concatenate([position, orientation]) / SAME_POSITION_MM).tolist())


class _Contents:
    """Tells slices and files apart by what they hold; each file is looked into once, and only when needed."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._whole: dict[int, bytes] = {}
        self._same: dict[tuple[int, int], bool] = {}

    def same_attributes(self, one: DicomFile, other: DicomFile) -> bool:
        """Tell whether two objects have the same attributes but pixel data."""
        pair = one.number, other.number
        if pair not in self._same:
            try:
                equal = self._bytes(one) == self._bytes(other)  # most doubles are copies, and headers can be long
                self._same[pair] = equal or bool(one.header == other.header)
            except Exception:  # what damaged items of sequences make the parser raise is not foreseeable
                self._same[pair] = False
        return self._same[pair]

    def _bytes(self, file: DicomFile) -> bytes:
        if file.number not in self._whole:
            with file.path.open("rb") as stream:
                self._whole[file.number] = hashlib.file_digest(stream, "sha256").digest()
        return self._whole[file.number]

    def differing(self, slices: Sequence[SliceImage]) -> list[SliceImage]:
        """Return the slices without those that equal an earlier one in pixels and rescale."""
        if len(slices) == 1:
            return list(slices)
        first: dict[Hashable, SliceImage] = {}
        for image in slices:
            first.setdefault(self._content(image), image)
        return list(first.values())

    def _content(self, image: SliceImage) -> Hashable:
        attributes = tuple(str(image.header.get(keyword)) for keyword in _PIXEL_ATTRIBUTES)
        try:
            return (*attributes, image.frame, transfer_syntax(image.file.header), self._digest(image.file))
        except Exception:  # a damaged object can make the parser raise anything, and equals no other
            return id(image)

    def _digest(self, file: DicomFile) -> bytes:
        if file.number not in self._digests:
            self._digests[file.number] = hashlib.sha256(read_object(file.path).get("PixelData") or b"").digest()
        return self._digests[file.number]


# --- images that do not belong ---


def _in_one_plane(slices: Sequence[SliceImage]) -> tuple[list[SliceImage], int]:
    """Drop the few images that lie in another plane of the patient than all others: unmarked localizers."""
    planes = [plane_of(image.header) for image in slices]
    ((most, _),) = Counter(planes).most_common(1)
    kept = [image for image, plane in zip(slices, planes, strict=True) if plane in (most, "unknown")]
    if len(slices) - len(kept) > MAX_STRAYS:
        message = "The slices of the series lie in several planes; send one complete axial series."
        raise InputRefused(ReasonCode.INCONSISTENT_GEOMETRY, message)
    return kept, len(slices) - len(kept)


# --- several acquisitions of one place ---


def _one_acquisition(
    slices: list[SliceImage], kernel_rank: Callable[[str], int]
) -> tuple[list[SliceImage], list[Remark]]:
    """Take one of several acquisitions that overlap; acquisitions one after the other make one volume."""
    try:
        places = _along_normal(slices)
    except InputRefused:
        return slices, []  # refused with the right words when the slices are stacked
    for keyword in _ACQUISITIONS:
        values = np.array([str(image.header.get(keyword)) for image in slices])
        parts = [np.flatnonzero(values == value) for value in dict.fromkeys(values.tolist())]
        if len(parts) < 2 or not _overlap([places[part] for part in parts]):
            continue
        if keyword == "AcquisitionTime" and not _has_doubles(places):
            continue  # each slice of a step-and-shoot scan has its own time
        complete = [part for part in parts if len(part) >= MIN_SLICES and not _has_doubles(places[part])]
        if not complete:
            continue
        ranks = [kernel_rank(kernel_of(slices[part[0]].header)) for part in complete]
        in_order = [(-len(part), rank, *_in_order(values[part[0]])) for part, rank in zip(complete, ranks, strict=True)]
        best = complete[min(range(len(complete)), key=in_order.__getitem__)]
        message = f"The series holds {len(parts)} overlapping acquisitions; one of the longest was taken."
        return [slices[k] for k in best], [Remark(RemarkCode.ACQUISITION_CHOSEN, message)]
    return slices, []


def _in_order(value: str) -> tuple[float, str]:
    """Sort key of an attribute's value: numbers by their size, then words."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _along_normal(slices: Sequence[SliceImage]) -> Vectors:
    orientation = numbers(slices[0].header, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array([numbers(image.header, "ImagePositionPatient", 3) @ normal for image in slices])


def _overlap(parts: Sequence[Vectors]) -> bool:
    """Tell whether any two parts cover a common range of places."""
    ranges = sorted((float(part.min()), float(part.max())) for part in parts)
    return any(above[0] <= below[1] + SAME_POSITION_MM for below, above in pairwise(ranges))


def _has_doubles(places: Vectors) -> bool:
    return bool((np.diff(np.sort(places)) < SAME_POSITION_MM).any())


# --- frame of reference ---


def _with_frame_of_reference(slices: list[SliceImage]) -> tuple[list[SliceImage], list[Remark]]:
    """Complete a frame of reference that no slice names; refuse slices of several."""
    named = {str(image.header.get("FrameOfReferenceUID") or "") for image in slices}
    if named == {""}:
        uid = frame_of_reference_uid(str(slices[0].header.SeriesInstanceUID))
        completed = [replace(image, header=with_values(image.header, FrameOfReferenceUID=uid)) for image in slices]
        message = "The images name no frame of reference; the results name one that stands for the series."
        return completed, [Remark(RemarkCode.FRAME_OF_REFERENCE_ADDED, message)]
    if len(named) > 1:
        message = "The slices differ in FrameOfReferenceUID; send one complete axial series."
        raise InputRefused(ReasonCode.INCONSISTENT_GEOMETRY, message)
    if not UID(named.pop()).is_valid:
        message = "The slices have no valid FrameOfReferenceUID; send the original series of the scanner or PACS."
        raise InputRefused(ReasonCode.MISSING_ATTRIBUTE, message)
    return slices, []
