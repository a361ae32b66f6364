"""What a run publishes of real chest CTs as this machine runs it, beside PyTorch in float32."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from app.cli import main

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

STUDIES = ("covid_P001", "cap_001", "normal_001", "screening_lowdose")
_HEATMAPS = ("relevance_ct", "relevance_lesions")


@pytest.fixture(scope="module", params=STUDIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> list[Path]:
    """The results of a study, as it is run and in PyTorch in float32."""
    outputs = []
    for settings in ((), ("runtime=torch", "precision=float32")):
        outputs.append(tmp_path_factory.mktemp(request.param))
        assigned = [part for each in settings for part in ("--set", each)]
        assert main(["run", "-i", str(real_data / request.param), "-o", str(outputs[-1]), *assigned]) == 0
    return outputs


def _places(output: Path) -> dict[str, dict[str, np.ndarray]]:
    """For lungs and lesions, what a segmentation marks in each slice, by the position of the slice."""
    seg = hd.seg.segread(output / "seg" / "segmentation.dcm")
    frames = seg.pixel_array.reshape(-1, seg.Rows * seg.Columns) > 0
    labels = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    found: dict[str, dict[str, np.ndarray]] = {"lungs": {}, "lesions": {}}
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        label = labels[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        kind = "lungs" if label == "Lungs" else "lesions" if "lung" not in label.lower() else None
        if kind is not None:
            where = str(groups.PlanePositionSequence[0].ImagePositionPatient)
            found[kind][where] = found[kind].get(where, False) | frame
    return found


def _floats(path: Path) -> np.ndarray:
    return np.frombuffer(pydicom.dcmread(path).FloatPixelData, np.float32)


def _agreement(both: list[Path], kind: str) -> float:
    first, second = (_places(output)[kind] for output in both)
    common = sum(int((plane & second[z]).sum()) for z, plane in first.items() if z in second)
    total = sum(int(plane.sum()) for masks in (first, second) for plane in masks.values())
    print(kind, 2 * common / max(total, 1), total)  # noqa: T201 - for the table of docs/performance.md
    return 2 * common / total if total else 1.0


def test_lungs_are_the_same(both: list[Path]) -> None:
    assert _agreement(both, "lungs") >= 0.995


def test_lesions_are_the_same(both: list[Path]) -> None:
    assert _agreement(both, "lesions") >= 0.995


def test_the_probability_is_the_same(both: list[Path]) -> None:
    first, second = (json.loads((output / "result.json").read_text("utf-8"))["probability"] for output in both)
    print("probability", first, second)  # noqa: T201
    assert first == pytest.approx(second, abs=0.01)


def test_heatmaps_are_the_same(both: list[Path]) -> None:
    for name in _HEATMAPS:
        maps = [_floats(output / "pm" / f"{name}.dcm") for output in both]
        if maps[0].shape == maps[1].shape and all(each.std() > 0 for each in maps):
            correlation = float(np.corrcoef(*maps)[0, 1])
            print(name, correlation)  # noqa: T201
            assert correlation >= 0.99
        else:
            assert not any(each.any() for each in maps)
