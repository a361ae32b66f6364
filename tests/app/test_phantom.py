"""The phantom: an anatomy with known truth, and valid DICOM."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from app.phantom import EXTENT_MM, Phantom, make_phantom, write_phantom
from app.phantom.dicom import ct_headers, write_ct_series
from app.phantom.space import Space
from app.phantom.trees import grow_tree
from operators.findings import LesionType, Lung
from operators.series_loader import load_ct_series

COARSE = (6.0, 2.8, 2.8)


@cache
def coarse(seed: int) -> Phantom:
    return make_phantom(seed, COARSE)


@pytest.fixture(scope="module")
def ill() -> Phantom:
    return coarse(0)


@pytest.fixture(scope="module")
def healthy() -> Phantom:
    return make_phantom(0, COARSE, lesions=False)


def test_shape_follows_from_the_spacing(ill: Phantom) -> None:
    assert ill.hu.shape == ill.lungs.shape == ill.lesions.shape == (50, 128, 128)
    assert (ill.hu.dtype, ill.lungs.dtype, ill.lesions.dtype) == (np.float32, np.uint8, np.uint8)
    np.testing.assert_allclose(np.array(ill.hu.shape) * COARSE, EXTENT_MM)


def test_seed_makes_the_phantom(ill: Phantom) -> None:
    again, other = make_phantom(0, COARSE), coarse(1)
    np.testing.assert_array_equal(again.hu, ill.hu)
    np.testing.assert_array_equal(again.lesions, ill.lesions)
    assert (other.lungs != ill.lungs).any()
    assert (other.lesions != ill.lesions).any()


def test_lungs_are_those_of_an_adult(healthy: Phantom) -> None:
    ml = np.prod(COARSE) / 1000
    left, right = (float((healthy.lungs == lung).sum() * ml) for lung in Lung)
    assert 1200 < left < right < 3500
    for lung in Lung:
        assert ndimage.label(healthy.lungs == lung)[1] == 1
    columns = [np.argwhere(healthy.lungs == lung)[:, 2].mean() for lung in (Lung.RIGHT, Lung.LEFT)]
    assert columns[0] < 64 < columns[1]  # columns run to the patient's left
    slices = np.flatnonzero((healthy.lungs > 0).any(axis=(1, 2)))
    assert 0 < slices[0] < slices[-1] < 49  # complete: neither cut at the base nor at the apex


def test_densities_are_those_of_a_chest(healthy: Phantom) -> None:
    inside = healthy.hu[healthy.lungs > 0]
    assert -880 < np.median(inside) < -780
    assert healthy.hu.min() >= -1024
    assert healthy.hu.max() > 300  # bone
    assert abs(np.median(healthy.hu[:, :8, :]) + 1000) < 20  # air around
    assert (healthy.lesions == 0).all()
    depth = np.argwhere(healthy.lungs > 0)[:, 1]
    front, back = inside[depth < np.quantile(depth, 0.2)], inside[depth > np.quantile(depth, 0.8)]
    assert np.median(front) < np.median(back) - 10  # gravity


def test_trachea_is_air_outside_the_lungs(healthy: Phantom) -> None:
    z = round(240 / COARSE[0])
    window = (z, slice(56, 72), slice(58, 70))
    assert (healthy.hu[window] < -800).any()
    assert (healthy.lungs[window] == 0).all()


def test_lungs_are_the_dark_regions_within_the_body(healthy: Phantom) -> None:
    """Found independently: thresholded air that does not reach the border, the two largest parts."""
    dark = ndimage.binary_opening(healthy.hu < -500, iterations=1)
    labels, _ = ndimage.label(dark)
    outside = np.unique(np.concatenate([labels[:, 0].ravel(), labels[:, -1].ravel(), labels[-1].ravel()]))
    sizes = np.bincount(labels.ravel())
    sizes[outside] = 0
    found = np.isin(labels, np.argsort(sizes)[-2:])
    found = ndimage.binary_closing(found, iterations=2)
    truth = healthy.lungs > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_every_lesion_is_there_in_the_lungs_with_its_density(seed: int) -> None:
    phantom = coarse(seed)
    ml = np.prod(COARSE) / 1000
    assert not (phantom.lesions[phantom.lungs == 0]).any()
    median = {}
    for kind in LesionType:
        values = phantom.hu[phantom.lesions == kind]
        assert values.size * ml > 10
        median[kind] = np.median(values)
    assert -650 < median[LesionType.GROUND_GLASS] < -450
    assert median[LesionType.CONSOLIDATION] > -150
    assert median[LesionType.GROUND_GLASS] < median[LesionType.CRAZY_PAVING] < median[LesionType.CONSOLIDATION]
    glass = np.unique(phantom.lungs[phantom.lesions == LesionType.GROUND_GLASS])
    assert glass.tolist() == sorted(Lung)  # bilateral


def test_combined_lesion_is_dense_inside_and_ground_glass_around(ill: Phantom) -> None:
    lesion = ill.lesions == LesionType.COMBINED
    depth = ndimage.distance_transform_edt(lesion, sampling=COARSE)
    assert np.median(ill.hu[depth > 0.75 * depth.max()]) > -150
    assert np.median(ill.hu[lesion & (depth < 5)]) < -400


def test_tree_is_rooted_and_thins_out() -> None:
    space = Space((20, 20, 20), (2.0, 2.0, 2.0))
    tree = grow_tree(
        space, np.ones(space.shape, bool), (0.0, 0.0, 0.0), leaves=30, leaf_radius=0.5, rng=np.random.default_rng(0)
    )
    assert (tree.parents[1:] < np.arange(1, len(tree.nodes))).all()
    assert (tree.radii[tree.parents[1:]] >= tree.radii[1:]).all()
    assert tree.radii.min() == pytest.approx(0.5)
    leaves = np.setdiff1d(np.arange(len(tree.nodes)), tree.parents)
    assert tree.radii[0] ** 2.7 == pytest.approx(len(leaves) * 0.5**2.7)  # what enters is what arrives


def test_tube_is_where_its_points_are() -> None:
    """Against a voxel-by-voxel computation."""
    space = Space((10, 12, 14), (2.0, 1.5, 1.0))
    start, end, radius = np.array([-3.0, -4.0, 4.0]), np.array([4.0, 5.0, 14.0]), 3.0
    tube = space.tube([tuple(start), tuple(end)], radius)
    for k, j, i in np.ndindex(*space.shape):
        point = np.array([(i - 6.5) * 1.0, (j - 5.5) * 1.5, k * 2.0])
        t = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
        distance = np.linalg.norm(point - start - t * (end - start))
        if abs(distance - radius) > 1e-3:
            assert tube[k, j, i] == (distance < radius)


def test_headers_are_deterministic_and_unique() -> None:
    first, again = ct_headers((3, 4, 4), (3.0, 1.0, 1.0)), ct_headers((3, 4, 4), (3.0, 1.0, 1.0))
    assert first == again
    assert len({header.SOPInstanceUID for header in first}) == 3
    other = ct_headers((3, 4, 4), (3.0, 1.0, 1.0), study="other")
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert first[0][keyword].value != other[0][keyword].value


def test_file_names_do_not_tell_the_order(tmp_path: Path) -> None:
    paths = write_ct_series(tmp_path, np.zeros((20, 4, 4), np.float32), (3.0, 1.0, 1.0))
    assert paths != sorted(paths)
    positions = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in paths]
    assert positions == [3.0 * k for k in range(20)]


def test_written_phantom_is_valid_dicom_and_loads_back(tmp_path: Path) -> None:
    series = write_phantom(tmp_path, 1, COARSE)
    volume = load_ct_series(series)
    phantom = coarse(1)
    np.testing.assert_array_equal(volume.hu, phantom.hu)
    assert volume.grid.spacing == pytest.approx(phantom.spacing)
    np.testing.assert_allclose(volume.grid.affine @ [0, 63.5, 63.5, 1], [0.0, 0.0, 0.0, 1.0], atol=1e-6)
    with np.load(tmp_path / "truth.npz", allow_pickle=False) as truth:
        np.testing.assert_array_equal(truth["lungs"], phantom.lungs)
        np.testing.assert_array_equal(truth["lesions"], phantom.lesions)
        assert truth["spacing"].tolist() == list(phantom.spacing)
    validator = shutil.which("dciodvfy", path=str(Path(sys.executable).parent))
    assert validator, "the development extra brings dciodvfy"
    for path in sorted(series.iterdir())[::25]:
        checked = subprocess.run([validator, path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0
        assert "Error" not in checked.stdout + checked.stderr
