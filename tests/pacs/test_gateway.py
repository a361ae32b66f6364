"""A real Orthanc sends a study to the gateway, and gets its results back, kept for good."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pydicom
import pytest

from app.gateway import deliveries
from app.gateway.configuration import GatewayConfiguration, Tls
from app.gateway.events import Event
from app.gateway.jobs import Job, Jobs, State
from app.gateway.service import TABLE, Gateway
from app.gateway.worker import How, Worker
from app.settings import load_settings
from models.record import SHIPPED
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.certificates import certified
from tests.app.gateway.peers import free_port, wait_until
from tests.app.tiny_run import write_lungs, write_models
from tests.dcmtk import STORESCU
from tests.pacs.server import DICOM_PORT, HTTP_PORT, HTTPS_PORT, TITLE, Orthanc, proxied, running

pytestmark = pytest.mark.pacs


class Hospital:
    """A gateway between a scanner and an Orthanc, and the study that goes through it."""

    def __init__(self, folder: Path, tls: Tls | None, way: str) -> None:
        self.folder = folder
        self.tls = tls
        self.way = way
        self.port = free_port()
        self.events: list[Event] = []
        (folder / "orthanc").mkdir()

    def gateway(self, how: How) -> Gateway:
        stated = {
            "port": self.port,
            "spool": self.folder / "spool",
            "callers": [{"ae_title": TITLE}, {"ae_title": "SCANNER"}],
            "destinations": [self._destination() | {"name": "orthanc", "tls": self.tls is not None}],
            "quiet_seconds": 0.5,
            "tls": self.tls and self.tls.model_dump(),
        }
        return Gateway(GatewayConfiguration.model_validate(stated), Worker(how, 1800.0), self.events.append)

    def _destination(self) -> dict[str, Any]:
        if self.way == "C-STORE":
            return {"ae_title": TITLE, "host": "127.0.0.1", "port": DICOM_PORT}
        where = f"http://127.0.0.1:{HTTP_PORT}" if self.tls is None else f"https://127.0.0.1:{HTTPS_PORT}"
        return {"url": f"{where}/dicom-web"}

    def jobs(self) -> list[Job]:
        with closing(Jobs(self.folder / "spool" / TABLE)) as table:
            return table.all()

    def committed(self) -> bool:
        return [job.state for job in self.jobs()] == [State.COMMITTED]

    def results(self) -> list[Path]:
        return sorted((self.folder / "spool" / "studies").glob("*/out/**/*.dcm"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Tls | None:
    return certified(tmp_path) if request.param == "tls" else None


@pytest.fixture(params=["C-STORE", "STOW-RS"])
def hospital(request: pytest.FixtureRequest, tmp_path: Path, tls: Tls | None) -> Iterator[Hospital]:
    with _hospital(tmp_path, tls, request.param) as hospital:
        yield hospital


@contextmanager
def _hospital(folder: Path, tls: Tls | None, way: str) -> Iterator[Hospital]:
    with proxied(folder, tls) if tls and way == "STOW-RS" else nullcontext():
        yield Hospital(folder, tls, way)


@pytest.fixture
def tiny(tmp_path: Path) -> How:
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "ct")
    return How(tmp_path / "models", load_settings(["in_plane=32", "precision=float32"]), ANY_SERIES, None)


def _by_orthanc(hospital: Hospital, orthanc: Orthanc, files: list[Path]) -> None:
    orthanc.take(files)
    orthanc.send_to("COVIDCT")


def _by_dcmtk(hospital: Hospital, orthanc: Orthanc, files: list[Path]) -> None:
    titles = ["-aet", "SCANNER", "-aec", "COVIDCT", "127.0.0.1", str(hospital.port), *map(str, files)]
    tls = hospital.tls  # dcmsend takes neither TLS nor all that scanners have written
    secured = [] if tls is None else ["+tls", str(tls.key), str(tls.certificate), "+cf", str(tls.authorities)]
    subprocess.run([STORESCU, "-xs", *secured, *titles], check=True)  # JPEG lossless, too


Send = Callable[[Hospital, Orthanc, list[Path]], None]


@pytest.mark.parametrize("send", [_by_orthanc, _by_dcmtk])
def test_a_study_goes_out_and_its_results_come_back(hospital: Hospital, tiny: How, send: Send) -> None:
    files = sorted((hospital.folder / "ct").iterdir())
    with running(hospital.folder / "orthanc", hospital.tls) as orthanc:
        orthanc.know("COVIDCT", hospital.port, tls=hospital.tls is not None)
        with hospital.gateway(tiny):
            send(hospital, orthanc, files)
            wait_until(hospital.committed)
        _check(hospital, orthanc, str(pydicom.dcmread(files[0]).StudyInstanceUID))


def test_results_wait_for_an_orthanc_that_was_stopped(
    hospital: Hospital, tiny: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "SEND_PAUSE", 0.5)
    monkeypatch.setattr(deliveries, "DOWN_PAUSE", 0.5)
    files = sorted((hospital.folder / "ct").iterdir())
    with hospital.gateway(tiny):
        with running(hospital.folder / "orthanc", hospital.tls) as orthanc:
            orthanc.know("COVIDCT", hospital.port, tls=hospital.tls is not None)
            _by_orthanc(hospital, orthanc, files)
        wait_until(lambda: "cannot be reached" in hospital.jobs()[0].reason)
        with running(hospital.folder / "orthanc", hospital.tls) as orthanc:
            orthanc.know("COVIDCT", hospital.port, tls=hospital.tls is not None)
            wait_until(hospital.committed)
            _check(hospital, orthanc, str(pydicom.dcmread(files[0]).StudyInstanceUID))


def _combinations() -> list[Any]:
    """Return all, of which all but two take too long to be tried each time."""
    usual = [(False, "STOW-RS", _by_dcmtk), (True, "C-STORE", _by_orthanc)]
    every = product((False, True), ("C-STORE", "STOW-RS"), (_by_orthanc, _by_dcmtk))
    return [pytest.param(*each, marks=[] if each in usual else pytest.mark.slow) for each in every]


@pytest.mark.real_data
@pytest.mark.parametrize(("secured", "way", "send"), _combinations())
def test_a_real_ct_gets_its_results_into_its_own_study(
    secured: bool, way: str, send: Send, real_data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = sorted((real_data / "covid_P001").glob("*.dcm"))
    cache = tmp_path_factory.getbasetemp() / "networks"
    tls = certified(tmp_path) if secured else None
    with _hospital(tmp_path, tls, way) as hospital, running(tmp_path / "orthanc", tls) as orthanc:
        orthanc.know("COVIDCT", hospital.port, tls=secured)
        orthanc.take(files)
        with hospital.gateway(How(SHIPPED, load_settings(), ANY_SERIES, cache)):
            send(hospital, orthanc, files)
            wait_until(hospital.committed)
        _check(hospital, orthanc, str(pydicom.dcmread(files[0]).StudyInstanceUID))
        (only,) = orthanc.rest("/studies?expand")
        assert len(orthanc.rest(f"/studies/{only['ID']}/instances")) == len(files) + len(hospital.results())


def _check(hospital: Hospital, orthanc: Orthanc, study: str) -> None:
    """Check that Orthanc has all results, in the study that they are about, as they were sent."""
    kept = orthanc.qido(f"studies/{study}/series")
    modalities = Counter(series["00080060"]["Value"][0] for series in kept)
    assert set(modalities) - {"CT"} == {"SR", "SEG", "OT"}, hospital.events
    for path in hospital.results():
        sent = pydicom.dcmread(path)
        back = hospital.folder / "back.dcm"
        back.write_bytes(orthanc.file(str(sent.SOPInstanceUID)))
        assert pydicom.dcmread(back) == sent
