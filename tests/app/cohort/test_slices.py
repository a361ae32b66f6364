"""Annotated slices are read as documented or refused, and brought to a scale like HU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app.cli import main
from app.cohort.images import load_mask, load_study
from app.cohort.slices import LUNG_HU, TISSUE_HU, read_slices, slice_gap, to_hounsfield, turned_over
from app.cohort.table import inspect_cohort
from app.outcome import UsageError

Masks = npt.NDArray[np.bool_]


def _slices(count: int = 4) -> tuple[npt.NDArray[np.uint8], Masks, Masks]:
    """Slices with lungs at random, infection in some of them, and nothing at their left edge."""
    rng = np.random.default_rng(0)
    lungs = rng.random((count, 17, 19)) < 0.4
    infection = lungs & (rng.random(lungs.shape) < 0.3)
    ct = np.where(lungs, np.where(infection, 170, 60), 200) + rng.integers(0, 30, lungs.shape)
    ct[:, :, :2] = 0
    lungs[:, :, :2] = infection[:, :, :2] = False
    return ct.astype(np.uint8), lungs, infection


def _write(path: Path, count: int = 4, **arrays: npt.NDArray[np.generic]) -> Path:
    ct, lungs, infection = _slices(count)
    usual = {"ct": ct, "lungs": np.packbits(lungs), "infection": np.packbits(infection)}
    np.savez_compressed(path, **(usual | arrays))
    return path


def test_what_is_documented_is_read(tmp_path: Path) -> None:
    ct, lungs, infection = _slices()
    study = np.array([3, 3, 0, 1], np.uint8)
    slices = read_slices(_write(tmp_path / "slices.npz", volume_guess=study))
    np.testing.assert_array_equal(slices.ct, ct, strict=True)
    np.testing.assert_array_equal(slices.lungs, lungs, strict=True)
    np.testing.assert_array_equal(slices.infection, infection, strict=True)
    np.testing.assert_array_equal(slices.study, study, strict=True)


def test_without_studies_all_slices_are_of_one(tmp_path: Path) -> None:
    assert read_slices(_write(tmp_path / "slices.npz", 3)).study.tolist() == [0, 0, 0]


def test_infection_outside_the_lungs_does_not_count(tmp_path: Path) -> None:
    _, lungs, _ = _slices()
    everywhere = np.packbits(np.ones(lungs.shape, bool))
    slices = read_slices(_write(tmp_path / "slices.npz", infection=everywhere))
    np.testing.assert_array_equal(slices.infection, lungs)


def test_studies_that_lie_upside_down_are_turned_over(tmp_path: Path) -> None:
    ct, lungs, infection = _slices()
    slices = read_slices(_write(tmp_path / "slices.npz", volume_guess=np.array([3, 5, 3, 9], np.uint8)))
    turned = turned_over(slices, [3, 9])
    for number, over in enumerate((True, False, True, True)):
        way = -1 if over else 1
        for found, given in ((turned.ct, ct), (turned.lungs, lungs), (turned.infection, infection)):
            np.testing.assert_array_equal(found[number], given[number][::way], strict=True)
    np.testing.assert_array_equal(turned.study, slices.study, strict=True)
    np.testing.assert_array_equal(turned_over(slices, ()).ct, ct, strict=True)
    with pytest.raises(UsageError, match="there is no study 4 among the slices"):
        turned_over(slices, [3, 4])


def _spoil(path: Path, kind: str) -> None:
    ct, lungs, _ = _slices()
    whole = _write(path).read_bytes()
    match kind:
        case "absent":
            path.unlink()
        case "a folder":
            path.unlink()
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "no archive":
            path.write_bytes(b"something else")
        case "an array":
            with path.open("wb") as file:
                np.save(file, ct)
        case "objects":
            _write(path, ct=np.array([None, {}], object))
        case "other arrays":
            np.savez(path, something=ct)
        case "no infection":
            np.savez(path, ct=ct, lungs=np.packbits(lungs))
        case "too few bits":
            _write(path, lungs=np.packbits(lungs[:-1]))


@pytest.mark.parametrize(
    "kind",
    [
        *("absent", "a folder", "empty", "cut", "no archive"),
        *("an array", "objects", "other arrays", "no infection", "too few bits"),
    ],
)
def test_what_holds_no_slices_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "slices.npz"
    _spoil(path, kind)
    with pytest.raises(UsageError) as error:
        read_slices(path)
    assert str(error.value) == f"{path} holds no annotated slices; see docs/evaluation.md"


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param({"ct": _slices()[0][0]}, id="one slice without an axis"),
        pytest.param({"ct": _slices()[0].astype(np.int16)}, id="other numbers"),
        pytest.param({"ct": np.zeros((4, 15, 19), np.uint8)}, id="few rows"),
        pytest.param({"ct": np.zeros((4, 17, 15), np.uint8)}, id="few columns"),
        pytest.param({"volume_guess": np.zeros(3, np.uint8)}, id="a study too few"),
        pytest.param({"volume_guess": np.uint8(0)}, id="one study for all"),
    ],
)
def test_other_arrays_than_documented_are_refused(arrays: dict[str, npt.NDArray[np.generic]], tmp_path: Path) -> None:
    path = _write(tmp_path / "slices.npz", **arrays)
    with pytest.raises(UsageError) as error:
        read_slices(path)
    assert str(path) in str(error.value)
    assert "docs/evaluation.md" in str(error.value)


def test_damage_anywhere_is_refused_or_does_no_harm(tmp_path: Path) -> None:
    whole = _write(tmp_path / "slices.npz").read_bytes()
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "damaged.npz", 0
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            read_slices(path)
        except UsageError:
            refused += 1
    assert refused > 200


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    _, lungs, _ = _slices()
    wider = np.packbits(np.pad(lungs, ((0, 0), (0, 0), (0, 4))))
    with pytest.raises(UsageError):
        read_slices(_write(tmp_path / "slices.npz", lungs=wider))


def test_medians_of_lung_and_wall_are_the_usual() -> None:
    ct, lungs, _ = (each[0] for each in _slices())
    hu = to_hounsfield(ct, lungs)
    assert hu.dtype == np.float32
    assert np.quantile(hu[lungs], 0.45) == pytest.approx(LUNG_HU, abs=0.01)
    assert np.median(hu[~lungs & (ct > 0)]) == pytest.approx(TISSUE_HU, abs=0.01)
    order = np.argsort(ct, axis=None)
    assert (np.diff(hu.ravel()[order]) >= 0).all()


def test_the_scale_is_linear() -> None:
    """Healthy lung at 50, wall at 200: one step of intensity is 900 HU in 150."""
    ct = np.full((16, 16), 200, np.uint8)
    lungs = np.zeros((16, 16), bool)
    lungs[2:8] = True
    ct[4:8], ct[2:4], ct[14:] = 50, 125, 0
    hu = to_hounsfield(ct, lungs)
    assert [float(hu[row, 0]) for row in (5, 3, 10, 15)] == pytest.approx([-860, -410, 40, -1160])


def test_without_lung_or_wall_there_are_usual_intensities() -> None:
    ct = np.full((16, 16), 120, np.uint8)
    everything, nothing = np.ones((16, 16), bool), np.zeros((16, 16), bool)
    no_wall = to_hounsfield(ct, everything)
    assert no_wall[0, 0] == pytest.approx(-860)
    no_lung = to_hounsfield(ct, nothing)
    assert no_lung[0, 0] == pytest.approx(40)


def test_a_wall_as_bright_as_lung_does_not_blow_the_scale_up() -> None:
    ct = np.full((16, 16), 100, np.uint8)
    lungs = np.zeros((16, 16), bool)
    lungs[:8], ct[0, 0] = True, 130
    hu = to_hounsfield(ct, lungs)
    assert hu[10, 0] == pytest.approx(-860)
    assert hu[0, 0] == pytest.approx(40), "30 steps at least from lung to wall"


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_lungs_that_change_more_from_slice_to_slice_lie_farther_apart(step: int) -> None:
    z, y, x = np.ogrid[-100:101:2, -90:91, -90:91]
    lungs = (z / 100) ** 2 + (y / 90) ** 2 + (x / 90) ** 2 <= 1  # 200 mm high where slices are 2 mm apart
    assert slice_gap(lungs[::step]) == pytest.approx(2.0 * step, rel=0.1), "their middle change is 1 in 150 mm"
    assert slice_gap(lungs[::step, ::2, ::2]) == pytest.approx(slice_gap(lungs[::step]), rel=0.1), "of any pixel size"


def test_what_hardly_changes_is_thin_and_what_has_no_neighbour_too() -> None:
    disc = np.ones((1, 20, 20), bool)
    assert slice_gap(disc) == slice_gap(np.repeat(disc, 9, 0)) == slice_gap(np.zeros((3, 20, 20), bool)) == 1.25
    assert slice_gap(np.stack([disc[0], ~disc[0], disc[0]])) == 8.0


def test_slices_become_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "slices.npz", 6, volume_guess=np.array([4, 4, 4, 7, 7, 7]))
    assert main(["cohort", str(tmp_path / "out"), "--from-slices", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(["cohort", str(tmp_path / "out")]) == 0
    assert "the cohort has only positive studies: no classifier" in capsys.readouterr().err
    slices = read_slices(path)
    studies, problems = inspect_cohort(tmp_path / "out")
    assert not problems
    assert [study.patient for study in studies] == ["study004", "study007"]
    for study, number in zip(studies, (4, 7), strict=True):
        volume, own = load_study(study), slices.study == number
        assert volume.grid.spacing == pytest.approx((8.0, 1.5, 1.5)), "lungs at random change altogether"
        assert study.lungs is not None
        assert study.lesions is not None
        lungs, lesions = load_mask(study.lungs, volume.grid, 2), load_mask(study.lesions, volume.grid, 5)
        np.testing.assert_array_equal(lungs > 0, slices.lungs[own])
        np.testing.assert_array_equal(lesions, 5 * slices.infection[own])
        for hu, *parts in zip(volume.hu, slices.ct[own], slices.lungs[own], strict=True):
            np.testing.assert_allclose(hu, to_hounsfield(*parts).clip(min=-1024), atol=0.5)
    assert main(["cohort", str(tmp_path / "out"), "--split", "1", "1", "0"]) == 0, (
        "of one class, segmentation can learn"
    )
    assert {study.split for study in inspect_cohort(tmp_path / "out")[0]} == {"train", "validation"}
    capsys.readouterr()
    assert main(["cohort", str(tmp_path / "out"), "--from-slices", str(path)]) == 64
    assert "is not empty" in capsys.readouterr().err
    assert main(["cohort", str(tmp_path / "more"), "--from-slices", str(path), "--split", "1", "1", "1"]) == 64
    assert "--from-slices makes a cohort with its own masks" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_a_cohort_of_slices_that_lie_upside_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "slices.npz", 6, volume_guess=np.array([4, 4, 4, 7, 7, 7]))
    options = ["--from-slices", str(path), "--upside-down"]
    assert main(["cohort", str(tmp_path / "out"), *options, "7"]) == 0
    slices = read_slices(path)
    for study, way in zip(inspect_cohort(tmp_path / "out")[0], (1, -1), strict=True):
        assert study.lesions is not None
        own = slices.infection[slices.study == int(study.patient[-3:])]
        np.testing.assert_array_equal(load_mask(study.lesions, load_study(study).grid, 5) > 0, own[:, ::way])
    capsys.readouterr()
    assert main(["cohort", str(tmp_path / "more"), *options, "5"]) == 64
    assert "there is no study 5 among the slices" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    assert main(["cohort", str(tmp_path / "out"), "--upside-down", "7"]) == 64
    assert "--upside-down says how the slices of --from-slices lie" in capsys.readouterr().err
