"""The types that the nodes pass on: a type that exists is valid."""

import threading

import numpy as np
import pytest

from operators.findings import Classification, Explanation, Involvement, Lesions, LesionType, Lung, Lungs
from operators.journal import Journal
from operators.volume import CTVolume, Grid
from tests.builders import axial_grid, ct_volume

GRID = axial_grid((4, 6, 8), (3.0, 1.5, 0.5), (-10.0, 20.0, 30.0))


def rotated_grid() -> Grid:
    """Turned about z by 30 degrees."""
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, -sin, cos], [0, cos, sin], [1, 0, 0]]) * [3.0, 1.5, 0.5]
    return Grid((4, 6, 8), affine)


# --- grid ---


def test_affine_maps_slice_row_column_to_lps() -> None:
    np.testing.assert_allclose(GRID.affine @ [2, 3, 4, 1], [-10 + 4 * 0.5, 20 + 3 * 1.5, 30 + 2 * 3.0, 1])


def test_spacing_and_voxel_volume_do_not_depend_on_the_orientation() -> None:
    for grid in (GRID, rotated_grid()):
        assert grid.spacing == pytest.approx((3.0, 1.5, 0.5))
        assert grid.voxel_ml == pytest.approx(3.0 * 1.5 * 0.5 / 1000)


@pytest.mark.parametrize("grid", [GRID, rotated_grid()])
@pytest.mark.parametrize("shape", [(4, 6, 8), (2, 3, 4), (7, 11, 5), (1, 1, 1)])
def test_resampling_keeps_the_outer_faces(grid: Grid, shape: tuple[int, int, int]) -> None:
    other = grid.resampled(shape)
    for corner in np.ndindex(2, 2, 2):
        ours = [(n if high else 0) - 0.5 for n, high in zip(grid.shape, corner, strict=True)]
        theirs = [(n if high else 0) - 0.5 for n, high in zip(shape, corner, strict=True)]
        np.testing.assert_allclose(other.affine @ [*theirs, 1], grid.affine @ [*ours, 1], atol=1e-9)
    assert other.voxel_ml * np.prod(shape) == pytest.approx(grid.voxel_ml * np.prod(grid.shape))
    assert other.resampled(grid.shape).matches(grid)


def test_grids_match_by_shape_and_place() -> None:
    assert GRID.matches(axial_grid((4, 6, 8), (3.0, 1.5, 0.5), (-10.0, 20.0, 30.0)))
    assert not GRID.matches(axial_grid((4, 6, 9), (3.0, 1.5, 0.5), (-10.0, 20.0, 30.0)))
    assert not GRID.matches(axial_grid((4, 6, 8), (3.0, 1.5, 0.5), (-10.0, 20.1, 30.0)))


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.eye(3), "4 x 4"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "finite"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "size"),
        (np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "orthogonal"),
    ],
)
def test_impossible_grids_do_not_exist(affine: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2)])
def test_grid_needs_three_positive_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three positive"):
        Grid(shape, np.eye(4))


def test_grid_keeps_its_own_affine() -> None:
    affine = np.eye(4)
    grid = Grid((1, 1, 1), affine)
    affine[0, 0] = 5.0
    assert grid.affine[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2.0


# --- volume ---


def test_volume_is_immutable_and_knows_its_uids() -> None:
    volume = ct_volume(np.zeros((3, 4, 5)), study="a")
    with pytest.raises(ValueError, match="read-only"):
        volume.hu[0, 0, 0] = 1.0
    assert volume.study_uid == volume.headers[2].StudyInstanceUID
    assert volume.series_uid == volume.headers[0].SeriesInstanceUID
    assert volume.study_uid != volume.series_uid
    assert volume.study_uid != ct_volume(np.zeros((3, 4, 5)), study="b").study_uid


def test_headers_of_the_builder_agree_with_its_grid() -> None:
    volume = ct_volume(np.zeros((3, 4, 5)), (3.0, 1.5, 0.5), (1.0, 2.0, 3.0))
    for index, header in enumerate(volume.headers):
        np.testing.assert_allclose(volume.grid.affine @ [index, 0, 0, 1], [*header.ImagePositionPatient, 1.0])
        assert list(header.PixelSpacing) == [1.5, 0.5]
        assert (header.Rows, header.Columns) == (4, 5)


def test_inconsistent_volumes_do_not_exist() -> None:
    good = ct_volume(np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="float32"):
        CTVolume(np.zeros((3, 4, 5)), good.grid, good.headers)
    with pytest.raises(ValueError, match="shape"):
        CTVolume(np.zeros((3, 4, 6), np.float32), good.grid, good.headers)
    with pytest.raises(ValueError, match="header"):
        CTVolume(np.zeros((3, 4, 5), np.float32), good.grid, good.headers[:2])
    with pytest.raises(ValueError, match="finite"):
        CTVolume(np.full((3, 4, 5), np.inf, np.float32), good.grid, good.headers)


# --- findings ---


@pytest.mark.parametrize(("kind", "highest"), [(Lungs, max(Lung)), (Lesions, max(LesionType))])
def test_label_masks(kind: type, highest: int) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1, 2, 3] = highest
    found = kind(labels, GRID)
    assert found.mask.sum() == 1
    assert found.mask[1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        found.labels[0, 0, 0] = 1
    with pytest.raises(ValueError, match="range"):
        kind(np.full(GRID.shape, highest + 1, np.uint8), GRID)
    with pytest.raises(ValueError, match="uint8"):
        kind(np.zeros(GRID.shape, np.int16), GRID)
    with pytest.raises(ValueError, match="shape"):
        kind(np.zeros((4, 6, 7), np.uint8), GRID)


def test_involvement_is_boolean_on_the_grid() -> None:
    assert not Involvement(np.zeros(GRID.shape, np.bool_), GRID).mask.any()
    for wrong in (np.zeros(GRID.shape, np.uint8), np.zeros((1, 1, 1), np.bool_)):
        with pytest.raises(ValueError, match="boolean"):
            Involvement(wrong, GRID)


def _classification(probability: float, threshold: float = 0.5, channels: int = 2) -> Classification:
    slices, rows, columns = GRID.shape
    return Classification(
        np.zeros((slices, channels, rows, columns), np.float32), GRID, (0.0, 0.0), probability, threshold
    )


@pytest.mark.parametrize(("probability", "positive"), [(0.49, False), (0.5, True), (1.0, True)])
def test_classification_is_positive_from_the_threshold_on(probability: float, positive: bool) -> None:
    assert _classification(probability).positive is positive


def test_impossible_classifications_do_not_exist() -> None:
    for probability, threshold in ((1.1, 0.5), (-0.1, 0.5), (float("nan"), 0.5), (0.5, 0.0), (0.5, 1.0)):
        with pytest.raises(ValueError, match="probability"):
            _classification(probability, threshold)
    with pytest.raises(ValueError, match="channels"):
        _classification(0.5, channels=1)


def test_heatmaps_lie_on_the_grid() -> None:
    heat = np.zeros(GRID.shape, np.float32)
    assert Explanation(heat, heat.copy(), GRID, 1, 0.3).ct.shape == GRID.shape
    with pytest.raises(ValueError, match="shape"):
        Explanation(heat, heat[:2], GRID, 1, 0.3)


# --- journal ---


def test_journal_tells_what_was_found() -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    with journal.node("A") as found:
        found("148 slices")
        found("4.1 L lung")
    with journal.node("B"):
        pass
    assert lines[0] == "A ..."
    assert lines[1].startswith("A: 148 slices, 4.1 L lung (")
    assert lines[3].startswith("B: done (")
    assert list(journal.seconds) == ["A", "B"]
    assert all(seconds >= 0.0 for seconds in journal.seconds.values())


def test_journal_records_nothing_of_a_node_that_fails() -> None:
    journal = Journal()

    def fail() -> None:
        with journal.node("A"):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert journal.seconds == {}


def test_journal_takes_nodes_of_several_threads() -> None:
    journal = Journal()

    def work(name: str) -> None:
        with journal.node(name):
            pass

    threads = [threading.Thread(target=work, args=(str(k),)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(journal.seconds) == sorted(str(k) for k in range(20))
