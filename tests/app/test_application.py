"""The whole graph on a tiny series: true networks, with weights set by hand or at random.

What is tested is that everything arrives where it belongs, not how good the findings are.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import app.study
from app.application import Models
from app.outcome import RunFailed, UsageError
from app.settings import load_settings
from models.runtime import Runtime
from operators.refusal import InputRefused, ReasonCode
from operators.sc_writer import ScWriterOperator
from operators.series_loader import SeriesLoaderOperator
from tests.app.tiny_run import (
    NETWORK_SETTINGS,
    ROOT,
    SPACING,
    arguments,
    run,
    run_as_a_person,
    write_models,
)
from tests.builders import write_series
from tests.validation.tools import dcentvfy, dciodvfy, disagreements, unexplained, without_times

_NODES = [
    "Series loader",
    "Lung segmentation",
    "Content check",
    "Lesion segmentation",
    "Involvement",
    "Measurements",
    "Classification",
    "Explanation",
    "Segmentation writer",
    "Report writer",
    "Pictures writer",
    "Relevance writer",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lungs of 28 x 14 x 9 (right) and x 7 voxels of 108 cubic mm in soft tissue."""
    folder = tmp_path_factory.mktemp("series")
    hu = np.full((36, 24, 30), 40.0)
    hu[4:32, 5:19, 4:13] = hu[4:32, 5:19, 18:25] = -850.0
    write_series(folder, hu, SPACING, PatientName="Doe^Jane", PatientID="4711")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where :func:`finished` keeps converted networks."""
    return tmp_path_factory.mktemp("cache") / "cache"


@pytest.fixture(scope="module")
def finished(series: Path, models: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and progress of a whole run as a person starts it, with OpenVINO."""
    output = tmp_path_factory.mktemp("finished") / "out"
    done = run_as_a_person(series, output, models, "--set", "runtime=openvino", "--cache", str(cache))
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    return output, done.stderr


@pytest.fixture(scope="module")
def documented(series: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run in this process, with PyTorch and with what has to be asked for."""
    output = tmp_path_factory.mktemp("documented") / "out"
    run(series, output, models, "runtime=torch", "pdf=true", "deflate=true")
    return output


def _result(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "result.json").read_text("utf-8")))


def _tree(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_progress_tells_of_every_node_and_of_nothing_else(finished: tuple[Path, str]) -> None:
    lines = finished[1].splitlines()
    assert lines[0] == "covid-ct-map 0.1.0. Research use only. Not for diagnostic use."
    assert lines[-1].endswith(f"and result.json in {finished[0]}")
    told = [line.partition(" ...")[0].partition(":")[0] for line in lines[1:-1]]
    assert sorted(told) == sorted(_NODES * 2)
    assert "Doe" not in finished[1]
    assert "4711" not in finished[1]


def test_the_result_lists_exactly_what_is_there(finished: tuple[Path, str]) -> None:
    output, _ = finished
    result, tree = _result(output), _tree(output)
    assert {file["path"]: file["sha256"] for file in result["files"]} == {
        name: sha256 for name, sha256 in tree.items() if not name.endswith(".json")
    }
    assert {name.split("/")[0] for name in tree} == {"sr", "seg", "sc", "pm", "metadata.json", "result.json"}
    assert all((output / file["path"]).stat().st_size == file["bytes"] for file in result["files"])
    assert sorted(result["seconds"]) == sorted(_NODES)
    assert sorted(path.name for path in output.iterdir()) == ["metadata.json", "pm", "result.json", "sc", "seg", "sr"]


def test_the_result_is_what_the_graph_measured(finished: tuple[Path, str], models: Path) -> None:
    result = _result(finished[0])
    total, left, right = (result["measurements"][name] for name in ("total", "left", "right"))
    assert left["volume_ml"] == pytest.approx(28 * 14 * 7 * 0.108)
    assert right["volume_ml"] == pytest.approx(28 * 14 * 9 * 0.108)
    assert total["volume_ml"] == pytest.approx(28 * 14 * 16 * 0.108)
    assert total["mean_hu"] == pytest.approx(-850.0)
    assert result["decision"] == ("positive" if result["probability"] >= 0.5 else "negative")
    for task, model in result["models"].items():
        weights = (models / task / "weights.safetensors").read_bytes()
        sha256 = hashlib.sha256(weights).hexdigest()
        settings = NETWORK_SETTINGS.get(task, {})
        assert model == {"name": f"test {task}", "version": "0", "sha256": sha256, "settings": settings}


def test_the_segmentation_has_the_volumes_of_the_result(finished: tuple[Path, str]) -> None:
    output, _ = finished
    total = _result(output)["measurements"]["total"]
    segmentation = pydicom.dcmread(output / "seg" / "segmentation.dcm")
    frames = np.atleast_3d(segmentation.pixel_array).reshape(-1, 24, 30)
    voxels = dict.fromkeys(range(1, 8), 0)
    for plane, content in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        voxels[content.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(plane.sum())
    kinds = ("ground_glass", "consolidation", "crazy_paving", "combined")
    assert [voxels[number] * 0.108 for number in range(3, 7)] == pytest.approx([total[k]["volume_ml"] for k in kinds])
    assert voxels[7] * 0.108 == pytest.approx(total["volume_ml"])
    assert voxels[1] + voxels[2] == voxels[7]
    assert total["all_lesions"]["volume_ml"] > 0, "the random lesion network should have marked something"


def test_every_object_is_valid_and_of_the_patient_and_study(finished: tuple[Path, str], series: Path) -> None:
    source = pydicom.dcmread(next(series.rglob("*.dcm")), stop_before_pixels=True)
    result = _result(finished[0])
    assert (result["study_uid"], result["series_uid"]) == (source.StudyInstanceUID, source.SeriesInstanceUID)
    for path in sorted(finished[0].rglob("*.dcm")):
        assert not unexplained(dciodvfy(path)), path.name
        written = pydicom.dcmread(path, stop_before_pixels=True)
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID"):
            assert written[keyword].value == source[keyword].value


def test_source_and_results_refer_to_each_other(finished: tuple[Path, str], series: Path) -> None:
    source, results = list(series.rglob("*.dcm")), list(finished[0].rglob("*.dcm"))
    assert not unexplained(dcentvfy(source, results))
    without_segmentation = [path for path in results if path.parent.name != "seg"]
    assert unexplained(dcentvfy(source, without_segmentation)), "the report refers to it"


def test_dcmqi_reads_what_the_result_states(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert not disagreements(finished[0])
    other = shutil.copytree(finished[0], tmp_path / "other")
    content = _result(other)
    content["measurements"]["left"]["volume_ml"] += 0.108
    content["probability"] += 1e-4
    (other / "result.json").write_text(json.dumps(content), "utf-8")
    assert [line.partition(":")[0] for line in disagreements(other)] == [
        "segment Left lung",
        "probability",
        "Left lung 118565006",
    ]


@pytest.mark.whole
def test_a_second_run_gives_the_same_objects_and_replaces_the_first(
    finished: tuple[Path, str], series: Path, models: Path, tmp_path: Path
) -> None:
    again = tmp_path / "out"
    shutil.copytree(finished[0], again)
    (again / "sc" / "of_an_earlier_version.dcm").write_bytes(b"")
    (again / "pdf").mkdir()
    (again / "pdf" / "summary.dcm").write_bytes(b"")  # which was asked for then
    run(series, again, models, "runtime=openvino")
    first, second = _result(finished[0]), _result(again)
    for result in (first, second):
        result.pop("seconds")
        for file in result["files"]:  # creation times differ, and with them the hashes
            file.pop("sha256")
    assert first == second
    for path in finished[0].rglob("*.dcm"):
        other = again / path.relative_to(finished[0])
        assert path.read_bytes() != other.read_bytes(), "each says when it was made"
        assert without_times(path) == without_times(other)
    assert set(_tree(again)) == set(_tree(finished[0]))


@pytest.mark.slow
def test_a_process_that_goes_on_keeps_no_thread_and_no_file(series: Path, models: Path, tmp_path: Path) -> None:
    def held() -> list[int]:
        gc.collect()  # what earlier tests left to be collected is not ours
        return [len(list(Path("/proc/self", each).iterdir())) for each in ("task", "fd")]

    run(series, tmp_path, models)
    before = held()
    for _ in range(3):
        run(series, tmp_path, models)
    assert [now > then for now, then in zip(held(), before, strict=True)] == [False, False]  # fewer: of earlier tests


@pytest.mark.whole
def test_a_document_is_written_where_it_is_asked_for(documented: Path, series: Path) -> None:
    assert not disagreements(documented)
    written = [path.relative_to(documented).as_posix() for path in sorted(documented.rglob("*.dcm"))]
    assert "pdf/summary.dcm" in written
    assert [file["path"] for file in _result(documented)["files"]] == written
    assert not unexplained(dcentvfy(series.rglob("*.dcm"), documented.rglob("*.dcm")))
    syntaxes = {name: pydicom.dcmread(documented / name).file_meta.TransferSyntaxUID.name for name in written}
    deflated = {name for name, syntax in syntaxes.items() if syntax.startswith("Deflated")}
    assert deflated == {name for name in written if name.startswith(("seg", "pm"))}


def test_a_refused_input_leaves_the_reason_alone(finished: tuple[Path, str], models: Path, tmp_path: Path) -> None:
    empty, output = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    shutil.copytree(finished[0], output)
    with pytest.raises(InputRefused) as refusal:
        run(empty, output, models)
    assert refusal.value.code == ReasonCode.NO_DICOM
    assert sorted(path.name for path in output.iterdir()) == ["metadata.json", "result.json"]
    assert _result(output)["reason_codes"] == ["NO_DICOM"]
    assert _result(output)["message"] == refusal.value.message


def test_a_refusal_amid_the_graph_keeps_its_reason(models: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "tissue", np.full((36, 24, 30), 40.0), SPACING)
    with pytest.raises(InputRefused) as refusal:
        run(tmp_path / "tissue", tmp_path / "out", models)
    assert refusal.value.code == ReasonCode.NO_LUNGS
    assert _result(tmp_path / "out")["status"] == "refused"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metadata.json", "result.json"]


@pytest.mark.parametrize("task", ["lungs", "lesions", "involvement", "classifier"])
def test_a_missing_or_altered_model_is_our_failure(task: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    weights = tmp_path / "models" / task / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RunFailed, match=f"model {task}: .* is not the file"):
        Models.load(tmp_path / "models", Runtime("torch"))
    weights.unlink()
    with pytest.raises(RunFailed, match=f"model {task}: cannot read"):
        Models.load(tmp_path / "models", Runtime("torch"))


def test_without_models_nothing_is_written(series: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="model lungs: cannot read"):
        run(series, tmp_path / "out", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def _do_nothing(*_: object) -> None:
    """Emit nothing, as a node with a bug may; Holoscan then ends the graph without an error."""


def test_a_graph_that_ends_early_is_a_failure(
    series: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SeriesLoaderOperator, "compute", _do_nothing)
    with pytest.raises(RunFailed, match="without findings"):
        run(series, tmp_path / "out", models)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_output_is_a_failure(
    series: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScWriterOperator, "compute", lambda self, op_input, *_: op_input.receive("volume"))
    with pytest.raises(RunFailed, match="without an object in sc/"):
        run(series, tmp_path / "out", models)
    assert list(tmp_path.iterdir()) == []


def test_without_a_writable_folder_libraries_use_the_staging_folder(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_usable() -> str:
        raise FileNotFoundError

    seen: list[str] = []

    def look(*_: object) -> None:
        seen.extend([str(tempfile.tempdir), os.environ["MPLCONFIGDIR"], os.environ["CUPY_CACHE_DIR"]])
        raise RunFailed("seen enough")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    for name in ("MPLCONFIGDIR", "CUPY_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(Models, "load", look)
    with pytest.raises(RunFailed, match="seen enough"):
        run(series, tmp_path / "out", tmp_path)
    assert seen[0] == seen[1] == seen[2]
    assert Path(seen[0]).is_relative_to(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_loaded_once_the_threads_are_those_that_are_granted(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("models.threads.use_granted_cores", lambda: seen.append("threads"))
    monkeypatch.setattr(Models, "load", lambda folder, runtime: seen.append(folder.name))
    app.study._models.cache_clear()
    for _ in range(2):
        app.study._models(models, app.study._runtime(load_settings(), None))
    app.study._models.cache_clear()
    assert seen == ["threads", models.name, "threads"]


def test_what_this_machine_cannot_compute_is_said_in_a_line(
    series: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.runtime.fast_in_bfloat16", lambda: False)
    with pytest.raises(UsageError, match="no bfloat16 on this processor"):
        run(series, tmp_path / "out", models, "runtime=openvino", "precision=bfloat16")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.whole
def test_engines_agree_on_a_whole_run(finished: tuple[Path, str], documented: Path) -> None:
    torch_result, other = _result(documented), _result(finished[0])
    assert [result["settings"]["runtime"] for result in (torch_result, other)] == ["torch", "openvino"]
    assert other["probability"] == pytest.approx(torch_result["probability"], abs=1e-3)
    lungs = [result["measurements"]["total"]["volume_ml"] for result in (torch_result, other)]
    assert lungs[0] == pytest.approx(lungs[1], rel=1e-3)


def test_a_gpu_gives_other_uids_than_the_cpu() -> None:
    settings = load_settings(["precision=bfloat16"])
    places = [Runtime("torch", device).name for device in ("cpu", "cuda")]
    assert len({settings.model_copy(update={"runtime": place}).fingerprint for place in places}) == 2


@pytest.mark.usefixtures("finished")
def test_converted_networks_are_kept_where_asked(cache: Path) -> None:
    assert len(list(cache.iterdir())) == 5


_FAILING_NODE = """
import sys
from app.cli import main
from operators.series_loader import SeriesLoaderOperator

def fail(*_):
    raise ValueError("Doe^Jane")

SeriesLoaderOperator.compute = fail
sys.exit(main(sys.argv[1:]))
"""


def test_a_failing_node_is_told_in_one_line_without_its_text(series: Path, models: Path, tmp_path: Path) -> None:
    chosen = [*arguments(series, tmp_path / "out", models), "--set", "runtime=torch"]
    command = [sys.executable, "-W", "ignore", "-c", _FAILING_NODE, *chosen]
    # Imported before the command could silence it, Holoscan must be told by the environment here.
    quiet = os.environ | {"HOLOSCAN_LOG_LEVEL": "OFF"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    _notice, line = done.stderr.splitlines()
    assert line.startswith("error: unexpected ValueError at ")
    assert len(done.stderr.splitlines()) == 2
    assert "Doe" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_run_and_leaves_nothing(
    number: int, status: int, series: Path, models: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "app", *arguments(series, tmp_path / "out", models)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("Lung segmentation ...") for line in process.stderr)
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    assert err.splitlines()[-1] == "interrupted"
    assert list(tmp_path.iterdir()) == []
