"""Secondary capture pictures of the slices that matter (PS3.3 A.8.1): lesions and relevance, readable by eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from operators.findings import Explanation, Lesions, Lungs
from operators.identity import (
    LOSSY,
    Provenance,
    contributing_equipment,
    derived_uid,
    equipment,
    sign,
    source_headers,
)
from operators.journal import Journal
from operators.page import RGBImage, direction_letter
from operators.rendering import render_overlay
from operators.saving import save
from operators.summary_page import SUMMARY_INPUTS, Summary, receive_summary, render_summary
from operators.volume import CTVolume, plane_areas

SERIES_NUMBER = 9003
SERIES_DESCRIPTION = "COVID-CT pictures (research)"
"""Short: viewers write it over the pictures."""
FOLDER = Path("sc")
SUMMARY = "summary.dcm"
KEY_SLICES = 6


def choose_key_slices(
    lungs: Lungs, lesions: Lesions, explanation: Explanation, places: Sequence[int], count: int = KEY_SLICES
) -> list[int]:
    """Choose the slices that show most: large lesions, much relevance, spread over the lungs.

    A slice scores its lesion area and its absolute relevance, each as a share of the largest. The best slice
    with lesions is taken again and again, each time leaving out its surroundings. Where there are no lesions,
    the slices are spread evenly over the lungs.

    Parameters
    ----------
    lungs, lesions
        Findings on the grid of the CT.
    explanation : Explanation
        Heatmaps, arranged as the CT is.
    places : sequence of int
        Slices that may be chosen: those with a source image.
    count : int
        At most this many.

    Returns
    -------
    list of int
        Slices of the CT, ascending; none next to another.

    Raises
    ------
    ValueError
        If no image shows a lung, or ``count`` is not positive.
    """
    shown = np.isin(np.arange(lungs.grid.shape[0]), places)
    occupied = np.flatnonzero((plane_areas(lungs.labels) > 0) & shown)
    if count < 1 or not occupied.size:
        raise ValueError("key slices need a positive count and at least one image of a lung")
    area = np.where(shown, plane_areas(lesions.labels), 0).astype(np.float64)
    if not area.any():
        return _spread(occupied, count)
    relevance = _relevance_by_slice(lesions, explanation)
    score = np.where(area > 0, area / area.max() + relevance / max(relevance.max(), np.finfo(float).tiny), 0.0)
    distance = max(2, occupied.size // (3 * count))
    chosen: list[int] = []
    while score.any() and len(chosen) < count:
        best = int(score.argmax())
        chosen.append(best)
        score[max(0, best - distance + 1) : best + distance] = 0.0
    return sorted(chosen)


def _spread(occupied: npt.NDArray[np.int64], count: int) -> list[int]:
    """Evenly spaced slices, in the middle of equal parts of the lungs, none next to another."""
    count = min(count, (occupied.size + 1) // 2)
    middles = (np.arange(count) + 0.5) * occupied.size / count - 0.5
    return [int(slice_) for slice_ in occupied[np.rint(middles).astype(int)]]


def _relevance_by_slice(lesions: Lesions, explanation: Explanation) -> npt.NDArray[np.float64]:
    """Absolute relevance of both channels in the nearest slice of the classifier's grid; 0 beyond its ends."""
    total = np.sum(np.abs(explanation.ct) + np.abs(explanation.lesions), axis=(1, 2), dtype=np.float64)
    to_classifier = np.linalg.inv(explanation.grid.affine) @ lesions.grid.affine
    slices = np.arange(lesions.grid.shape[0])
    nearest = np.floor(to_classifier[0, 0] * slices + to_classifier[0, 3] + 0.5).astype(int)
    inside = (nearest >= 0) & (nearest < total.size)
    return np.where(inside, np.take(total, nearest, mode="clip"), 0.0)


def _source_image(volume: CTVolume, index: int) -> Dataset:
    """Refer to the image of a slice."""
    source = volume.places.index(index)
    item = Dataset()
    item.ReferencedSOPClassUID = volume.headers[source].SOPClassUID
    item.ReferencedSOPInstanceUID = volume.headers[source].SOPInstanceUID
    if volume.frames[source]:
        item.ReferencedFrameNumber = volume.frames[source]
    return item


class _Page(NamedTuple):
    """A page, and what it shows."""

    kind: str
    """Tells it from the other pictures of the study."""
    sources: Sequence[int]
    """Slices of the CT that it shows; each has an image."""
    pixels: RGBImage
    oriented: bool
    """All its panels are oriented as the slices of the CT are."""


def _pages(summary: Summary, key_slices: int) -> Iterator[_Page]:
    """Draw the summary page, then the key slices from the last slice (the head) to the first (the feet)."""
    study = summary.study
    # The summary shows planes across the slices: it shows all of them.
    yield _Page("summary", study.volume.places, render_summary(summary), oriented=False)
    chosen = choose_key_slices(study.lungs, study.lesions, study.explanation, study.volume.places, key_slices)
    for index in reversed(chosen):
        yield _Page(f"key slice {index}", [index], render_overlay(study, index), oriented=True)


def _coded(page: _Page) -> tuple[_Page, bytes]:
    """Code a page losslessly; the colour transform of JPEG 2000 makes what is grey cost a third (PS3.5, 8.2.4)."""
    coded = imagecodecs.jpeg2k_encode(page.pixels, level=0, codecformat="j2k", reversible=True, mct=True)
    return page, bytes(coded)


def make_pictures(summary: Summary, provenance: Provenance, key_slices: int = KEY_SLICES) -> list[SCImage]:
    """Make the pictures of a study.

    Parameters
    ----------
    summary : Summary
        What to show.
    provenance : Provenance
        What produces the pictures.
    key_slices : int
        At most this many.

    Returns
    -------
    list of SCImage
        The summary page, then the key slices from the head to the feet, numbered from 1. JPEG 2000 Lossless, in colour.
    """
    with ThreadPoolExecutor() as pool:  # one page is coded while the next is drawn
        coded = list(pool.map(_coded, _pages(summary, key_slices)))
    return [_picture(summary.study.volume, *each, number, provenance) for number, each in enumerate(coded, start=1)]


def _picture(volume: CTVolume, page: _Page, codestream: bytes, number: int, provenance: Provenance) -> SCImage:
    """Make a secondary capture of a page that is coded in JPEG 2000; ``number`` is its instance number."""
    first = source_headers(volume)[0]
    down, right = (direction_letter(direction) for direction in volume.grid.affine[:3, 1:3].T)
    image = SCImage.from_ref_dataset(
        ref_dataset=first,
        pixel_array=page.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(right, down),
        series_instance_uid=derived_uid(volume, provenance, "key slices series"),
        series_number=SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=derived_uid(volume, provenance, page.kind),
        instance_number=number,
        contributing_equipment=contributing_equipment(provenance),
        **equipment(volume, provenance),
    )
    image.copy_patient_and_study_information(first)
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.ConversionType = "WSD"
    # What acquired the data (PS3.3, C.7.3.1.1.1). Of OT, viewers offer to play a film.
    image.Modality = first.get("Modality") or "CT"
    image.BodyPartExamined = "CHEST"
    image.BurnedInAnnotation = "YES"
    image.DateOfSecondaryCapture, image.TimeOfSecondaryCapture = image.ContentDate, image.ContentTime
    image.SourceImageSequence = [_source_image(volume, index) for index in page.sources]
    for keyword in LOSSY:
        if first.get(keyword):
            setattr(image, keyword, first[keyword].value)
    if not page.oriented:
        image.PatientOrientation = []
    image.PixelData = encapsulate([codestream])
    image.PhotometricInterpretation = "YBR_RCT"
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    sign(image, volume, provenance)
    return image


def write_pictures(summary: Summary, provenance: Provenance, folder: Path, key_slices: int = KEY_SLICES) -> int:
    """Make the pictures, save them in :data:`FOLDER` of ``folder`` and return how many key slices there are."""
    page, *slices = make_pictures(summary, provenance, key_slices)
    save(page, folder / FOLDER / SUMMARY)
    for number, image in enumerate(slices, start=1):
        save(image, folder / FOLDER / f"keyslice_{number:02d}.dcm")
    return len(slices)


class ScWriterOperator(Operator):
    """Write the summary page to ``sc/summary.dcm``, the key slices to ``sc/keyslice_01.dcm`` and so on.

    Named inputs ``volume``, ``lungs``, ``lesions``, ``classification``, ``explanation``, ``measurements``, ``remarks``.

    Parameters
    ----------
    folder : Path
        Folder of the outputs.
    provenance : Provenance
        What produces the pictures.
    key_slices : int
        At most this many pictures.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        folder: Path,
        provenance: Provenance,
        key_slices: int = KEY_SLICES,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._folder = folder
        self._provenance = provenance
        self._key_slices = key_slices
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in SUMMARY_INPUTS:
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, draw and write the pictures."""
        summary = receive_summary(op_input, self._provenance.models.records)
        with self._journal.node("Pictures writer") as found:
            count = write_pictures(summary, self._provenance, self._folder, self._key_slices)
            found(f"summary and {count} key slices")
