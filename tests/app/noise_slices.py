"""A cohort that is prepared at once: what the classifier sees of a study is noise, or the study is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.cohort.cache import Array
from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy, Split, write_table
from app.outcome import UsageError
from models.classifier.studies import CT, LABELS
from operators.refusal import no_lungs


@dataclass(frozen=True)
class NoiseSlices:
    """Prepares a study as slices of noise, unless its file says that it is to be refused, or is broken."""

    made_with: Mapping[str, object]
    name: str = "noise"

    def make(self, study: CohortStudy) -> tuple[dict[str, Array], dict[str, str]]:
        content = study.path.read_text()
        if content == "refused":
            raise StudyRefused(study, no_lungs())
        if content == "broken":
            raise UsageError(f"study {study.path.name}: it is broken")
        slices = np.random.default_rng(int(content)).random((4, 32, 32))
        arrays: dict[str, Array] = {CT: slices.astype(np.float16), LABELS: np.ones(slices.shape, np.uint8)}
        return arrays, {"attributes": "{}", "involvement": "1.5", "spacing": "[1, 1, 1]"}


def write_noise_cohort(folder: Path, splits: Sequence[Split]) -> None:
    """Write a table of as many studies, turn by turn negative and positive: ``ct0.nii.gz`` and so on."""
    studies = []
    for number, split in enumerate(splits):
        (folder / f"ct{number}.nii.gz").write_text(str(number))
        studies.append(CohortStudy(f"p{number}", folder / f"ct{number}.nii.gz", number % 2, split=split))
    write_table(folder, studies)
