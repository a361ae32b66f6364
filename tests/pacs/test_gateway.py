"""A real Orthanc sends a study to the gateway, and gets its results back, kept for good."""

from __future__ import annotations

import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path

import pydicom
import pytest

from app.gateway.configuration import GatewayConfiguration
from app.gateway.events import Event
from app.gateway.jobs import Jobs, State
from app.gateway.service import TABLE, Gateway
from app.gateway.worker import How, Worker
from app.settings import load_settings
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.peers import free_port, wait_until
from tests.app.tiny_run import write_lungs, write_models
from tests.pacs.server import DICOM_PORT, TITLE, Orthanc, running

pytestmark = pytest.mark.pacs


def _by_orthanc(orthanc: Orthanc, files: list[Path], port: int) -> None:
    orthanc.store(files)
    orthanc.send_to("COVIDCT")


def _by_dcmtk(orthanc: Orthanc, files: list[Path], port: int) -> None:
    command = ["dcmsend", "-aet", "SCANNER", "-aec", "COVIDCT", "127.0.0.1", str(port)]
    subprocess.run([*command, *map(str, files)], check=True)


@pytest.mark.parametrize("send", [_by_orthanc, _by_dcmtk])
def test_a_study_goes_out_and_its_results_come_back(tmp_path: Path, send: object) -> None:
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "ct")
    files, port = sorted((tmp_path / "ct").iterdir()), free_port()
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    stated = {
        "port": port,
        "spool": tmp_path / "spool",
        "callers": [{"ae_title": TITLE}, {"ae_title": "SCANNER"}],
        "destinations": [{"name": "orthanc", "ae_title": TITLE, "host": "127.0.0.1", "port": DICOM_PORT}],
        "quiet_seconds": 0.5,
    }
    how = How(tmp_path / "models", load_settings(["in_plane=32", "precision=float32"]), ANY_SERIES, None)
    lines: list[Event] = []
    folder = tmp_path / "orthanc"
    folder.mkdir()
    with running(folder) as orthanc:
        orthanc.know("COVIDCT", port)
        with Gateway(GatewayConfiguration.model_validate(stated), Worker(how, 600.0), lines.append):
            send(orthanc, files, port)  # type: ignore[operator]
            wait_until(lambda: _states(tmp_path / "spool") == [State.COMMITTED])
        kept = orthanc.qido(f"studies/{study}/series")
        modalities = Counter(series["00080060"]["Value"][0] for series in kept)
        assert set(modalities) - {"CT"} == {"SR", "SEG", "OT"}, lines
        results = {path.name: path for path in (tmp_path / "spool" / "studies" / study / "out").rglob("*.dcm")}
        for path in results.values():
            sent = pydicom.dcmread(path)
            back = pydicom.dcmread(_stored(orthanc, sent, tmp_path))
            assert back == sent


def _stored(orthanc: Orthanc, sent: pydicom.Dataset, folder: Path) -> Path:
    path = folder / "back.dcm"
    path.write_bytes(orthanc.file(str(sent.SOPInstanceUID)))
    return path


def _states(spool: Path) -> list[State]:
    with closing(Jobs(spool / TABLE)) as table:
        return [job.state for job in table.all()]
