"""``result.json`` holds what was found, agrees with the files, and names no patient."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from app.result import CompletedResult, Notification, RefusedResult, list_files
from app.settings import Settings
from models.record import ModelRecord
from operators.findings import Classification, Involvement, Lesions, LesionType, Lung, Lungs
from operators.identity import ModelSet
from operators.measurements import measure
from operators.refusal import InputRefused, ReasonCode
from operators.relevance_summary import ChannelRelevance, RelevanceSummary
from operators.remarks import Remark, RemarkCode
from operators.volume import CTVolume
from tests.builders import axial_grid, ct_volume

RELEVANCE = RelevanceSummary(
    explained="positive",
    logit=1.5,
    ct=ChannelRelevance(total=1.25, residual=0.25, reliable=True),
    lesions=ChannelRelevance(total=-1.0, residual=2.5, reliable=False),
    lung_share=0.75,
    ledger={"logit": 1.5, "gate": 1.5, "ct": 1.25, "lesions": -1.0},
)
_MODELS = ModelSet(*(ModelRecord(f"model {digit}", "1.0", digit * 64) for digit in "1234"))


@pytest.fixture
def volume() -> CTVolume:
    return ct_volume(np.full((6, 4, 4), -800.0), spacing=(10.0, 10.0, 10.0), PatientName="Doe^Jane", PatientID="4711")


def _completed(volume: CTVolume, folder: Path, probability: float = 0.75) -> CompletedResult:
    labels = np.full(volume.grid.shape, Lung.LEFT, dtype=np.uint8)
    labels[:, :, :1] = Lung.RIGHT
    kinds = np.zeros_like(labels)
    kinds[0, :, 0] = LesionType.GROUND_GLASS
    lungs, lesions = Lungs(labels, volume.grid), Lesions(kinds, volume.grid)
    involvement = Involvement(kinds > 0, volume.grid)
    inputs = np.zeros((1, 2, 4, 4), dtype=np.float32)
    classification = Classification(inputs, axial_grid((1, 4, 4)), (0.0, 1.0), probability, 0.5)
    return CompletedResult.of(
        volume,
        measure(volume, lungs, lesions, involvement),
        classification,
        RELEVANCE,
        [Remark(RemarkCode.ONE_LUNG, "Only one lung was found.")],
        models=_MODELS,
        settings=Settings(),
        seconds={"Series loader": 0.12345},
        folder=folder,
    )


def _read(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "result.json").read_text("utf-8"))
    assert isinstance(content, dict)
    return content


def test_a_completed_result_says_everything(volume: CTVolume, tmp_path: Path) -> None:
    (tmp_path / "sr").mkdir()
    (tmp_path / "sr" / "report.dcm").write_bytes(b"report")
    _completed(volume, tmp_path).write(tmp_path)
    content = _read(tmp_path)
    measurements = content.pop("measurements")
    assert content == {
        "status": "completed",
        "reason_codes": [],
        "message": "COVID-19 positive, probability 0.75",
        "notice": "Research use only. Not for diagnostic use.",
        "software": {"name": "covid-ct-map", "version": "0.1.0"},
        "settings": {
            "studies": "each",
            "max_gap_mm": 5.0,
            "threshold": 0.5,
            "in_plane": None,
            "target": "positive",
            "gate_share": 1.0,
            "residual_limit": 0.75,
            "layout": "auto",
            "deflate": False,
            "pdf": False,
            "runtime": "auto",
            "precision": "auto",
        },
        "__mercure_notification": {
            "text": "COVID-19 positive, probability 0.75. Research use only. Not for diagnostic use.",
            "requested": True,
        },
        "remarks": [{"code": "ONE_LUNG", "message": "Only one lung was found."}],
        "study_uid": volume.study_uid,
        "series_uid": volume.series_uid,
        "models": {
            task: {"name": f"model {digit}", "version": "1.0", "sha256": digit * 64, "settings": {}}
            for task, digit in zip(("lungs", "lesions", "involvement", "classifier"), "1234", strict=True)
        },
        "probability": 0.75,
        "decision": "positive",
        "threshold": 0.5,
        "relevance": {
            "explained": "positive",
            "logit": 1.5,
            "ct": {"total": 1.25, "residual": 0.25, "reliable": True},
            "lesions": {"total": -1.0, "residual": 2.5, "reliable": False},
            "lung_share": 0.75,
            "ledger": {"logit": 1.5, "gate": 1.5, "ct": 1.25, "lesions": -1.0},
        },
        "seconds": {"Series loader": 0.123},
        "files": [{"path": "sr/report.dcm", "sha256": hashlib.sha256(b"report").hexdigest(), "bytes": 6}],
    }
    assert isinstance(measurements, dict)
    assert measurements["total"]["volume_ml"] == pytest.approx(96.0)  # 96 voxels of 1 ml
    assert measurements["right"]["volume_ml"] == pytest.approx(24.0)
    assert measurements["right"]["ground_glass"] == pytest.approx({"volume_ml": 4.0, "percent_of_lung": 100 / 6})
    assert measurements["left"]["involvement"]["percent_of_lung"] == 0.0


def test_metadata_are_single_values_that_decide_what_becomes_of_a_study(volume: CTVolume, tmp_path: Path) -> None:
    result = _completed(volume, tmp_path, probability=0.25)
    result.write(tmp_path)
    metadata = json.loads((tmp_path / "metadata.json").read_text("utf-8"))
    total = result.measurements.total
    assert metadata == {
        "status": "completed",
        "reason_codes": "",
        "message": "COVID-19 negative, probability 0.25",
        "notice": "Research use only. Not for diagnostic use.",
        "software": "covid-ct-map 0.1.0",
        "decision": "negative",
        "probability": 0.25,
        "involvement_percent": total.involvement.percent_of_lung,
        "lesions_percent": total.all_lesions.percent_of_lung,
        "remarks": "ONE_LUNG",
    }
    assert not result.notification.requested


def test_a_refusal_asks_for_attention(tmp_path: Path) -> None:
    refusal = InputRefused(ReasonCode.NO_DICOM, "the folder holds no DICOM object")
    RefusedResult.of(refusal, Settings()).write(tmp_path)
    assert _read(tmp_path)["__mercure_notification"] == {
        "text": "Refused: NO_DICOM: the folder holds no DICOM object",
        "requested": True,
    }
    assert json.loads((tmp_path / "metadata.json").read_text("utf-8"))["reason_codes"] == "NO_DICOM"


def test_flat_results_are_listed_too(tmp_path: Path) -> None:
    (tmp_path / "sr-report.dcm").write_bytes(b"report")
    (tmp_path / "other.dcm").write_bytes(b"other")
    assert [file.path for file in list_files(tmp_path)] == ["sr-report.dcm"]


def test_no_patient_data(volume: CTVolume, tmp_path: Path) -> None:
    _completed(volume, tmp_path).write(tmp_path)
    text = (tmp_path / "result.json").read_text("utf-8")
    assert "Doe" not in text
    assert "4711" not in text.replace(volume.study_uid, "").replace(volume.series_uid, "")


def test_the_threshold_itself_is_positive(volume: CTVolume, tmp_path: Path) -> None:
    assert _completed(volume, tmp_path, probability=0.5).decision == "positive"
    assert _completed(volume, tmp_path, probability=np.nextafter(0.5, 0).item()).decision == "negative"


def test_a_written_result_can_be_read_back(volume: CTVolume, tmp_path: Path) -> None:
    result = _completed(volume, tmp_path)
    result.write(tmp_path)
    assert CompletedResult.model_validate_json((tmp_path / "result.json").read_text("utf-8")) == result


def test_a_refused_result_has_reason_and_nothing_found(tmp_path: Path) -> None:
    refusal = InputRefused(ReasonCode.NO_DICOM, "the folder holds no DICOM object")
    RefusedResult.of(refusal, Settings()).write(tmp_path)
    content = _read(tmp_path)
    assert content["status"] == "refused"
    assert content["reason_codes"] == ["NO_DICOM"]
    assert content["message"] == "the folder holds no DICOM object"
    assert not {"probability", "decision", "measurements", "files"} & set(content)


def test_a_refusal_needs_a_reason() -> None:
    with pytest.raises(ValidationError):
        RefusedResult(message="no", reason_codes=[], settings={}, notification=Notification(text="no", requested=True))


def test_files_are_listed_by_path_with_their_hash(tmp_path: Path) -> None:
    for name in ("sc/b.dcm", "sc/a.dcm", "seg/x/c.dcm", "other/d.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    files = list_files(tmp_path)
    assert [file.path for file in files] == ["sc/a.dcm", "sc/b.dcm", "seg/x/c.dcm"]
    assert all(file.sha256 == hashlib.sha256(file.path.encode()).hexdigest() for file in files)
    assert all(file.bytes == len(file.path) for file in files)


def test_the_readme_names_every_key() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    keys = {line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")}
    fields = {field.serialization_alias or name for name, field in CompletedResult.model_fields.items()}
    assert all(any(f"`{key}`" in cell for cell in keys) for key in fields)
