"""What is made of a study before networks learn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from app.cohort.attributes import attributes_of
from app.cohort.cache import Array
from app.cohort.images import load_mask, load_study
from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy
from app.outcome import RunFailed, UsageError
from models.classifier.studies import CT, LABELS, LESION, LUNG
from models.hounsfield import whole
from models.involvement.network import InvolvementNetwork
from models.lesions.network import UNKNOWN_TYPE, LesionNetwork
from models.lungs.network import DeepMedic
from models.lungs.reference import AERATED_HU, air_in_body
from models.morphology import body_region
from models.record import ModelUnavailable, code_digest, read_model
from models.runtime import Engine, choose
from models.training.volumes import COVERAGE, HU, LESIONS, LUNGS, POINTS
from operators.classification import classifier_input
from operators.findings import Lesions, Lung, Lungs
from operators.involvement import segment_involvement
from operators.lesion_segmentation import segment_lesions
from operators.lung_segmentation import segment_lungs
from operators.orientation import standard_arrangement, standard_volume
from operators.refusal import InputRefused, ReasonCode
from operators.resampling import resample, shape_at
from operators.volume import BoolArray, CTVolume, FloatArray, Grid, LabelArray

POINTS_KEPT = 2000
"""Voxels of each kind to centre patches on that are kept of a study, evenly over all."""
LUNG_HU = (-1000.0, 0.0)
"""Range of the median over both lungs, however diseased."""
BESIDE_HU = -950
"""Outside the body, what is denser is no air: table, clothes, cables."""
_CODE = ("app/cohort", "models", "operators")
"""What a prepared study depends on: with any other code it may be another one."""
SEGMENTING = ("lungs", "lesions", "involvement")
"""The models whose findings the classifier learns from, or is judged beside."""


@dataclass(frozen=True)
class VolumePreparation:
    """CT and masks at the working resolution of a segmentation network.

    Parameters
    ----------
    spacing : tuple of float
        In mm along z, y, x; None leaves the slices as they are.
    masks : tuple of str
        ``lungs``, and ``lesions`` where they are learned; a study must have them.
    """

    spacing: tuple[float | None, float, float]
    masks: tuple[str, ...]

    @property
    def made_with(self) -> Mapping[str, object]:
        """Resolution and masks."""
        return {"code": code_digest(*_CODE), "spacing": list(self.spacing), "masks": list(self.masks)}

    @property
    def name(self) -> str:
        """Say the resolution."""
        return "volumes-" + "x".join("z" if step is None else f"{step:g}" for step in self.spacing)

    def make(self, study: CohortStudy) -> tuple[dict[str, Array], dict[str, str]]:
        """Prepare a study for :class:`~models.training.volumes.Volume`.

        Raises
        ------
        UsageError
            If it cannot be read or lacks a mask.
        """
        volume = load_study(study)
        masks = {name: _mask(study, name, volume) for name in self.masks}
        try:
            _check_hu(volume, masks[LUNGS] > 0)
        except InputRefused as refusal:
            raise StudyRefused(study, refusal) from refusal
        upright = standard_volume(volume)
        z, y, x = self.spacing
        grid = upright.grid.resampled(shape_at(upright.grid, (upright.grid.spacing[0] if z is None else z, y, x)))
        hu = whole(resample(upright.hu, grid.shape))
        arrays: dict[str, Array] = {HU: hu}
        turn = standard_arrangement(volume.grid)
        upright_masks = {name: turn.apply(mask) for name, mask in masks.items()}
        arrays |= {name: _fit(mask, grid.shape) for name, mask in upright_masks.items()}
        if LESIONS not in masks:
            share = resample((upright_masks[LUNGS] > 0).astype(np.float32), grid.shape)
            arrays[COVERAGE] = np.rint(255.0 * share).astype(np.uint8)
        arrays |= _points(arrays, grid.spacing)
        return arrays, {}


_ENGINE: Engine = "openvino"
"""On the CPU, for as many processes prepare as there are cores, too many for a GPU."""


@dataclass(frozen=True)
class SlicePreparation:
    """What the classifier sees, found by the segmentation networks of a models folder as the application does.

    Parameters
    ----------
    models : Path
        Models folder.
    hashes : tuple of str
        Of its segmentation models; see :func:`slice_preparation`.
    in_plane : int
        Size in pixels of the larger side of the slices.
    """

    models: Path
    hashes: tuple[str, ...]
    in_plane: int

    @property
    def made_with(self) -> Mapping[str, object]:
        """Models and size."""
        runtime = choose(_ENGINE)
        return {
            "code": code_digest(*_CODE),
            "models": list(self.hashes),
            "in_plane": self.in_plane,
            "runtime": runtime.name,
            "precision": runtime.precision,
        }

    @property
    def name(self) -> str:
        """Say the size."""
        return f"slices-{self.in_plane}"

    def make(self, study: CohortStudy) -> tuple[dict[str, Array], dict[str, str]]:
        """Prepare a study for :class:`~models.classifier.studies.PreparedStudy`; say its attributes and involvement.

        Raises
        ------
        StudyRefused
            If the system refuses it, as where no lungs are found, or its values are no Hounsfield units.
        UsageError
            If it cannot be read.
        RunFailed
            If a model is missing or altered.
        """
        try:
            return self._make(load_study(study))
        except InputRefused as refusal:
            raise StudyRefused(study, refusal) from refusal

    def _make(self, volume: CTVolume) -> tuple[dict[str, Array], dict[str, str]]:
        lungs_network, lesions_network, involvement_network = _networks(self.models, self.hashes)
        lungs = segment_lungs(volume, lungs_network)
        _check_hu(volume, lungs.mask)
        lesions = segment_lesions(volume, lungs, lesions_network)
        involvement = segment_involvement(volume, lungs, involvement_network)
        arrays, said = _seen(volume, lungs, lesions, self.in_plane)
        percent = 100.0 * float(involvement.mask.sum() / lungs.mask.sum())
        return arrays, said | {
            "attributes": json.dumps(attributes_of(volume.headers[0])),
            "involvement": f"{percent:.4f}",
        }


@dataclass(frozen=True)
class GivenSlices:
    """What the classifier would see if the masks of a cohort had been found; see :class:`SlicePreparation`.

    Parameters
    ----------
    in_plane : int
        Size in pixels of the larger side of the slices.
    """

    in_plane: int

    @property
    def made_with(self) -> Mapping[str, object]:
        """Size."""
        return {"code": code_digest(*_CODE), "in_plane": self.in_plane}

    @property
    def name(self) -> str:
        """Say the size."""
        return f"given-{self.in_plane}"

    def make(self, study: CohortStudy) -> tuple[dict[str, Array], dict[str, str]]:
        """Prepare a study for :class:`~models.classifier.studies.PreparedStudy`.

        Raises
        ------
        StudyRefused
            If its values are no Hounsfield units, or no slice holds lung.
        UsageError
            If it cannot be read or lacks a mask.
        """
        volume = load_study(study)
        lungs = Lungs(_mask(study, LUNGS, volume), volume.grid)
        lesions = Lesions((_mask(study, LESIONS, volume) > 0).astype(np.uint8), volume.grid)  # of known type or not
        try:
            _check_hu(volume, lungs.mask)
            return _seen(volume, lungs, lesions, self.in_plane)
        except InputRefused as refusal:
            raise StudyRefused(study, refusal) from refusal


def _seen(volume: CTVolume, lungs: Lungs, lesions: Lesions, in_plane: int) -> tuple[dict[str, Array], dict[str, str]]:
    """Return what the classifier sees, and how far its voxels lie apart."""
    inputs, inside, grid = input_and_lung(volume, lungs, lesions, in_plane)
    labels = LESION * (inputs[:, 1] > 0) + LUNG * inside
    arrays: dict[str, Array] = {CT: inputs[:, 0].astype(np.float16), LABELS: labels.astype(np.uint8)}
    return arrays, {"spacing": json.dumps(grid.spacing)}


def input_and_lung(
    volume: CTVolume, lungs: Lungs, lesions: Lesions, in_plane: int
) -> tuple[FloatArray, BoolArray, Grid]:
    """Return the classifier's input, where it holds lung (slices, rows, columns), and its grid.

    Raises
    ------
    InputRefused
        NO_LUNGS if no slice holds lung.
    """
    inputs, grid = classifier_input(volume, lungs, lesions, in_plane)
    # the lungs are where the mask would be if all of them were lesion
    inside, _ = classifier_input(volume, lungs, Lesions(lungs.mask.astype(np.uint8), volume.grid), in_plane)
    return inputs, inside[:, 1] > 0, grid


def slice_preparation(models: Path, in_plane: int) -> SlicePreparation:
    """Prepare with the segmentation models of a folder.

    Raises
    ------
    ModelUnavailable
        If one is missing or altered.
    """
    records = [read_model(models / task)[0] for task in SEGMENTING]
    return SlicePreparation(models, tuple(f"{record.sha256} {record.settings}" for record in records), in_plane)


def segmentation_hashes(models: Path) -> dict[str, str]:
    """Return the hashes of the segmentation models of a folder, by task.

    Raises
    ------
    UsageError
        If one is missing or altered.
    """
    try:
        return {task: read_model(models / task)[0].sha256 for task in SEGMENTING}
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error


@cache
def _networks(models: Path, hashes: tuple[str, ...]) -> tuple[DeepMedic, LesionNetwork, InvolvementNetwork]:
    """Load the segmentation networks once in a process."""
    runtime = choose(_ENGINE)
    try:
        return (
            runtime.load(models / "lungs", DeepMedic)[0],
            runtime.load(models / "lesions", LesionNetwork)[0],
            runtime.load(models / "involvement", InvolvementNetwork)[0],
        )
    except ModelUnavailable as error:
        raise RunFailed(str(error)) from error


def _check_hu(volume: CTVolume, lungs: BoolArray) -> None:
    """Refuse what cannot be Hounsfield units: some public data sets are windowed or scaled to 0 to 255."""
    middle = float(np.median(volume.hu[lungs]))
    if not LUNG_HU[0] <= middle <= LUNG_HU[1]:
        message = f"The lungs lie at {middle:.0f} HU in the median, which cannot be: are the values Hounsfield units?"
        raise InputRefused(ReasonCode.IMPLAUSIBLE_HU, message)


def _mask(study: CohortStudy, name: str, volume: CTVolume) -> LabelArray:
    path = study.lungs if name == LUNGS else study.lesions
    if path is None:
        raise UsageError(f"study {study.path.name} has no mask of the {name}")
    try:
        labels = load_mask(path, volume.grid, max(Lung) if name == LUNGS else UNKNOWN_TYPE)
    except UsageError as error:
        raise UsageError(f"study {study.path.name}: {error}") from error
    if name == LUNGS and not labels.any():
        raise UsageError(f"study {study.path.name}: the mask {path.name} holds no lung")
    return labels


def _fit(labels: LabelArray, shape: tuple[int, int, int]) -> LabelArray:
    """Bring labels to another shape: a voxel has one where all together come to a half of it, and then the foremost."""
    if labels.shape == shape:
        return labels
    best, result = np.full(shape, 0.0, np.float32), np.zeros(shape, np.uint8)
    covered = resample((labels > 0).astype(np.float32), shape)
    for label in np.unique(labels[labels > 0]).tolist():
        share = resample((labels == label).astype(np.float32), shape)
        result[share > best] = label
        np.maximum(best, share, out=best)
    result[covered < 0.5] = 0
    return result


def _points(arrays: Mapping[str, Array], spacing: tuple[float, float, float]) -> dict[str, Array]:
    """Find the voxels to centre patches on, by kind."""
    lungs = arrays[LUNGS] > 0
    kinds: dict[str, Callable[[], BoolArray]] = {"lung": lambda: lungs}
    if LESIONS in arrays:
        lesions = arrays[LESIONS]
        kinds["lesion"] = lambda: lesions > 0
        kinds |= {f"lesion_{kind}": (lambda kind=kind: lesions == kind) for kind in range(1, UNKNOWN_TYPE + 1)}  # type: ignore[misc]
    else:
        kinds["surface"] = lambda: lungs & ~ndimage.binary_erosion(lungs)
        kinds["other_air"] = lambda: _other_air(arrays[HU].astype(np.float32), lungs, spacing)
        body = body_region(arrays[HU] > AERATED_HU, opening=1)
        kinds["body"] = lambda: body
        kinds["beside"] = lambda: ~body & ~lungs & (arrays[HU] > BESIDE_HU)
    return {f"{POINTS}{kind}": _some(mask()) for kind, mask in kinds.items()}


def _other_air(hu: Array, lungs: BoolArray, spacing: tuple[float, float, float]) -> BoolArray:
    """Mark air in the body that is not lung: airways and bowel."""
    near_lungs = ndimage.binary_dilation(lungs, iterations=2)
    return np.asarray(air_in_body(hu, spacing) & ~near_lungs)


def _some(mask: BoolArray) -> Array:
    """Return indices (n, 3) of at most :data:`POINTS_KEPT` voxels, evenly over the mask."""
    flat = np.flatnonzero(mask)
    chosen = flat[np.linspace(0, len(flat) - 1, min(len(flat), POINTS_KEPT)).astype(np.intp)] if len(flat) else flat
    return np.stack(np.unravel_index(chosen, mask.shape), axis=1).astype(np.int32)
