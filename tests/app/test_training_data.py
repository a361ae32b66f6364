"""Manifest, cache and labels of the training commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.classifier_data import PackedStudies
from app.outcome import UsageError
from app.training_data import (
    Manifest,
    StudyEntry,
    as_volume,
    infected_slices,
    label_lesions,
    load_annotated_slices,
    load_source,
    read_manifest,
    with_labels,
    with_lesions,
)
from models.training.patterns import MIXED
from models.training.source import Source

SPACING = (2.0, 1.0, 1.0)


def _source() -> Source:
    lungs = np.zeros((30, 60, 80), np.uint8)
    lungs[3:-3, 8:-8, 8:36] = 2
    lungs[3:-3, 8:-8, 44:-8] = 1
    hu = np.where(lungs > 0, -850, 40).astype(np.int16)
    return Source("s", hu, lungs, np.zeros_like(lungs), SPACING)


def test_paths_of_a_manifest_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("studies:\n  - {name: a, folder: dicom/a, healthy: true}\nslice_labels: labels.csv\n")
    manifest = read_manifest(path)
    assert manifest.studies[0].folder == tmp_path / "dicom/a"
    assert manifest.slice_labels == tmp_path / "labels.csv"
    assert manifest.annotated_slices is None


@pytest.mark.parametrize("text", ["studies: 3", "{", "studies:\n  - {name: a}", "studies: []\nmodel: x"])
def test_a_wrong_manifest_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="manifest"):
        read_manifest(path)


def test_a_missing_manifest_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_manifest(tmp_path / "none.yaml")


def test_slice_labels_run_from_the_head(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("case,slice_from_head,infected\na,0,1\na,1,0\na,2,0\na,3,0\nb,0,0\n")
    entry = StudyEntry(name="a", folder=tmp_path, healthy=False, slice_labels="a")
    manifest = Manifest(studies=(entry,), slice_labels=table)
    got = infected_slices(manifest, entry, 4)
    assert got is not None
    assert got.tolist() == [False, False, False, True]  # feet to head
    doubled = infected_slices(manifest, entry, 8)
    assert doubled is not None
    assert doubled.tolist() == [False] * 6 + [True] * 2
    assert infected_slices(manifest, entry.model_copy(update={"slice_labels": None}), 4) is None


def test_a_source_keeps_its_geometry_as_a_volume() -> None:
    volume = as_volume(_source())
    np.testing.assert_allclose(volume.grid.affine @ [1, 2, 3, 1], [3.0, 2.0, 2.0, 1.0])
    assert volume.grid.spacing == SPACING


def test_the_cache_is_used_once_it_is_there(tmp_path: Path) -> None:
    source = _source()
    np.savez_compressed(tmp_path / "s.npz", hu=source.hu, lungs=source.lungs, spacing=np.array(SPACING))
    entry = StudyEntry(name="s", folder=tmp_path / "nothing", healthy=True)
    lines: list[str] = []
    loaded = load_source(entry, tmp_path, lines.append)
    np.testing.assert_array_equal(loaded.hu, source.hu)
    np.testing.assert_array_equal(loaded.lungs, source.lungs)
    assert loaded.spacing == SPACING
    assert not lines


def test_variants_differ_and_repeat_with_the_seed() -> None:
    first, second = with_lesions(_source(), [MIXED, MIXED], seed=1)
    assert (first.lesions != second.lesions).any()
    np.testing.assert_array_equal(first.hu, with_lesions(_source(), [MIXED], seed=1)[0].hu)


class _Dense(nn.Module):
    """Logit of affected lung: above -650 HU."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1400 - 350) / 5


def test_labels_have_types_respect_healthy_slices_and_are_kept(tmp_path: Path) -> None:
    source = _source()
    source.hu[8:14, 20:40, 10:30] = -500
    source.hu[16:22, 20:40, 50:70] = 30
    infected = np.ones(30, bool)
    infected[11:] = False
    infected[16:] = True
    labelled = label_lesions(source, _Dense(), infected, tmp_path)  # type: ignore[arg-type]
    assert (labelled.lesions[9:11, 22:38, 12:28] == 1).mean() > 0.9
    assert (labelled.lesions[18:20, 24:36, 54:66] == 2).mean() > 0.9
    assert not labelled.lesions[11:16].any()
    np.testing.assert_array_equal(with_labels(source, tmp_path).lesions, labelled.lesions)


def test_labels_that_are_missing_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train involvement first"):
        with_labels(_source(), tmp_path)


def test_annotated_slices_are_unpacked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ct = rng.integers(0, 255, (3, 16, 24)).astype(np.uint8)
    lungs, infection = rng.random((2, *ct.shape)) > 0.5
    np.savez(tmp_path / "a.npz", ct=ct, lungs=np.packbits(lungs), infection=np.packbits(infection))
    got = load_annotated_slices(tmp_path / "a.npz")
    np.testing.assert_array_equal(got.lungs, lungs)
    np.testing.assert_array_equal(got.infection, infection & lungs)


def test_packed_studies_come_back_in_the_unit_range() -> None:
    inputs = np.array([[[[0, 255], [51, 102]]] * 2], dtype=np.uint8)
    slices, label = PackedStudies([inputs], [1])[0]
    assert label == 1
    torch.testing.assert_close(slices[0, 0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
