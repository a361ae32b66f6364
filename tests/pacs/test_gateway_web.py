"""A real Orthanc takes results by STOW-RS, gives studies by both ways, and asks for storage commitment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pydicom
import pytest
import yaml

from app.cli import main
from app.gateway.configuration import load_gateway
from app.gateway.events import Event
from app.gateway.jobs import Job, Jobs, State
from app.gateway.service import TABLE, Gateway
from app.gateway.worker import How, Worker
from app.outcome import ExitStatus
from app.settings import load_settings
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.peers import free_port, wait_until
from tests.app.tiny_run import ROOT, write_lungs, write_models
from tests.pacs.server import DICOM_PORT, HTTP_PORT, TITLE, Orthanc, running

pytestmark = pytest.mark.pacs

WEB = {"name": "web", "url": f"http://127.0.0.1:{HTTP_PORT}/dicom-web"}
DICOM = {"name": "dicom", "ae_title": TITLE, "host": "127.0.0.1", "port": DICOM_PORT}


class Site:
    """A gateway beside an Orthanc that knows it."""

    def __init__(self, folder: Path, orthanc: Orthanc, stack: ExitStack, name: str = "COVIDCT") -> None:
        self.orthanc, self.events = orthanc, list[Event]()
        self.spool, self.configuration = folder / "spool", folder / "gateway.yaml"
        port = free_port()
        stated = {
            "port": port,
            "spool": str(self.spool),
            "callers": [{"ae_title": TITLE, "address": "127.0.0.1", "port": DICOM_PORT}],
            "destinations": [WEB],
            "sources": [WEB, DICOM],
            "quiet_seconds": 0.5,
        }
        self.configuration.write_text(yaml.safe_dump(stated))
        how = How(folder / "models", load_settings(["in_plane=32", "precision=float32"]), ANY_SERIES, None)
        gateway = Gateway(load_gateway(self.configuration), Worker(how, 600.0), self.events.append)
        orthanc.know(name, port)
        stack.enter_context(gateway)

    def jobs(self) -> list[Job]:
        with closing(Jobs(self.spool / TABLE)) as table:
            return table.all()

    def states(self) -> list[State]:
        return [job.state for job in self.jobs()]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    write_lungs(tmp_path / "ct")
    return sorted((tmp_path / "ct").iterdir())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    write_models(tmp_path / "models")
    (tmp_path / "orthanc").mkdir()
    with running(tmp_path / "orthanc") as orthanc, ExitStack() as stack:
        yield Site(tmp_path, orthanc, stack)


@pytest.mark.parametrize("source", ["web", "dicom"])
def test_a_study_is_fetched_and_its_results_are_stored_by_stow_rs(site: Site, files: list[Path], source: str) -> None:
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    site.orthanc.store(files)
    assert main(["fetch", study, "--from", source, "-c", str(site.configuration)]) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED])
    incoming = {path.stem: pydicom.dcmread(path) for path in (site.spool / "studies" / study / "in").iterdir()}
    assert incoming == {image.SOPInstanceUID: image for image in map(pydicom.dcmread, files)}
    kept = site.orthanc.qido(f"studies/{study}/series")
    assert set(Counter(series["00080060"]["Value"][0] for series in kept)) - {"CT"} == {"SR", "SEG", "OT"}
    results = list((site.spool / "studies" / study / "out").rglob("*.dcm"))
    assert results
    for path in results:
        sent = pydicom.dcmread(path)
        assert site.orthanc.file(str(sent.SOPInstanceUID)) == path.read_bytes(), path.name


_SCRIPT = """
CT = {
  ['1.2.840.10008.5.1.4.1.1.2'] = true,
  ['1.2.840.10008.5.1.4.1.1.2.1'] = true,
  ['1.2.840.10008.5.1.4.1.1.2.2'] = true,
}

function OnStableSeries(series, tags, metadata)
  for _, image in ipairs(ParseJson(RestApiGet('/series/' .. series))['Instances']) do
    if CT[RestApiGet('/instances/' .. image .. '/metadata/SopClassUid')] then
      RestApiPost('/modalities/covidct/store', DumpJson({ Resources = { series }, Asynchronous = true }, true))
      return
    end
  end
end
"""


def test_orthanc_sends_series_by_itself_and_results_start_nothing(tmp_path: Path, files: list[Path]) -> None:
    assert _SCRIPT.strip() in (ROOT / "docs" / "pacs.md").read_text("utf-8")
    write_models(tmp_path / "models")
    (tmp_path / "orthanc").mkdir()
    (tmp_path / "send.lua").write_text(_SCRIPT)
    scripted = {"LuaScripts": [str(tmp_path / "send.lua")], "StableAge": 1}
    with running(tmp_path / "orthanc", **scripted) as orthanc, ExitStack() as stack:
        site = Site(tmp_path, orthanc, stack, "covidct")
        orthanc.store(files)
        wait_until(lambda: site.states() == [State.COMMITTED])
        study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
        series = orthanc.rest("/series")
        wait_until(lambda: all(orthanc.rest(f"/series/{each}")["IsStable"] for each in series))
        orthanc.know("ECHO", 1)  # what the script does, it has done by the time that this is answered
        (job,) = site.jobs()
        assert (job.study, job.state, job.revision) == (study, State.COMMITTED, 1)
        assert len(series) > 3
        assert [each["State"] for each in orthanc.rest("/jobs?expand") if each["Type"] == "DicomModalityStore"] == [
            "Success"
        ]


def test_orthanc_is_told_that_the_gateway_keeps_what_it_has_sent(site: Site, files: list[Path]) -> None:
    site.orthanc.store(files)
    site.orthanc.send_to("COVIDCT")
    instances = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    known = [[str(each.SOPClassUID), str(each.SOPInstanceUID)] for each in instances]
    lost = [str(instances[0].SOPClassUID), "1.2.3.4"]
    for asked, status in ((known, "Success"), ([*known, lost], "Failure")):
        report = site.orthanc.commitment("COVIDCT", asked)
        assert report["Status"] == status
        assert sorted(each["SOPInstanceUID"] for each in report["Success"]) == sorted(uid for _, uid in known)
        assert [each["SOPInstanceUID"] for each in report["Failures"]] == [uid for _, uid in asked[len(known) :]]
