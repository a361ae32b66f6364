"""Patches of prepared volumes against plain indexing, and what may and what may not vary in them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from monai.transforms.spatial.dictionary import RandAffined
from pydantic import ValidationError
from safetensors.numpy import save_file
from scipy import ndimage, stats
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from models.hounsfield import AIR_HU
from models.involvement.network import PATCH
from models.involvement.training import InvolvementRecipe, InvolvementSettings
from models.lesions.network import UNKNOWN_TYPE, LesionNetwork, predict
from models.lesions.training import LesionRecipe, LesionSettings
from models.lung_region import lung_region
from models.lungs import training as lung_training
from models.lungs.network import DeepMedic
from models.lungs.training import (
    FARTHER_HU,
    GAS_HU,
    LITTER_HU,
    TISSUE_HU,
    WIDE_AIR_HU,
    LungRecipe,
    LungSettings,
    litter,
    pocket,
    shift,
)
from models.training import patches
from models.training.patches import (
    CONTRAST,
    CUT,
    INFLATED,
    INFLATION,
    NOISE_HU,
    OFFSET_HU,
    ROTATION,
    SCALE,
    SHORTEST,
    THICK,
    Kinds,
    PatchRecipe,
    cut_patch,
    cut_short,
    draw_centre,
    inflate,
    variation,
)
from models.training.recipe import Item
from models.training.settings import PatchSettings
from models.training.standardisation import standardise
from models.training.volumes import Volume

MODELS = Path(__file__).resolve().parents[2] / "models"
Array = npt.NDArray[np.generic]
Triple = tuple[int, int, int]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads would wait for each other longer than such small patches take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def whole_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave patches whole, and the air in the lungs as it is, but in the tests of just that."""
    monkeypatch.setattr(patches, "INFLATED", 0.0)
    monkeypatch.setattr(patches, "CUT", 0.0)


def write_volume(path: Path, arrays: Mapping[str, Array], points: Mapping[str, npt.ArrayLike] | None = None) -> Volume:
    """Write arrays, and voxels of each kind, as the preparation of a cohort does."""
    kinds = {f"points_{kind}": np.reshape(np.array(some, np.int32), (-1, 3)) for kind, some in (points or {}).items()}
    save_file({name: np.ascontiguousarray(array) for name, array in {**arrays, **kinds}.items()}, path)
    return Volume(path)


def chest(path: Path, seed: int = 0) -> Volume:
    """Two lungs with lesions of all types in a body, in air."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:24, :80, :90]
    hu = np.full((24, 80, 90), -1000, np.int16)
    hu[2:-2, 5:75, 5:85] = 40
    lungs, lesions = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    for side, middle in ((1, 64), (2, 25)):
        lungs[((z - 12) / 8) ** 2 + ((y - 40) / 25) ** 2 + ((x - middle) / 15) ** 2 < 1] = side
    for kind, place in enumerate(((10, 30, 25), (14, 50, 25), (10, 30, 64), (14, 50, 64)), start=1):
        near = (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 < 40
        lesions[near & (lungs > 0)] = kind
    hu[lungs > 0] = -850
    hu[lesions > 0] = -300
    hu = (hu + rng.normal(0, 10, hu.shape)).astype(np.int16)
    masks = {"lung": lungs > 0, "lesion": lesions > 0, "surface": lungs == 1}
    masks |= {"other_air": hu < -900, "body": hu > -600, "beside": hu > 3000}
    masks |= {f"lesion_{kind}": lesions == kind for kind in range(1, 6)}
    points = {kind: np.argwhere(mask)[::7] for kind, mask in masks.items()}
    coverage = np.where(lungs > 0, np.uint8(255), np.uint8(0))
    return write_volume(path, {"hu": hu, "lungs": lungs, "coverage": coverage, "lesions": lesions}, points)


def settings_of(task: str, **changed: object) -> dict[str, object]:
    recommended: dict[str, object] = yaml.safe_load((MODELS / task / "training.yaml").read_text("utf-8"))
    return recommended | changed


@pytest.mark.parametrize("types", [[1, 2, 3, 4], [2], [1, 4], [UNKNOWN_TYPE]])
def test_two_in_three_patches_hold_a_lesion_whatever_types_a_study_has(tmp_path: Path, types: list[int]) -> None:
    """Each type that there is as often as the others. Every lesion is one voxel, 100 apart, and told by its place."""
    lesions = np.zeros((40, 60, 500), np.uint8)
    for kind in types:
        lesions[20, 30, 90 * kind] = kind
    lungs = np.zeros_like(lesions)
    lungs[20, 30, 2] = 1
    points = {f"lesion_{kind}": np.argwhere(lesions == kind) for kind in range(1, UNKNOWN_TYPE + 1)}
    points["lung"] = np.argwhere(lungs > 0)
    arrays = {"hu": np.zeros(lesions.shape, np.int16), "lungs": lungs, "lesions": lesions}
    recipe = lesions_recipe([write_volume(tmp_path / "volume.safetensors", arrays, points)] * 3, augment=False)
    held = [[int(kind) for kind in recipe[number][1].unique() if kind] for number in range(400)]
    assert likely([sum(map(bool, held)), 400 - sum(map(bool, held))], [0.67, 0.33])
    assert len(types) == 1 or likely([held.count([kind]) for kind in types], [1.0 for _ in types])


@pytest.mark.parametrize(
    ("task", "settings", "patch", "message"),
    [
        ("lesions", LesionSettings, (12, 16, 16), "three multiples of 8"),
        ("lesions", LesionSettings, (16, 0, 16), "three multiples of 8"),
        ("involvement", InvolvementSettings, (24, 32), "two multiples of 16"),
        ("involvement", InvolvementSettings, (16, 16), "two multiples of 16"),
    ],
)
def test_a_patch_that_the_network_cannot_halve_or_normalise_is_refused(
    task: str, settings: type[PatchSettings], patch: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings.model_validate(settings_of(task, patch=patch))


# --- Reading parts of volumes


@pytest.mark.parametrize("size", [(2, 3, 2), (1, 1, 1), (4, 2, 7)])
def test_every_box_is_that_of_plain_indexing(tmp_path: Path, size: Triple) -> None:
    """Boxes inside, across each border, larger than the volume, and wholly beyond it on all sides.

    Above and below, the nearest slice goes on.
    """
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 3000, (3, 4, 2)).astype(np.int16)
    lungs = rng.integers(1, 3, hu.shape).astype(np.uint8)
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, "lungs": lungs})
    for start in itertools.product(*(range(-n - 1, m + 2) for n, m in zip(size, hu.shape, strict=True))):
        for name, whole, beyond in (("hu", hu, -1024), ("lungs", lungs, 0)):
            expected = np.full(size, beyond, whole.dtype)
            for offset in itertools.product(*map(range, size)):
                z, y, x = (s + o for s, o in zip(start, offset, strict=True))
                if 0 <= y < whole.shape[1] and 0 <= x < whole.shape[2]:
                    expected[offset] = whole[min(max(z, 0), len(whole) - 1), y, x]
            box = volume.box(name, start, size)
            assert box.dtype == whole.dtype
            np.testing.assert_array_equal(box, expected, err_msg=f"{name} at {start}")


def test_points_are_the_voxels_of_their_kind(tmp_path: Path) -> None:
    points = {"lung": [[0, 1, 2], [2, 3, 0]], "lesion_2": []}
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": np.zeros((3, 4, 5), np.int16)}, points)
    np.testing.assert_array_equal(volume.points("lung"), points["lung"])
    assert volume.points("lung").dtype == np.int32
    assert volume.points("lesion_2").shape == (0, 3)


# --- Where patches lie


def drawn(volumes: list[Volume], kinds: Kinds, count: int) -> list[tuple[Volume, Triple]]:
    """Draw centres without jitter."""
    rng = np.random.default_rng(0)
    found = (draw_centre(volumes, kinds, (0.0, 0.0, 0.0), rng) for _ in range(count))
    return [(volume, (int(z), int(y), int(x))) for volume, (z, y, x) in found]


def likely(observed: list[int], shares: list[float]) -> bool:
    """Say whether counts are in proportion to shares, by the chi-squared test."""
    expected = np.array(shares) / sum(shares) * sum(observed)
    return bool(stats.chisquare(observed, expected).pvalue > 0.01)


def test_each_volume_kind_and_voxel_is_drawn_as_often_as_its_share(tmp_path: Path) -> None:
    """The first number of a point tells the volume, the second the kind, the third which of the kind it is."""
    kinds = {("a",): 0.6, ("b",): 0.3, ("c",): 0.1}
    volumes = [
        write_volume(
            tmp_path / f"{number}.safetensors",
            {},
            {kind: [[number, row, each] for each in range(row + 1)] for row, (kind,) in enumerate(kinds)},
        )
        for number in range(3)
    ]
    draws = drawn(volumes, kinds, 1500)
    assert all(volume is volumes[place[0]] for volume, place in draws)
    places = [place for _, place in draws]
    assert likely([sum(place[0] == number for place in places) for number in range(3)], [1, 1, 1])
    assert likely([sum(place[1] == row for place in places) for row in range(3)], [0.6, 0.3, 0.1])
    assert likely([sum(place[1:] == (2, each) for place in places) for each in range(3)], [1, 1, 1])


def test_a_kind_without_voxels_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    points = {"a": [[0, 0, 0]], "b": [], "c": [[2, 0, 0]]}
    volume = write_volume(tmp_path / "volume.safetensors", {}, points)
    places = [place for _, place in drawn([volume], {("a",): 0.5, ("b",): 0.3, ("c",): 0.2}, 700)]
    assert likely([places.count((0, 0, 0)), places.count((2, 0, 0))], [5, 2])


def test_kinds_of_a_group_are_equally_likely_and_share_what_one_of_them_leaves(tmp_path: Path) -> None:
    points = {"a": [[0, 0, 0]], "b": [], "c": [[2, 0, 0]] * 9, "d": [[3, 0, 0]]}
    volume = write_volume(tmp_path / "volume.safetensors", {}, points)
    places = [place for _, place in drawn([volume], {("a", "b", "c"): 0.8, ("d",): 0.2}, 900)]
    assert likely([places.count((number, 0, 0)) for number in (0, 2, 3)], [0.4, 0.4, 0.2])


def test_what_few_volumes_have_is_drawn_as_often_as_what_all_have(tmp_path: Path) -> None:
    volumes = [
        write_volume(
            tmp_path / f"{n}.safetensors", {}, {"often": [[n, 0, 0]], "rare": [[n, 1, 0]] if n in (2, 5) else []}
        )
        for n in range(8)
    ]
    places = [place for _, place in drawn(volumes, {("often", "rare"): 1.0}, 800)]
    assert likely([sum(place[1] == kind for place in places) for kind in (0, 1)], [1, 1])
    assert likely([places.count((n, 0, 0)) for n in range(8)], [1] * 8)
    assert likely([places.count((n, 1, 0)) for n in (2, 5)], [1, 1])
    assert {place[0] for place in places if place[1] == 1} == {2, 5}


def test_volumes_without_any_voxel_to_learn_from_are_an_error(tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "volume.safetensors", {}, {"a": [], "b": [], "unasked": [[0, 0, 0]]})
    with pytest.raises(ValueError, match="no voxels to learn from"):
        draw_centre([volume], {("a",): 0.5, ("b",): 0.5}, (0.0, 0.0, 0.0), np.random.default_rng(0))


def test_jitter_is_uniform_and_no_more_than_asked(tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "volume.safetensors", {}, {"a": [[10, 20, 30]]})
    rng = np.random.default_rng(0)
    jitter = (0.0, 3.0, 7.5)
    moves = np.array([draw_centre([volume], {("a",): 1.0}, jitter, rng)[1] for _ in range(800)]) - (10, 20, 30)
    assert not moves[:, 0].any()
    assert (moves[:, 1].min(), moves[:, 1].max()) == (-3, 3)
    assert set(moves[:, 2].tolist()) in ({*range(-7, 8)}, {*range(-8, 9)})
    for axis in (1, 2):
        assert moves[:, axis].std() == pytest.approx(jitter[axis] / np.sqrt(3), rel=0.06)
        assert abs(moves[:, axis].mean()) < 0.3
    assert abs(np.corrcoef(moves[:, 1], moves[:, 2])[0, 1]) < 0.1


# --- Patches as they are


@pytest.mark.parametrize("size", [(4, 8, 6), (1, 5, 7), (30, 100, 100)])
@pytest.mark.parametrize("centre", [(12, 40, 45), (0, 3, 88), (-9, 90, 200)])
def test_without_variation_a_patch_is_what_is_there(tmp_path: Path, centre: Triple, size: Triple) -> None:
    volume = chest(tmp_path / "volume.safetensors")
    patch = cut_patch(volume, np.array(centre), size, ("hu", "lesions", "lungs"), None)
    assert list(patch) == ["hu", "lesions", "lungs"]
    for name, beyond in (("hu", -1024), ("lesions", 0), ("lungs", 0)):
        whole = volume.box(name, (0, 0, 0), (24, 80, 90))
        places = [c - n // 2 + np.arange(n) for c, n in zip(centre, size, strict=True)]
        y, x = ((p >= 0) & (p < m) for p, m in zip(places[1:], whole.shape[1:], strict=True))
        there = y[:, None] & x
        nearest = whole[np.ix_(*(p.clip(0, m - 1) for p, m in zip(places, whole.shape, strict=True)))]
        assert patch[name].dtype == torch.float32
        np.testing.assert_array_equal(patch[name].numpy(), np.where(there, nearest, beyond)[None])


# --- Varied patches


def varied(volume: Volume, size: Triple, seed: int, names: tuple[str, ...], centre: Triple) -> dict[str, Tensor]:
    return cut_patch(volume, np.array(centre), size, names, np.random.default_rng(seed))


@pytest.mark.parametrize("size", [(8, 16, 16), (1, 24, 24), (6, 20, 12)])
def test_varied_patches_keep_shape_labels_and_nesting(tmp_path: Path, size: Triple) -> None:
    volume = chest(tmp_path / "volume.safetensors")
    differing = affected = 0
    for seed in range(9):
        centre = ((10, 30, 25), (14, 50, 64), (12, 40, 78))[seed % 3]
        patch = varied(volume, size, seed, ("hu", "lesions", "lungs"), centre)
        assert all(type(tensor) is Tensor and tensor.dtype == torch.float32 for tensor in patch.values())
        assert all(tensor.shape == (1, *size) for tensor in patch.values())
        assert patch["hu"].isfinite().all()
        assert set(patch["lungs"].unique().tolist()) <= {0.0, 1.0, 2.0}
        assert set(patch["lesions"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
        assert not (patch["lesions"] > 0)[patch["lungs"] == 0].any()
        straight = cut_patch(volume, np.array(centre), size, ("lungs",), None)
        differing += not torch.equal(straight["lungs"], patch["lungs"])
        affected += bool(patch["lesions"].any())
    assert differing > 4
    assert affected >= 6


def test_the_generator_decides_the_variation(tmp_path: Path) -> None:
    volume = chest(tmp_path / "volume.safetensors")
    of_seed = [varied(volume, (4, 16, 16), seed, ("hu", "lungs"), (12, 40, 40)) for seed in (0, 1, 2, 3)]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generators must not matter
    again = varied(volume, (4, 16, 16), 2, ("hu", "lungs"), (12, 40, 40))
    for seed, patch in enumerate(of_seed):
        assert torch.equal(patch["hu"], again["hu"]) == (seed == 2)
    assert torch.equal(of_seed[2]["lungs"], again["lungs"])
    rng = np.random.default_rng(2)
    first, second = (cut_patch(volume, np.array((12, 40, 40)), (4, 16, 16), ("hu",), rng) for _ in range(2))
    assert not torch.equal(first["hu"], second["hu"])


def coordinates(path: Path) -> Volume:
    """A volume whose arrays z, y, x say where a voxel is; its intensities rise along x."""
    grid = np.meshgrid(*map(np.arange, (30, 64, 64)), indexing="ij")
    arrays = {name: axis.astype(np.uint8) for name, axis in zip("zyx", grid, strict=True)}
    return write_volume(path, {"hu": (20 * grid[2] - 900).astype(np.int16), **arrays})


CENTRE = (15, 32, 32)
NAMES = ("hu", "z", "y", "x")


@pytest.mark.parametrize("size", [(8, 24, 24), (1, 32, 32), (6, 32, 20)])
def test_the_variation_is_a_similarity_of_the_stated_bounds_within_what_was_read(tmp_path: Path, size: Triple) -> None:
    """Where each voxel comes from is an affine map of where it is, up to rounding.

    Had less been read than the map reaches, voxels at the rim would repeat and not fit it.
    """
    volume = coordinates(tmp_path / "volume.safetensors")
    places = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"), -1).reshape(-1, 3)
    design = np.column_stack([places, np.ones(len(places))])
    flipped, scales, turns, tilts = 0, [], [], []
    for seed in range(16):
        patch = varied(volume, size, seed, NAMES, CENTRE)
        origin = np.stack([patch[name].numpy().ravel() for name in "zyx"], axis=1)
        linear, *_ = np.linalg.lstsq(design, origin, rcond=None)
        assert np.abs(origin - design @ linear).max() < 1.1, "a voxel is not where the map says"
        assert np.abs(linear[3] - CENTRE).max() < 1.1, "the middle has moved"
        matrix = linear[:3].T  # origin = matrix @ place
        flipped += matrix[2, 2] < 0
        matrix[:, 2] *= np.sign(matrix[2, 2])
        if size[0] == 1:
            matrix[:, 0] = 1.0, 0.0, 0.0
        scale = np.linalg.norm(matrix, axis=0)
        scales.append(scale)
        turns.append(np.rad2deg(np.arctan2(matrix[2, 1], matrix[1, 1])))
        tilts.append(np.rad2deg(np.abs(np.arcsin(np.clip((matrix / scale)[0, 1:], -1, 1)))).max())
    rounding = 0.03
    assert 3 < flipped < 13
    assert 1 - SCALE - rounding < np.min(scales) < np.max(scales) < 1 + SCALE + rounding
    assert np.ptp(np.array(scales)[:, 1:], axis=0).min() > SCALE
    assert ROTATION / 2 < np.max(np.abs(turns)) < ROTATION * 1.4  # scales that differ turn a little, too
    assert min(turns) < 0 < max(turns)
    assert (np.max(tilts) < 1e-6) if size[0] == 1 else (0.5 < np.max(tilts) < 0.6 * ROTATION)


@pytest.mark.parametrize("size", [(6, 28, 28), (1, 36, 36)])
def test_intensities_move_with_the_labels(tmp_path: Path, size: Triple) -> None:
    """A slope along x stays one where x comes from, steeper or flatter by the contrast at most."""
    volume = coordinates(tmp_path / "volume.safetensors")
    slopes = []
    for seed in range(12):
        patch = varied(volume, size, seed, NAMES, CENTRE)
        x, hu = (patch[name][..., 4:-4, 4:-4].numpy().ravel() for name in ("x", "hu"))
        found = stats.linregress(x, hu)
        slopes.append(found.slope / 20.0)
        assert np.std(hu - found.intercept - found.slope * x) < 1.2 * NOISE_HU
    assert 1 - CONTRAST - 0.03 < min(slopes) < 1.0 < max(slopes) < 1 + CONTRAST + 0.03
    assert np.ptp(slopes) > 0.4 * CONTRAST


@pytest.mark.parametrize(("level", "size"), [(-900, (4, 24, 24)), (60, (1, 32, 32))])
def test_a_uniform_tissue_stays_near_its_intensity_everywhere(tmp_path: Path, level: int, size: Triple) -> None:
    """Blurring and sharpening leave what is uniform alone, at the border of a patch as in its middle."""
    hu = np.full((20, 60, 60), level, np.int16)
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, "lungs": np.ones(hu.shape, np.uint8)})
    middles, spreads = [], []
    for seed in range(20):
        patch = varied(volume, size, seed, ("hu", "lungs"), (10, 30, 30))
        assert (patch["lungs"] == 1).all()
        middle = float(patch["hu"].mean())
        middles.append(middle - level)
        spreads.append(float(patch["hu"].std()))
        rim = torch.cat([patch["hu"][..., 0].ravel(), patch["hu"][..., -1].ravel(), patch["hu"][..., 0, :].ravel()])
        assert abs(float(rim.mean()) - middle) < 0.6 * NOISE_HU, f"seed {seed}: the rim differs from the whole"
        assert (patch["hu"] - middle).abs().max() < 6.0 * NOISE_HU
    assert max(map(abs, middles)) < OFFSET_HU + 5.0
    assert min(middles) < -OFFSET_HU / 3 < OFFSET_HU / 3 < max(middles)
    assert max(spreads) < 1.2 * NOISE_HU
    assert min(spreads) < 1.0, "some patches come without noise"


def test_a_patch_of_one_slice_never_mixes_slices(tmp_path: Path) -> None:
    hu = np.full((5, 60, 60), 20_000, np.int16)
    hu[2] = -700
    index = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None], hu.shape)
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, "lungs": index})
    for seed in range(8):
        patch = varied(volume, (1, 24, 24), seed, ("hu", "lungs"), (2, 30, 30))
        assert (patch["lungs"] == 2).all()
        assert patch["hu"].max() < 0


def test_noise_is_of_each_slice_and_blur_of_thin_slices_only_within_it(tmp_path: Path) -> None:
    """Slices of alternating intensity stay as far apart as the contrast leaves them, but where slices are thick."""
    hu = np.full((30, 60, 60), -800, np.int16)
    hu[::2] = -600
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, "lungs": (hu > -700).astype(np.uint8)})
    patch = cut_patch(volume, np.array((15, 30, 30)), (8, 24, 24), ("hu", "lungs"), None)
    names = ("hu", "lungs")
    for seed in range(10):
        steps = [step for step in variation((8, 24, 24), names).transforms if not isinstance(step, RandAffined)]
        steps = [step for step in steps if getattr(getattr(step, "rand_smooth", None), "sigma_x", None) != THICK]
        some = dict(patch)
        for number, step in enumerate(steps):
            if hasattr(step, "set_random_state"):
                step.set_random_state(1000 * seed + number)
            some = step(some)
        hu_inside, lungs_inside = (some[name][..., 5:-5, 5:-5] for name in names)  # the rim is cut off later
        bright = float(hu_inside[lungs_inside == 1].mean() - hu_inside[lungs_inside == 0].mean())
        assert 200 * (1 - CONTRAST) - 10 < bright < 200 * (1 + CONTRAST) + 10


@pytest.mark.parametrize("size", [(24, 20, 30), (5, 20, 30), (1, 24, 24)])
def test_a_scan_cut_short_keeps_its_middle_and_what_is_left_of_it(size: Triple) -> None:
    depth, rows, columns = size
    hu = 100.0 * torch.arange(depth)[:, None, None] + torch.zeros(1, *size)
    patch = {"hu": hu, "lungs": torch.ones(1, *size), "lesions": torch.full((1, *size), 3.0)}
    lengths, flat, kept = set(), 0, []
    for seed in range(300):
        short = cut_short(patch, np.random.default_rng(seed))
        scanned = short["lungs"][0] == 1
        assert scanned[depth // 2, rows // 2, columns // 2]
        for name, beyond in (("lungs", 0.0), ("lesions", 0.0)):
            assert (short[name][0] == torch.where(scanned, patch[name][0], beyond)).all()
        if scanned.all():  # slices are left out, and the first and last that are kept go on
            kept_slices = [z for z in range(depth) if bool((short["hu"][0, z] == 100.0 * z).all())]
            first, last = kept_slices[0], kept_slices[-1]
            for z in range(depth):
                assert (short["hu"][0, z] == 100.0 * min(max(z, first), last)).all()
            lengths.add(last - first + 1)
        else:  # a field of view: the same in every slice, and convex
            assert (short["hu"][0] == torch.where(scanned, hu[0], -1024.0)).all()
            assert (scanned == scanned[:1]).all()
            for line in (*scanned[0], *scanned[0].T):
                assert (np.diff(line.numpy().astype(int)) != 0).sum() <= 2
            flat += 1
        kept.append(float(scanned.float().mean()))
    assert lengths <= set(range(min(SHORTEST, depth), depth + 1))
    assert len(lengths) > (10 if depth > SHORTEST else -1)
    assert 30 < flat < (120 if depth > 1 else 301)
    assert min(kept) < 0.8
    assert torch.equal(patch["hu"], hu), "the patch given has changed"


def test_some_varied_patches_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "CUT", CUT)
    hu = np.full((40, 60, 60), 60, np.int16)
    cut = []
    monkeypatch.setattr(patches, "cut_short", lambda patch, rng: cut.append(rng) or cut_short(patch, rng))
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, "lungs": np.ones(hu.shape, np.uint8)})
    for seed in range(200):
        varied(volume, (12, 16, 16), seed, ("hu", "lungs"), (20, 30, 30))
    assert stats.binomtest(len(cut), 200, CUT).pvalue > 0.001


@pytest.mark.parametrize("factor", [0.35, 1.0, 1.7, 2.0])
def test_tissue_of_aerated_lung_is_multiplied_and_solid_tissue_stays(factor: float) -> None:
    rng = np.random.default_rng(0)
    hu = rng.choice([-1010.0, -950.0, -850.0, -700.0, -500.0, -200.0, 20.0, 40.0, 900.0], (3, 4, 50))
    lung = rng.choice([0.0, 0.25, 1.0], hu.shape)
    found = inflate(torch.from_numpy(hu), torch.from_numpy(lung), factor).numpy()
    aerated = -1000.0 + 150.0 * factor
    for before, share, after in zip(hu.ravel(), lung.ravel(), found.ravel(), strict=True):
        solid = (before + 850.0) / 870.0  # a mixture of aerated lung and solid tissue
        whole = before if before > 20.0 else solid * 20.0 + (1.0 - solid) * aerated
        assert after == pytest.approx(before + share * (whole - before))
        if share == 0.0 or before >= 20.0 or factor == 1.0:
            assert after == before
        if share == 1.0 and before == -850.0:
            assert after == pytest.approx(aerated)


@pytest.mark.parametrize("factor", INFLATION)
def test_haze_stays_between_lung_and_consolidation_and_noise_nearly_what_it_was(factor: float) -> None:
    rng = np.random.default_rng(0)
    lung, haze, dense = (
        inflate(torch.from_numpy(rng.normal(mean, 30.0, 20_000)), torch.ones(20_000), factor).numpy()
        for mean in (-850.0, -570.0, -50.0)
    )
    assert (haze.mean() - lung.mean()) / (dense.mean() - lung.mean()) == pytest.approx(0.35, abs=0.01)
    assert all(24.0 < each.std() < 34.0 for each in (lung, haze, dense))
    assert lung.std() == pytest.approx(haze.std(), rel=0.03), "noise does not tell one from the other"


@pytest.mark.parametrize("factor", INFLATION)
def test_what_is_denser_stays_so(factor: float) -> None:
    hu = torch.arange(-1024.0, 200.0, 0.5)
    for share in (0.3, 1.0):
        assert (inflate(hu, torch.full_like(hu, share), factor).diff() > 0.0).all()


@pytest.mark.parametrize("mask", ["lungs", "coverage"])
def test_lungs_hold_more_or_less_air_from_patch_to_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setattr(patches, "INFLATED", INFLATED)
    hu = np.full((20, 60, 60), -850, np.int16)
    full = np.full(hu.shape, 255 if mask == "coverage" else 1, np.uint8)
    full[..., 30:], hu[..., 30:] = 0, -850  # as light, and no lung
    volume = write_volume(tmp_path / "volume.safetensors", {"hu": hu, mask: full})
    factors = []
    for seed in range(60):
        patch = varied(volume, (4, 24, 24), seed, ("hu", mask), (10, 30, 30))
        share = patch[mask] / float(full.max())
        inside, outside = (float(patch["hu"][part].mean()) for part in (share > 0.99, share == 0.0))
        factors.append(1.0 + (inside - outside) / 150.0)
    changed = [factor for factor in factors if abs(factor - 1.0) > 0.05]
    assert 0.4 * 60 < len(changed) < 0.95 * 60
    assert INFLATION[0] - 0.1 < min(factors) < 0.5
    assert 1.6 < max(factors) < INFLATION[1] + 0.1


def test_litter_lies_in_wide_air_that_was_scanned_only() -> None:
    rng = np.random.default_rng(0)
    hu = torch.full((1, 24, 90, 90), 40.0)
    hu[:, :, :50] = -1000.0 + torch.from_numpy(rng.normal(0.0, 15.0, (24, 50, 90)).astype(np.float32))
    hu[:, :, 10:12, 40:42] = 60.0  # a cable
    hu[:, :, :, :12] = -1024.0  # not scanned
    hu[:, :, 70:74, 60:64] = -1000.0  # an airway
    lung = torch.zeros(hu.shape, dtype=torch.bool)
    hu[:, :, 55:68, 20:50], lung[:, :, 55:68, 20:50] = -950.0, True
    shares, levels = [], []
    for seed in range(40):
        found = litter(hu, lung, np.random.default_rng(seed))
        assert torch.equal(found, litter(hu, lung, np.random.default_rng(seed)))
        changed = found != hu
        assert not (changed & (lung | (hu >= WIDE_AIR_HU) | (hu == -1024.0))).any()
        assert not changed[:, :, 68:].any(), "an airway is not wide"
        shares.append(float(changed[:, :, :50, 12:].float().mean()))
        if changed.any():
            levels.append(float(found[changed].mean()))
    assert min(shares) < 0.3
    assert max(shares) > 0.5
    assert LITTER_HU[0] - 60 < min(levels) < -850 < -650 < max(levels) < LITTER_HU[1] + 60


def test_pockets_of_gas_lie_in_tissue_with_a_wall_to_the_lung() -> None:
    hu = torch.full((1, 24, 60, 60), 40.0)
    hu[:, :, :10] = -1000.0
    lung = torch.zeros(hu.shape, dtype=torch.bool)
    hu[:, 8:16, 20:40, 20:40], lung[:, 8:16, 20:40, 20:40] = -850.0, True
    walled = torch.zeros_like(lung)
    walled[:, 7:17, 19:41, 19:41] = True
    shares, levels, beside = [], [], False
    for seed in range(60):
        found = pocket(hu, lung, np.random.default_rng(seed))
        assert torch.equal(found, pocket(hu, lung, np.random.default_rng(seed)))
        changed = found != hu
        assert not (changed & (walled | (hu <= TISSUE_HU))).any()
        shares.append(float(changed[hu == 40.0].float().mean()))
        if changed.any():
            levels.append(float(found[changed].mean()))
            assert GAS_HU[0] - 200 < levels[-1] < LITTER_HU[1] + 100
            beside = beside or bool(changed[:, 7:17, 18, 19:41].any())
    assert min(shares) < 0.2
    assert 0.3 < max(shares) < 0.6
    assert beside, "no pocket comes near the lung"
    assert 0.5 * len(levels) < sum(level < GAS_HU[1] + 5 for level in levels) < 0.95 * len(levels)


def test_a_shift_spares_what_was_not_scanned() -> None:
    hu = torch.tensor([AIR_HU, AIR_HU + 1.0, -850.0, 40.0])
    assert shift(hu, 30.0).tolist() == [AIR_HU, AIR_HU + 31.0, -820.0, 70.0]


# --- Items of the recipes


def lungs_recipe(data: list[Volume], seed: int = 0, augment: bool = True) -> LungRecipe:
    settings = LungSettings.model_validate(settings_of("lungs", interior=(3, 6, 3), seed=seed, augment=augment))
    return LungRecipe(nn.Identity(), settings, data[:2], data[2:])  # type: ignore[arg-type]  # only its loss needs it


def lesions_recipe(data: list[Volume], seed: int = 0, augment: bool = True, **changed: object) -> LesionRecipe:
    chosen = settings_of("lesions", patch=(8, 16, 8), seed=seed, augment=augment, **changed)
    settings = LesionSettings.model_validate(chosen)
    return LesionRecipe(nn.Identity(), settings, data[:2], data[2:])  # type: ignore[arg-type]


def involvement_recipe(data: list[Volume], seed: int = 0, augment: bool = True) -> InvolvementRecipe:
    settings = InvolvementSettings.model_validate(settings_of("involvement", patches=2, seed=seed, augment=augment))
    return InvolvementRecipe(nn.Identity(), settings, data[:2], data[2:])  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "build"), [("lungs", DeepMedic), ("lesions", LesionNetwork)])
def test_first_weights_are_standardised_over_the_first_patches(
    data: list[Volume], task: str, build: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[task](data)
    network = build()
    recipe.objective.network = network
    recipe.fit_to_data()
    *convolutions, _ = (module for module in network.modules() if isinstance(module, nn.Conv3d))
    seen: list[Tensor] = []

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.movedim(1, 0).flatten(1).clone())  # before the activation changes it in place

    for convolution in convolutions:
        convolution.register_forward_hook(see)
    with torch.no_grad():
        network.eval()(torch.cat([recipe[number][0] for number in range(4)]))
    assert len(seen) == len(convolutions) >= 14
    for values in seen:
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), atol=2e-3, rtol=0.0)
        torch.testing.assert_close(values.std(1), torch.ones(len(values)), atol=2e-3, rtol=0.0)


def test_lung_patches_are_shifted_farther_than_others(monkeypatch: pytest.MonkeyPatch, data: list[Volume]) -> None:
    def level(*args: object) -> dict[str, Tensor]:
        return {name: torch.full((1, 39, 72, 69), value) for name, value in (("hu", -600.0), ("coverage", 255.0))}

    monkeypatch.setattr(lung_training, "cut_patch", level)
    monkeypatch.setattr(lung_training, "normalise", lambda hu: hu)
    for augment, most in ((True, FARTHER_HU), (False, 0.0)):
        recipe = lungs_recipe(data, augment=augment)
        shifts = np.array([float(recipe[number][0].mean()) + 600.0 for number in range(60)])
        assert abs(shifts).max() <= most
        if augment:
            assert stats.kstest(shifts, "uniform", (-most, 2 * most)).pvalue > 0.001


RECIPES = {"lungs": lungs_recipe, "lesions": lesions_recipe, "involvement": involvement_recipe}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    """Two volumes to learn from and one to validate with."""
    folder = tmp_path_factory.mktemp("volumes")
    return [chest(folder / f"{number}.safetensors", number) for number in range(3)]


def same(one: Item, other: Item) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("task", RECIPES)
def test_items_depend_on_their_number_only(task: str, data: list[Volume]) -> None:
    recipe = RECIPES[task](data)
    items = {number: recipe[number] for number in range(3)}
    fixed = recipe.validation_item(1)
    for number in (2, 0, 0):
        assert same(recipe[number], items[number])
    there: PatchRecipe = pickle.loads(pickle.dumps(recipe))  # noqa: S301 - our own, as it goes to other processes
    assert there.objective is None
    assert same(there[2], items[2])
    assert same(there.validation_item(1), fixed)
    assert not any(same(items[a], items[b]) for a, b in itertools.combinations(items, 2))
    assert not same(RECIPES[task](data, seed=1)[2], items[2])


@pytest.mark.parametrize("task", RECIPES)
def test_validation_items_are_of_their_own_volumes_unvaried_and_of_no_seed(task: str, data: list[Volume]) -> None:
    plain = RECIPES[task](data, seed=7, augment=False)
    for index in range(3):
        assert same(plain.validation_item(index), RECIPES[task](data, seed=1).validation_item(index))
        assert same(plain.validation_item(index), RECIPES[task](data[1:] + data[2:]).validation_item(index))
    assert not same(plain.validation_item(0), plain.validation_item(1))


def test_items_of_the_lungs_are_aligned_and_scaled(data: list[Volume]) -> None:
    """What is lung in the made chest is darker than all else inside the body."""
    recipe = lungs_recipe(data, augment=False)
    seen = set()
    for number in range(12):
        image, target = recipe[number]
        assert (image.shape, target.shape) == ((1, 1, 39, 72, 69), (1, 1, 3, 6, 3))
        assert (image.dtype, target.dtype) == (torch.float32, torch.float32)
        assert 0.0 <= image.min() <= image.max() <= 1.0
        interior = image[:, :, 18:-18, 33:-33, 33:-33]
        hu = interior * 1200 - 1100
        assert torch.equal(target == 1, (hu > -950) & (hu < -200))
        seen |= set(target.unique().tolist())
    assert seen == {0.0, 1.0}


def test_items_of_the_lesions_are_aligned_and_scaled(data: list[Volume]) -> None:
    recipe = lesions_recipe(data, augment=False)
    kinds = set()
    for number in range(80):
        image, labels, lungs = recipe[number]
        assert image.shape == labels.shape == lungs.shape == (1, 1, 8, 16, 8)
        assert (image.dtype, labels.dtype, lungs.dtype) == (torch.float32, torch.int64, torch.bool)
        assert 0.0 <= image.min() <= image.max() <= 1.0
        hu = image * 1400 - 1000
        assert torch.equal(labels > 0, (hu > -400) & (hu < -200))
        assert torch.equal(lungs, (hu < -200) & (hu > -930))
        kinds |= set(labels.unique().tolist())
    assert kinds == {0, 1, 2, 3, 4}


def test_the_lesion_network_is_calibrated_in_the_whole_lungs_of_the_validation(data: list[Volume]) -> None:
    """Blocks as in use, and the odds of every voxel of the lungs: recomputed here for the very volume."""
    recipe = lesions_recipe(data, augment=False)
    torch.manual_seed(0)
    network = LesionNetwork(patch=(16, 48, 48)).eval()
    hu, lungs, lesions = (data[2].whole(name) for name in ("hu", "lungs", "lesions"))
    (box,) = ndimage.find_objects((lungs > 0).astype(np.uint8))
    z, y, x = (slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, (5, 8, 8), strict=True))
    image = lung_region(torch.from_numpy(hu[z, y, x].astype(np.float32)), lungs[z, y, x] > 0, (2.0, 2.0))
    standardise(network, image[None, None, :16, 8:56, 16:64])  # so that voxels differ in their odds

    inside, truth = lungs[z, y, x] > 0, lesions[z, y, x] > 0

    def dice(background: np.ndarray, shift: float = 0.0) -> float:
        found = (np.log(1.0 / background - 1.0) + shift >= 0.0) & inside
        return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))

    before = network.head.bias.detach().clone()
    background = predict(network, image)[0].numpy().astype(np.float64)
    shift = recipe.calibrate(network)["shift"]
    torch.testing.assert_close(before - network.head.bias, torch.tensor([shift, 0.0, 0.0, 0.0, 0.0]))
    best = max(dice(background, step / 10) for step in range(-29, 30))
    assert dice(predict(network, image)[0].numpy().astype(np.float64)) == pytest.approx(best, abs=1e-3)
    assert best > dice(background)
    with torch.no_grad():
        network.head.bias[0] += 1.0  # too sure of background
    assert recipe.calibrate(network)["shift"] == pytest.approx(1.0)
    assert lesions_recipe(data, augment=False, calibrate=False).calibrate(network) == {}


def test_items_of_the_lesions_are_blanked_away_from_the_lungs(data: list[Volume]) -> None:
    settings = LesionSettings.model_validate(settings_of("lesions", patch=(8, 64, 64), augment=False))
    recipe = LesionRecipe(nn.Identity(), settings, data[:2], data[2:])  # type: ignore[arg-type]
    inner = np.zeros((64, 64), bool)
    inner[10:-10, 10:-10] = True  # where no lung beyond the patch is near
    places = np.argwhere(np.ones((64, 64), bool)) * 1.5
    blanked = shown = 0
    for number in range(6):
        image, _, lungs = (part[0, 0].numpy() for part in recipe[number])
        for plane, lung in zip(image, lungs, strict=True):
            own = np.argwhere(lung) * 1.5
            if not len(own):
                continue
            distance = cdist(places, own).min(axis=1).reshape(64, 64)
            assert not plane[(distance > 15.0) & inner].any()
            blanked += int(((distance > 15.0) & inner).sum())
            shown += int((plane[(distance <= 15.0) & ~lung] > 0.7).sum())
    assert blanked > 0
    assert shown > 0, "the wall of the chest is seen"


def test_items_of_the_involvement_are_blanked_away_from_the_lungs(data: list[Volume]) -> None:
    recipe = involvement_recipe(data, augment=False)
    for number in range(2):
        images, targets, lungs = recipe[number]
        assert images.shape == targets.shape == lungs.shape == (2, 1, *PATCH)
        for image, target, lung in zip(images[:, 0], targets[:, 0], lungs[:, 0], strict=True):
            assert lung.any()
            assert not target[lung == 0].any()
            inside = torch.nonzero(lung).double()
            everywhere = torch.nonzero(torch.ones(PATCH)).double()
            distance = torch.cdist(everywhere, inside).min(1).values.reshape(PATCH) * 1.5
            assert not image[distance > 15.0].any()
            shown = image[distance <= 15.0] * 1400 - 1000
            affected = target[distance <= 15.0] == 1
            assert torch.equal(affected, (shown > -400) & (shown < -200))
            assert (shown > 0).any(), "the wall of the chest is seen"


def test_an_item_of_several_patches_holds_different_ones(data: list[Volume]) -> None:
    images, _, _ = involvement_recipe(data)[0]
    assert not torch.equal(images[0], images[1])
