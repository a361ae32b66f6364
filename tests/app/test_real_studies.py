"""The whole application on real chest CTs, with the shipped weights, judged by what it published."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from app.cli import main
from models.lungs.reference import reference_lungs
from operators.series_loader import load_ct_series

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

STUDIES = ("covid_P001", "cap_001", "normal_001", "screening_lowdose")


@dataclass(frozen=True)
class Published:
    """What a run left, on the grid of the CT (z, y, x; feet to head)."""

    result: dict
    lungs: np.ndarray
    lesions: np.ndarray


def _masks(path: Path, sops: list[str]) -> dict[str, np.ndarray]:
    """Each segment of a Segmentation as a mask, slices in the order of ``sops``."""
    seg = hd.seg.segread(path)
    numbers = list(seg.segment_numbers)
    pixels = seg.get_pixels_by_source_instance(
        sops, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    return {seg.get_segment_description(n).segment_label: pixels[..., i] > 0 for i, n in enumerate(numbers)}


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> tuple:
    folder = real_data / request.param
    out = tmp_path_factory.mktemp(request.param)
    assert main(["run", "-i", str(folder), "-o", str(out)]) == 0
    volume = load_ct_series(folder)
    masks = _masks(out / "seg" / "segmentation.dcm", [str(h.SOPInstanceUID) for h in volume.headers])
    lungs = masks.pop("Lungs")
    lesions = np.any([m for label, m in masks.items() if "lung" not in label.lower()], axis=0)
    return request.param, volume, Published(json.loads((out / "result.json").read_text()), lungs, lesions)


def test_lungs_agree_with_the_reference(study: tuple) -> None:
    _, volume, published = study
    reference = reference_lungs(volume.hu, volume.grid.spacing) > 0
    dice = 2 * (published.lungs & reference).sum() / (published.lungs.sum() + reference.sum())
    assert dice >= 0.97


def test_infected_slices_rank_before_the_others(study: tuple, real_data: Path) -> None:
    name, _, published = study
    with (real_data / "slice_labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == name]
    if not rows:
        pytest.skip("no slice labels for this study")
    rows.sort(key=lambda row: -int(row["slice_from_head"]))  # feet to head
    infected = np.array([row["infected"] == "1" for row in rows])
    voxels = published.lesions.sum(axis=(1, 2))
    assert len(voxels) == len(infected)
    sick, well = voxels[infected][:, None], voxels[~infected][None]
    assert ((sick > well) + 0.5 * (sick == well)).mean() >= 0.95


def test_healthy_lungs_are_not_involved(study: tuple) -> None:
    name, _, published = study
    if name not in ("normal_001", "screening_lowdose"):
        pytest.skip("diseased")
    total = published.result["measurements"]["total"]
    assert total["involvement"]["percent_of_lung"] < 1.5
    assert total["all_lesions"]["percent_of_lung"] < 1.5


def test_both_lesion_networks_find_about_as_much(study: tuple) -> None:
    total = study[2].result["measurements"]["total"]
    apart = total["involvement"]["percent_of_lung"] - total["all_lesions"]["percent_of_lung"]
    assert abs(apart) <= 3.0
    assert "INVOLVEMENT_DISAGREES" not in {remark["code"] for remark in study[2].result["remarks"]}
