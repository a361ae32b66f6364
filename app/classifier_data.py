"""Studies for the classifier: real ones, and healthy lungs with the lesions of COVID-19 or of another pneumonia."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.training_data import as_volume, load_source, read_manifest, with_labels
from models.training.patterns import covid_like, other_pneumonia
from models.training.source import Augmentation, Source, degrade
from models.training.synthesis import insert_lesions
from operators.classification import HU_RANGE, classifier_input
from operators.findings import Lesions, Lungs

TRAINING, VALIDATION = 64, 16
"""How many studies are made."""
REAL_SHARE = 0.15
"""Share of studies that are real diseased ones, in varied image quality."""
UNAFFECTED_SHARE = 0.4
"""Share of the negative studies that show no lesion at all."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedStudies:
    """Studies in memory at 8 bit a value; unpacked when asked for."""

    inputs: Sequence[npt.NDArray[np.uint8]]
    labels: Sequence[int]

    def __len__(self) -> int:
        """Count the studies."""
        return len(self.inputs)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        """Return slices (n, 2, H, W) in [0, 1] and the label."""
        return torch.from_numpy(self.inputs[index]).float() / 255.0, self.labels[index]


def classifier_studies(manifest_path: Path, cache: Path, seed: int) -> tuple[PackedStudies, PackedStudies]:
    """Make training and validation studies, half of them positive.

    The validation studies have other lesions but come from the same few patients: they serve to stop early and
    measure nothing else.
    """
    manifest = read_manifest(manifest_path)
    healthy: list[Source] = []
    real: dict[bool, list[Source]] = {True: [], False: []}
    for entry in manifest.studies:
        source = load_source(entry, cache, lambda line: None)
        if entry.healthy:
            healthy.append(source)
        else:
            real[entry.positive].append(with_labels(source, cache))
    rng = np.random.default_rng(seed)
    packed = [_pack(_draw(healthy, real, k % 2 == 1, rng), rng) for k in range(TRAINING + VALIDATION)]
    labels = [k % 2 for k in range(TRAINING + VALIDATION)]
    return PackedStudies(packed[:TRAINING], labels[:TRAINING]), PackedStudies(packed[TRAINING:], labels[TRAINING:])


def _draw(
    healthy: Sequence[Source], real: dict[bool, list[Source]], positive: bool, rng: np.random.Generator
) -> Source:
    """Draw one study: a real one, or a healthy one with the lesions that belong to the label."""
    if real[positive] and rng.random() < REAL_SHARE:
        return real[positive][int(rng.integers(len(real[positive])))]
    source = healthy[int(rng.integers(len(healthy)))]
    if not positive and rng.random() < UNAFFECTED_SHARE:
        return source
    pattern = covid_like(rng) if positive else other_pneumonia(rng)
    hu, lesions = insert_lesions(source.hu.astype(np.float32), source.lungs, source.spacing, pattern, rng)
    return Source(source.name, np.round(hu).astype(np.int16), source.lungs, lesions, source.spacing)


def _pack(source: Source, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Make the two channels as the application does, and vary image quality and side."""
    volume = as_volume(source)
    inputs, _ = classifier_input(volume, Lungs(source.lungs, volume.grid), Lesions(source.lesions, volume.grid))
    low, high = HU_RANGE
    hu = degrade(torch.from_numpy(inputs[:, 0] * (high - low) + low), Augmentation(noise=40.0), rng).numpy()
    inputs[:, 0] = np.where(inputs[:, 0] > 0, ((hu - low) / (high - low)).clip(0.0, 1.0), 0.0)
    if rng.random() < 0.5:
        inputs = inputs[..., ::-1]
    return np.ascontiguousarray(np.round(inputs * 255.0).astype(np.uint8))
