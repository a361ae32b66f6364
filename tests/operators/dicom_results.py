"""Findings for the tests of the writers, and validators from outside this project."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from models.record import ModelRecord
from operators.ct_images import with_values
from operators.findings import Classification, Explanation, Involvement, Lesions, LesionType, Lung, Lungs
from operators.identity import ModelSet, Provenance
from operators.measurements import Measurements, measure
from operators.relevance_summary import RelevanceSummary, summarise_relevance
from operators.rendering import Study
from operators.volume import CTVolume, LabelArray
from tests.builders import ct_volume
from tests.validation.tools import dciodvfy, unexplained

SHAPE = (12, 40, 48)


def record(name: str, weights: str = "0") -> ModelRecord:
    return ModelRecord(name, "0.1", weights * 64)


def provenance(settings: str = "threshold=0.5", lungs: str = "1") -> Provenance:
    models = ModelSet(record("DeepMedic", lungs), record("3D U-Net", "2"), record("2DS", "3"), record("NetVLAD", "4"))
    return Provenance(models, settings, datetime(2026, 1, 2, 3, 4, 5, 678))


def both_lungs() -> LabelArray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:10, 8:32, 6:20] = Lung.RIGHT
    labels[1:11, 8:34, 27:42] = Lung.LEFT
    return labels


def all_types() -> LabelArray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[3:6, 10:16, 8:13] = LesionType.GROUND_GLASS
    labels[4:8, 20:26, 30:34] = LesionType.CONSOLIDATION
    labels[8:10, 12:15, 35:40] = LesionType.CRAZY_PAVING
    labels[6, 25:29, 10:12] = LesionType.COMBINED
    return labels


@dataclass(frozen=True)
class Case:
    """All findings of one study."""

    volume: CTVolume
    lungs: Lungs
    lesions: Lesions
    classification: Classification
    explanation: Explanation
    measurements: Measurements

    @property
    def study(self) -> Study:
        return Study(self.volume, self.lungs, self.lesions, self.classification, self.explanation)

    @property
    def relevance(self) -> RelevanceSummary:
        return summarise_relevance(self.classification, self.explanation)


def case(
    lungs: LabelArray | None = None,
    lesions: LabelArray | None = None,
    probability: float = 0.8125,
    **attributes: object,
) -> Case:
    random = np.random.default_rng(7)
    lung_labels = both_lungs() if lungs is None else lungs
    lesion_labels = all_types() if lesions is None else lesions
    hu = np.where(lung_labels > 0, -850.0, 40.0) + np.where(lesion_labels > 0, 400.0, 0.0)
    volume = ct_volume(hu + random.normal(0, 20, SHAPE), **attributes)
    coarse = volume.grid.resampled((12, 20, 24))
    classification = Classification(np.zeros((12, 2, 20, 24), np.float32), coarse, (0.0, 1.0), probability, 0.5)
    ct, mask = (random.normal(0, 1, coarse.shape).astype(np.float32) for _ in range(2))
    found = Lungs(lung_labels, volume.grid), Lesions(lesion_labels, volume.grid)
    return Case(
        volume,
        *found,
        classification,
        Explanation(ct, mask, coarse, 1, 1.5),
        measure(volume, *found, Involvement(lesion_labels > 0, volume.grid)),
    )


def one_lung() -> Case:
    lungs = both_lungs()
    lungs[lungs == Lung.LEFT] = 0
    return case(lungs, np.where(lungs > 0, all_types(), 0).astype(np.uint8))


def no_lesions() -> Case:
    return case(lesions=np.zeros(SHAPE, dtype=np.uint8), probability=0.125)


def multi_frame(objects: int = 1) -> CTVolume:
    """The same CT as one Enhanced CT object, or as several of which each has as many slices as the others."""
    volume = case().volume
    each = len(volume.headers) // objects
    headers = [
        with_values(header, SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID=f"1.2.{3 + k // each}")
        for k, header in enumerate(volume.headers)
    ]
    return CTVolume(volume.hu, volume.grid, headers, frames=tuple(1 + k % each for k in range(len(headers))))


CASES = {"all types": case, "no lesions": no_lesions, "one lung": one_lung}


def written(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def assert_valid(dataset: Dataset, folder: Path) -> None:
    """``dciodvfy`` (dicom3tools) says nothing that the conformance statement does not explain."""
    assert not unexplained(dciodvfy(written(dataset, folder / "object.dcm")))
