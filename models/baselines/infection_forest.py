"""A random forest on measurements of the infection, like iSARF.

Source: Shi et al. 2021, "Large-scale screening to distinguish between COVID-19 and community-acquired pneumonia using
infection size-aware classification", Physics in Medicine and Biology 66(6). As there, the features are volumes by
place, infected regions, a histogram and a surface. Three things differ: halves and thirds of the lungs stand for lobes
and segments; there is one forest, which may split on the size of the infection, not one for each range of sizes; and
the depth below the pleura is added.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.morphology import BoolArray, FloatArray, Spacing, bounding_box, distance_to

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PARTS = ("total", "right", "left", "lower", "middle", "upper")
"""Parts of the lungs; the patient's sides."""
BANDS = ("small", "medium", "large", "very_large")
BAND_EDGES_ML = (1.0, 10.0, 100.0)
"""Least volume in ml of a medium, a large and a very large region."""
HU_EDGES = tuple(range(-1000, 401, 140))

FEATURES: tuple[str, ...] = (
    *(f"lung_{part}_ml" for part in PARTS),
    *(f"infected_{part}_ml" for part in PARTS),
    *(f"infected_{part}_ratio" for part in PARTS),
    "regions",
    "largest_region_ml",
    *(f"{band}_regions_ml" for band in BANDS),
    *(f"infected_hu_{low}_to_{high}" for low, high in pairwise(HU_EDGES)),
    "infected_surface_cm2",
    "infected_depth_mm",
)
"""Names of the features: volumes in ml, ratios to the lung of the same part and of the histogram to 1."""


def infection_features(study: FloatArray, spacing: Spacing) -> DoubleArray:
    """Measure the infection of one study.

    Halves and thirds are those of the smallest box around the lungs; a row of voxels belongs to the part in which its
    centre lies. Infection outside the lungs is not counted. Regions are connected by faces, edges or corners. The
    surface is that of the voxels, the depth the mean distance of infected voxels to the nearest voxel outside the
    lungs. What is measured on nothing is 0.

    Parameters
    ----------
    study : ndarray of float, shape (n, 3, H, W)
        CT (-1000 HU is 0, 400 HU is 1), lesion mask and lung mask, in [0, 1]. Slices from feet to head, rows from
        front to back, columns to the patient's left.
    spacing : tuple of float
        Voxel size in mm along z, y, x.

    Returns
    -------
    ndarray of float64, shape (len(FEATURES),)
        Finite, in the order of :data:`FEATURES`.

    Raises
    ------
    ValueError
        If the study has another shape or values outside [0, 1], or a voxel has no size.
    """
    ct, infected, lungs = _channels(study)
    if not all(0.0 < step < np.inf for step in spacing):
        raise ValueError("voxels must have a size")
    if not lungs.any():
        return np.zeros(len(FEATURES))
    box = bounding_box(lungs)
    ct, infected, lungs = ct[box], infected[box], lungs[box]
    voxel_ml = float(np.prod(spacing)) / 1000.0
    values = {
        **_volumes(infected, lungs, voxel_ml),
        **_regions(infected, voxel_ml),
        **_histogram(ct[infected]),
        "infected_surface_cm2": _surface_mm2(infected, spacing) / 100.0,
        "infected_depth_mm": _depth_mm(infected, lungs, spacing),
    }
    return np.array([values[name] for name in FEATURES], dtype=np.float64)


def _channels(study: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Return CT, infection within the lungs, and lungs, each of shape (n, H, W)."""
    if study.ndim != 4 or study.shape[1] != 3:
        raise ValueError("a study must be of shape (slices, 3, rows, columns)")
    if study.size and not (study.min() >= 0.0 and study.max() <= 1.0):  # written so that NaN fails, too
        raise ValueError("the values of a study must lie in [0, 1]")
    lungs = study[:, 2] >= 0.5
    return study[:, 0], lungs & (study[:, 1] >= 0.5), lungs


def _by_part(mask: BoolArray) -> IntArray:
    """Count the voxels of a mask in each of :data:`PARTS` of its array."""
    halves = _shared_out(np.count_nonzero(mask, axis=(0, 1)), 2)
    thirds = _shared_out(np.count_nonzero(mask, axis=(1, 2)), 3)
    return np.concatenate([[np.count_nonzero(mask)], halves, thirds])


def _shared_out(counts: IntArray, parts: int) -> IntArray:
    """Sum counts along an axis in equal parts of its length: each goes where the centre of its place lies."""
    places = np.arange(len(counts))
    part = (2 * places + 1) * parts // (2 * len(counts))
    return np.array([counts[part == each].sum() for each in range(parts)], dtype=np.int64)


def _volumes(infected: BoolArray, lungs: BoolArray, voxel_ml: float) -> dict[str, float]:
    """Volumes in ml of lungs and infection in each part, and their ratio."""
    whole, affected = _by_part(lungs), _by_part(infected)
    ratios = affected / np.maximum(whole, 1)
    return {
        **{f"lung_{part}_ml": count * voxel_ml for part, count in zip(PARTS, whole.tolist(), strict=True)},
        **{f"infected_{part}_ml": count * voxel_ml for part, count in zip(PARTS, affected.tolist(), strict=True)},
        **{f"infected_{part}_ratio": ratio for part, ratio in zip(PARTS, ratios.tolist(), strict=True)},
    }


def _regions(infected: BoolArray, voxel_ml: float) -> dict[str, float]:
    """Count the infected regions, and return the volume of the largest and of each band of sizes."""
    labels, count = ndimage.label(infected, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel_ml
    band = np.searchsorted(BAND_EDGES_ML, sizes, side="right")
    return {
        "regions": float(count),
        "largest_region_ml": float(sizes.max(initial=0.0)),
        **{f"{name}_regions_ml": float(sizes[band == place].sum()) for place, name in enumerate(BANDS)},
    }


def _histogram(values: FloatArray) -> dict[str, float]:
    """Share of the infected voxels in each bin of attenuation."""
    counts, _ = np.histogram(values, bins=len(HU_EDGES) - 1, range=(0.0, 1.0))
    shares = (counts / max(values.size, 1)).tolist()
    return {
        f"infected_hu_{low}_to_{high}": share for (low, high), share in zip(pairwise(HU_EDGES), shares, strict=True)
    }


def _surface_mm2(mask: BoolArray, spacing: Spacing) -> float:
    """Area in mm^2 of the faces between voxels inside and outside a mask."""
    padded = np.pad(mask, 1)
    faces = [np.count_nonzero(np.diff(padded, axis=axis)) for axis in range(3)]
    return sum(count * float(np.prod(spacing)) / step for count, step in zip(faces, spacing, strict=True))


def _depth_mm(infected: BoolArray, lungs: BoolArray, spacing: Spacing) -> float:
    """Mean distance in mm of the infected voxels to the nearest voxel outside the lungs."""
    if not infected.any():
        return 0.0
    # The array is the box around the lungs: what lies beyond it is outside of them.
    depth = distance_to(~np.pad(lungs, 1), spacing)[1:-1, 1:-1, 1:-1]
    return float(depth[infected].mean(dtype=np.float64))


class InfectionForest:
    """Random forest that tells COVID-19 positive from negative studies by their infection.

    Needs scikit-learn. The same features, labels and seed give the same forest.

    Parameters
    ----------
    trees : int
        Number of trees.
    seed : int
        Seeds the choice of studies and features of each tree.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """

    def __init__(self, trees: int = 200, seed: int = 0) -> None:
        from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - an optional dependency

        self._forest = RandomForestClassifier(n_estimators=trees, random_state=seed)

    def fit(self, features: DoubleArray, labels: IntArray) -> Self:
        """Learn from studies.

        Parameters
        ----------
        features : ndarray, shape (studies, len(FEATURES))
            From :func:`infection_features`.
        labels : ndarray, shape (studies,)
            1 COVID-19 positive, 0 negative; both must occur.

        Returns
        -------
        InfectionForest
            Itself.

        Raises
        ------
        ValueError
            If the shapes do not fit, a label is neither 0 nor 1, or one of them is missing.
        """
        _check_features(features)
        if set(np.unique(labels).tolist()) != {0, 1}:
            raise ValueError("labels must be 0 and 1, and both must occur")
        self._forest.fit(features, np.asarray(labels, dtype=np.int64))
        return self

    def probability(self, features: DoubleArray) -> DoubleArray:
        """Return the probability of COVID-19 positive.

        Parameters
        ----------
        features : ndarray, shape (studies, len(FEATURES))
            From :func:`infection_features`.

        Returns
        -------
        ndarray of float64, shape (studies,)
            0 to 1.

        Raises
        ------
        ValueError
            If the shape does not fit, or the forest has learned nothing yet.
        """
        _check_features(features)
        return np.asarray(self._forest.predict_proba(features)[:, 1], dtype=np.float64)


def _check_features(features: DoubleArray) -> None:
    if features.ndim != 2 or features.shape[1] != len(FEATURES):
        raise ValueError(f"features must be of shape (studies, {len(FEATURES)})")
