"""Secondary capture pictures of the slices that matter (PS3.3 A.8.1): lesions and relevance, readable by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless
from pydicom.valuerep import DA, TM

from operators.findings import Explanation, Lesions, Lungs
from operators.identity import (
    Provenance,
    contributing_equipment,
    derived_uid,
    equipment,
    sign,
    source_headers,
)
from operators.journal import Journal
from operators.rendering import RGBImage, Study, direction_letter, render_overlay
from operators.summary_page import Summary, most_affected, render_summary
from operators.volume import CTVolume

SERIES_NUMBER = 9003
SERIES_DESCRIPTION = "COVID-CT summary and key slices (research)"
FOLDER = Path("sc")
SUMMARY = "summary.dcm"
KEY_SLICES = 6
_STUDY = ("volume", "lungs", "lesions", "classification", "explanation")
"""Inputs that make a :class:`~operators.rendering.Study`, in its order."""


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
    occupied = np.flatnonzero(np.any(lungs.labels, axis=(1, 2)) & shown)
    if count < 1 or not occupied.size:
        raise ValueError("key slices need a positive count and at least one image of a lung")
    area = np.where(shown, np.count_nonzero(lesions.labels, axis=(1, 2)), 0).astype(np.float64)
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


def make_key_image(study: Study, index: int, number: int, provenance: Provenance) -> SCImage:
    """Make the picture of one slice, which must have a source image; ``number`` is its instance number."""
    return _picture(study.volume, render_overlay(study, index), f"key slice {index}", [index], number, provenance)


def make_summary_image(summary: Summary, provenance: Provenance) -> SCImage:
    """Make the summary page, the first picture of the series."""
    volume = summary.study.volume
    nearest = min(volume.places, key=lambda place: abs(place - most_affected(summary.study, "axial")))
    return _picture(volume, render_summary(summary), "summary", [nearest], 1, provenance)


def _picture(
    volume: CTVolume, pixels: RGBImage, kind: str, sources: Sequence[int], number: int, provenance: Provenance
) -> SCImage:
    """Make a secondary capture.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    pixels : ndarray of uint8, shape (rows, columns, 3)
        RGB.
    kind : str
        Tells it from the other pictures of the study.
    sources : sequence of int
        Slices of the CT that it shows; each has a source image.
    number : int
        Instance number, from 1.
    provenance : Provenance
        What produces the picture.

    Returns
    -------
    SCImage
        RGB, JPEG-LS Lossless.
    """
    first = source_headers(volume)[0]
    down, right = (direction_letter(direction) for direction in volume.grid.affine[:3, 1:3].T)
    image = SCImage.from_ref_dataset(
        ref_dataset=first,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(right, down),
        series_instance_uid=derived_uid(volume, provenance, "key slices series"),
        series_number=SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=derived_uid(volume, provenance, kind),
        instance_number=number,
        transfer_syntax_uid=JPEGLSLossless,
        contributing_equipment=contributing_equipment(provenance),
        **equipment(provenance),
    )
    image.copy_patient_and_study_information(first)
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BodyPartExamined = "CHEST"
    image.BurnedInAnnotation = "YES"
    image.DateOfSecondaryCapture = DA(provenance.produced.date())
    image.TimeOfSecondaryCapture = TM(provenance.produced.time())
    image.SourceImageSequence = [_source_image(volume, index) for index in sources]
    sign(image, volume, provenance)
    return image


def make_key_images(study: Study, provenance: Provenance, count: int = KEY_SLICES) -> list[SCImage]:
    """Make the pictures of the key slices, from the last slice (the head) to the first (the feet), numbered from 2."""
    chosen = choose_key_slices(study.lungs, study.lesions, study.explanation, study.volume.places, count)
    return [make_key_image(study, index, number, provenance) for number, index in enumerate(reversed(chosen), 2)]


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
        self._folder = folder / FOLDER
        self._provenance = provenance
        self._key_slices = key_slices
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in (*_STUDY, "measurements", "remarks"):
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, draw and write the pictures."""
        study = Study(*(op_input.receive(name) for name in _STUDY))
        measurements, remarks = op_input.receive("measurements"), op_input.receive("remarks")
        with self._journal.node("Pictures writer") as found:
            summary = Summary(study, measurements, remarks, self._provenance.models.records)
            images = make_key_images(study, self._provenance, self._key_slices)
            self._folder.mkdir(parents=True, exist_ok=True)
            make_summary_image(summary, self._provenance).save_as(self._folder / SUMMARY, enforce_file_format=True)
            for number, image in enumerate(images, start=1):
                image.save_as(self._folder / f"keyslice_{number:02d}.dcm", enforce_file_format=True)
            found(f"summary and {len(images)} key slices")
