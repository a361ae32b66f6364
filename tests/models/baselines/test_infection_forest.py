"""Features of the infection against loops, and the forest."""

from __future__ import annotations

import builtins
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from models.baselines.infection_forest import FEATURES, HU_EDGES, InfectionForest, infection_features

Voxel = tuple[int, ...]
SPACING = (3.0, 0.7, 0.9)


def random_study(seed: int, *, slices: int = 6, rows: int = 9, columns: int = 7) -> npt.NDArray[np.float32]:
    """A study with ragged lungs, infection in and out of them, and a margin on some sides only."""
    rng = np.random.default_rng(seed)
    study = rng.random((slices, 3, rows, columns))
    study[:, 1] = study[:, 1] > 0.75
    study[:, 2] = study[:, 2] > 0.15
    study[0, 2] = study[:, 2, :2] = study[:, 2, :, -1] = 0.0
    return study.astype(np.float32)


def named(study: npt.NDArray[np.float32], spacing: tuple[float, float, float] = SPACING) -> Mapping[str, float]:
    return dict(zip(FEATURES, infection_features(study, spacing).tolist(), strict=True))


def voxels(mask: npt.NDArray[np.bool_]) -> set[Voxel]:
    return {place for place in itertools.product(*map(range, mask.shape)) if mask[place]}


def regions(infected: set[Voxel]) -> list[int]:
    """Sizes of the parts that hang together by faces, edges or corners, by flooding."""
    left, sizes = set(infected), []
    while left:
        edge, size = [left.pop()], 0
        while edge:
            z, y, x = edge.pop()
            size += 1
            around = {(z + a, y + b, x + c) for a, b, c in itertools.product((-1, 0, 1), repeat=3)} & left
            left -= around
            edge.extend(around)
        sizes.append(size)
    return sizes


def part_of(place: int, low: int, high: int, names: Sequence[str]) -> str:
    """Name of the equal part of [low, high] in which the centre of a place lies."""
    return names[math.floor((place + 0.5 - low) / (high + 1 - low) * len(names))]


def naive_features(study: npt.NDArray[np.float32], spacing: tuple[float, float, float]) -> dict[str, float]:
    ct, lungs = study[:, 0], voxels(study[:, 2] > 0)
    infected = voxels(study[:, 1] > 0) & lungs
    voxel_ml = math.prod(spacing) / 1000

    def parts(places: set[Voxel]) -> Counter[str]:
        found = Counter({"total": len(places)})
        for z, _, x in places:
            for place, axis, names in ((x, 2, ("right", "left")), (z, 0, ("lower", "middle", "upper"))):
                extent = [each[axis] for each in lungs]
                found[part_of(place, min(extent), max(extent), names)] += 1
        return found

    whole, affected = parts(lungs), parts(infected)
    values = {f"lung_{part}_ml": whole[part] * voxel_ml for part in whole}
    values |= {f"infected_{part}_ml": affected[part] * voxel_ml for part in whole}
    values |= {f"infected_{part}_ratio": affected[part] / whole[part] for part in whole}
    sizes = [size * voxel_ml for size in regions(infected)]
    values |= {"regions": len(sizes), "largest_region_ml": max(sizes)}
    for band, low, high in (("small", 0, 1), ("medium", 1, 10), ("large", 10, 100), ("very_large", 100, math.inf)):
        values[f"{band}_regions_ml"] = sum(size for size in sizes if low <= size < high)
    attenuation = Counter(math.floor((float(ct[place]) * 1400) / 140) for place in infected)
    for place in range(10):
        low = -1000 + 140 * place
        values[f"infected_hu_{low}_to_{low + 140}"] = attenuation[place] / len(infected)
    surface = 0.0
    for z, y, x in infected:
        for axis, step in itertools.product(range(3), (-1, 1)):
            beside = (z + step * (axis == 0), y + step * (axis == 1), x + step * (axis == 2))
            surface += (beside not in infected) * math.prod(spacing) / spacing[axis]
    values["infected_surface_cm2"] = surface / 100
    grid = itertools.product(*(range(-1, size + 1) for size in ct.shape))
    outside = np.array([place for place in grid if place not in lungs]) * spacing
    depths = [np.linalg.norm(outside - np.array(place) * spacing, axis=1).min() for place in infected]
    values["infected_depth_mm"] = sum(depths) / len(depths)
    return values


@pytest.mark.parametrize(
    ("seed", "spacing"),
    [(0, SPACING), (1, (3.0, 1.4, 1.4)), (2, (20.0, 9.0, 8.0)), (3, (40.0, 20.0, 30.0)), (4, (1.0, 5.0, 2.0))],
)
def test_features_agree_with_loops(seed: int, spacing: tuple[float, float, float]) -> None:
    study = random_study(seed)
    expected = naive_features(study, spacing)
    assert set(expected) == set(FEATURES)
    assert named(study, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_names_are_unique_and_bins_cover_the_range_of_the_ct() -> None:
    assert len(set(FEATURES)) == len(FEATURES) == 36
    assert HU_EDGES == (-1000, -860, -720, -580, -440, -300, -160, -20, 120, 260, 400)
    assert infection_features(random_study(0), SPACING).dtype == np.float64


def test_parts_are_told_apart() -> None:
    study = np.zeros((6, 3, 4, 8), np.float32)
    study[:, 2] = 1.0
    study[5, 1, 2, 7] = 1.0  # at the head, on the patient's left
    found = named(study, (10.0, 10.0, 10.0))
    parts = {part for part in ("right", "left", "lower", "middle", "upper") if found[f"infected_{part}_ml"]}
    assert parts == {"left", "upper"}
    assert found["infected_left_ratio"] == pytest.approx(1 / 96)
    assert found["infected_upper_ratio"] == pytest.approx(1 / 64)
    assert found["infected_depth_mm"] == 10.0  # the upper end of the array is an end of the lungs
    assert found["infected_surface_cm2"] == pytest.approx(6.0)


def test_bands_hold_regions_by_their_size() -> None:
    study = np.zeros((9, 3, 12, 12), np.float32)
    study[:, 2] = 1.0
    study[0, 1, 0, 0] = 1.0  # 0.5 ml
    study[0, 1, 3:5, 0] = study[1, 1, 4, 1] = 1.0  # 1.5 ml, one region over an edge
    study[0, 1, 0:4, 5:10] = 1.0  # 10 ml, the least of a large one
    study[3:9, 1, 3:11, 3:11] = 1.0  # 192 ml
    found = named(study, (5.0, 10.0, 10.0))
    assert found["regions"] == 4
    assert [found[f"{band}_regions_ml"] for band in ("small", "medium", "large", "very_large")] == [0.5, 1.5, 10, 192]
    assert found["largest_region_ml"] == 192


@pytest.mark.parametrize("hu", [-1000, -860.5, -700, 0, 399, 400])
def test_the_histogram_is_in_hounsfield_units(hu: float) -> None:
    study = np.zeros((2, 3, 4, 4), np.float32)
    study[:, 2] = study[:, 1] = 1.0
    study[:, 0] = (hu + 1000) / 1400
    found = named(study)
    bins = [(low, high) for low, high in itertools.pairwise(HU_EDGES) if low <= hu < high or hu == high == 400]
    assert [found[f"infected_hu_{low}_to_{high}"] for low, high in bins] == [1.0]
    assert sum(value for name, value in found.items() if name.startswith("infected_hu")) == 1.0


def test_what_is_outside_the_lungs_changes_nothing() -> None:
    study = random_study(5)
    padded = np.pad(study, ((2, 3), (0, 0), (1, 0), (4, 1)))
    padded[:, :2] = np.where(padded[:, 2:] > 0, padded[:, :2], 1.0)
    np.testing.assert_allclose(infection_features(padded, SPACING), infection_features(study, SPACING), rtol=1e-6)


@pytest.mark.parametrize("slices", [0, 1, 2, 5])
@pytest.mark.parametrize(("lesion", "lung"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_features_are_finite_whatever_is_empty(slices: int, lesion: int, lung: int) -> None:
    study = np.zeros((slices, 3, 5, 4), np.float32)
    study[:, 1], study[:, 2] = lesion, lung
    values = infection_features(study, SPACING)
    assert values.shape == (len(FEATURES),)
    assert np.isfinite(values).all()
    assert values.any() == bool(lung and slices)
    if not (lesion and lung):
        assert not any(value for name, value in zip(FEATURES, values, strict=True) if not name.startswith("lung"))


@pytest.mark.parametrize(
    ("shape", "value", "spacing"),
    [
        ((2, 2, 4, 4), 0.0, SPACING),
        ((3, 4, 4), 0.0, SPACING),
        ((2, 3, 4, 4), 255.0, SPACING),
        ((2, 3, 4, 4), -0.1, SPACING),
        ((2, 3, 4, 4), math.nan, SPACING),
        ((2, 3, 4, 4), 0.0, (3.0, 0.0, 1.0)),
        ((2, 3, 4, 4), 0.0, (3.0, math.nan, 1.0)),
    ],
)
def test_what_is_no_study_is_an_error(
    shape: tuple[int, ...], value: float, spacing: tuple[float, float, float]
) -> None:
    with pytest.raises(ValueError, match="must"):
        infection_features(np.full(shape, value, np.float32), spacing)


def cohort(seed: int, studies: int = 40) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Features of which some tell the labels, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(studies) % 2)
    features = rng.random((studies, len(FEATURES)))
    features[:, [name.endswith("_ratio") for name in FEATURES]] += labels[:, None]
    return features, labels


def test_the_forest_learns_and_gives_the_probability_of_positive() -> None:
    forest = InfectionForest(trees=30).fit(*cohort(0))
    features, labels = cohort(1)
    probability = forest.probability(features)
    assert probability.shape == labels.shape
    assert probability.dtype == np.float64
    assert probability[labels == 1].min() > probability[labels == 0].max()
    assert ((probability >= 0) & (probability <= 1)).all()


def test_the_forest_is_the_same_for_a_seed() -> None:
    features, labels = cohort(0)
    unseen, _ = cohort(1)
    first = InfectionForest(trees=10, seed=3).fit(features, labels)
    expected = first.probability(unseen)
    np.testing.assert_array_equal(first.fit(features, labels).probability(unseen), expected)
    np.testing.assert_array_equal(InfectionForest(10, 3).fit(features, labels).probability(unseen), expected)
    assert (InfectionForest(10, 4).fit(features, labels).probability(unseen) != expected).any()


def test_the_forest_refuses_what_it_cannot_learn_from() -> None:
    features, labels = cohort(0)
    forest = InfectionForest(trees=2)
    for wrong in (np.zeros_like(labels), np.ones_like(labels), labels + 1, labels[:-1]):
        with pytest.raises(ValueError, match=r"labels|samples"):
            forest.fit(features, wrong)
    with pytest.raises(ValueError, match="shape"):
        forest.fit(features[:, 1:], labels)
    with pytest.raises(ValueError, match="fitted"):
        forest.probability(features)
    with pytest.raises(ValueError, match="shape"):
        forest.fit(features, labels).probability(features[0])


def test_scikit_learn_is_needed_by_the_forest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return there(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    assert infection_features(random_study(0), SPACING).any()
    with pytest.raises(ImportError, match="sklearn"):
        InfectionForest()
