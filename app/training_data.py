"""What the training commands learn from: a manifest of CT studies, read once and kept in a cache."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydicom import Dataset
from scipy import ndimage

from app.outcome import UsageError
from models.involvement.training import AnnotatedSlices
from models.lungs.reference import reference_lungs
from models.training.source import LabelArray, Source
from models.training.synthesis import Pattern, insert_lesions
from models.unet import UNet
from operators.findings import Lungs
from operators.involvement import segment_involvement
from operators.resampling import resample, shape_at
from operators.series_loader import load_ct_series
from operators.volume import CTVolume, FloatArray, Grid

SOURCE_SPACING = (2.0, 1.0, 1.0)
"""Voxel size of the cached volumes in mm (z, y, x): finer than what any network sees."""
DENSE_HU = -300.0
"""Smoothed attenuation above which affected lung counts as consolidation, below as ground glass."""
Tell = Callable[[str], None]


class StudyEntry(BaseModel):
    """One CT study of the manifest.

    Parameters
    ----------
    name : str
        Names the cache file; not a patient's name.
    folder : Path
        DICOM folder, relative to the manifest.
    healthy : bool
        No lesions: lesions are inserted, and what a network finds here is wrong.
    positive : bool
        COVID-19, for the classifier.
    slice_labels : str, optional
        Value of the column ``case`` of the manifest's ``slice_labels`` that belongs to this study.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: Path
    healthy: bool
    positive: bool = False
    slice_labels: str | None = None


class Manifest(BaseModel):
    """Data for training, as a YAML file.

    Parameters
    ----------
    studies : tuple of StudyEntry
    slice_labels : Path, optional
        CSV with the columns ``case``, ``slice_from_head`` (0 is the highest slice) and ``infected`` (0 or 1).
    annotated_slices : Path, optional
        NPZ with ``ct`` (uint8; n, rows, columns) and packed bits ``lungs`` and ``infection`` of the same size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    studies: tuple[StudyEntry, ...]
    slice_labels: Path | None = None
    annotated_slices: Path | None = None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; paths in it become absolute.

    Raises
    ------
    UsageError
        If it cannot be read or says something unknown.
    """
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read the manifest {path}") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise UsageError(f"the manifest {path} is not as documented: {str(error).splitlines()[0]}") from error
    home = path.absolute().parent
    studies = tuple(study.model_copy(update={"folder": home / study.folder}) for study in manifest.studies)
    files = {name: home / value for name in ("slice_labels", "annotated_slices") if (value := getattr(manifest, name))}
    return manifest.model_copy(update={"studies": studies, **files})


def load_source(entry: StudyEntry, cache: Path, tell: Tell) -> Source:
    """Return a study's CT and reference lungs on a grid of :data:`SOURCE_SPACING`, from the cache where it is there."""
    file = cache / f"{entry.name}.npz"
    if not file.exists():
        tell(f"{entry.name}: reading and finding the reference lungs")
        volume = load_ct_series(entry.folder)
        lungs = reference_lungs(volume.hu, volume.grid.spacing)
        grid = volume.grid.resampled(shape_at(volume.grid, SOURCE_SPACING))
        labels = np.zeros(grid.shape, np.uint8)
        for side in (1, 2):
            labels[resample((lungs == side).astype(np.float32), grid.shape) >= 0.5] = side
        cache.mkdir(parents=True, exist_ok=True)
        hu = np.round(resample(volume.hu, grid.shape)).astype(np.int16)
        np.savez_compressed(file, hu=hu, lungs=labels, spacing=np.array(grid.spacing))
    with np.load(file, allow_pickle=False) as data:
        z, y, x = data["spacing"].tolist()
        return Source(entry.name, data["hu"], data["lungs"], np.zeros_like(data["lungs"]), (z, y, x))


def load_sources(manifest: Path, cache: Path, tell: Tell) -> list[tuple[StudyEntry, Source]]:
    """Return every study of a manifest with its source.

    Raises
    ------
    UsageError
        If the manifest cannot be used.
    """
    return [(entry, load_source(entry, cache, tell)) for entry in read_manifest(manifest).studies]


def with_lesions(source: Source, patterns: Sequence[Pattern], seed: int) -> list[Source]:
    """Return one variant of a healthy source for each pattern, with lesions inserted."""
    variants = []
    for k, pattern in enumerate(patterns):
        rng = np.random.default_rng((seed, k))
        hu, lesions = insert_lesions(source.hu.astype(np.float32), source.lungs, source.spacing, pattern, rng)
        rounded = np.round(hu).astype(np.int16)
        variants.append(Source(f"{source.name}+{k}", rounded, source.lungs, lesions, source.spacing))
    return variants


def load_annotated_slices(path: Path) -> AnnotatedSlices:
    """Read the annotated slices of a manifest."""
    with np.load(path, allow_pickle=False) as data:
        ct = data["ct"]
        lungs, infection = (
            np.unpackbits(data[name])[: ct.size].reshape(ct.shape).astype(bool) for name in ("lungs", "infection")
        )
    return AnnotatedSlices(ct, lungs, infection & lungs)


def infected_slices(manifest: Manifest, entry: StudyEntry, slices: int) -> npt.NDArray[np.bool_] | None:
    """Return, for a source with ``slices`` slices from feet to head, which are infected; None where not labelled."""
    if manifest.slice_labels is None or entry.slice_labels is None:
        return None
    with manifest.slice_labels.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == entry.slice_labels]
    rows.sort(key=lambda row: -int(row["slice_from_head"]))
    labels = np.array([row["infected"] == "1" for row in rows])
    return np.asarray(labels[(np.arange(slices) * len(labels)) // slices])


def as_volume(source: Source) -> CTVolume:
    """Return a source as a volume without provenance, for the operators' pure functions."""
    return bare_volume(source.hu.astype(np.float32), source.spacing)


def bare_volume(hu: FloatArray, spacing: tuple[float, float, float]) -> CTVolume:
    """Return an axial volume without provenance; ``hu`` (z, y, x) from feet to head, ``spacing`` likewise in mm."""
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]  # columns z, y, x; rows x, y, z
    return CTVolume(hu, Grid(hu.shape, affine), (Dataset(),) * hu.shape[0])


def label_lesions(source: Source, network: UNet, infected: npt.NDArray[np.bool_] | None, cache: Path) -> Source:
    """Label a diseased source with what 2DS finds, typed by attenuation, cleared where the slice labels say healthy.

    Only ground glass and consolidation are told apart. The labels are kept in the cache for the other recipes.
    """
    volume = as_volume(source)
    found = segment_involvement(volume, Lungs(source.lungs, volume.grid), network).mask.copy()
    if infected is not None:
        found[~infected] = False
    lesions = _typed(source, found)
    np.savez_compressed(_label_file(source, cache), lesions=lesions)
    return replace(source, lesions=lesions)


def with_labels(source: Source, cache: Path) -> Source:
    """Return a diseased source with the labels that :func:`label_lesions` kept.

    Raises
    ------
    UsageError
        If there are none.
    """
    file = _label_file(source, cache)
    if not file.exists():
        raise UsageError(f"{source.name} has no lesion labels yet: train involvement first, with the same cache")
    with np.load(file, allow_pickle=False) as data:
        return replace(source, lesions=data["lesions"])


def _label_file(source: Source, cache: Path) -> Path:
    return cache / f"{source.name}.lesions.npz"


def _typed(source: Source, affected: npt.NDArray[np.bool_]) -> LabelArray:
    """Ground glass (1) or consolidation (2) by the mean attenuation of the affected lung within about 3 mm."""
    sigma = [3.0 / step for step in source.spacing]
    weight = ndimage.gaussian_filter(affected.astype(np.float32), sigma)
    mean = ndimage.gaussian_filter(np.where(affected, source.hu, 0).astype(np.float32), sigma) / np.maximum(
        weight, 1e-3
    )
    return np.where(affected, np.where(mean > DENSE_HU, 2, 1), 0).astype(np.uint8)
