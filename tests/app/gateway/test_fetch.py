"""A study that nobody has sent comes from a PACS, by either way, all of it or nothing."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from app.cli import main
from app.gateway.configuration import GatewayConfiguration
from app.gateway.jobs import Jobs, State
from app.gateway.service import TABLE
from app.gateway.spool import Arrival, Refused, Spool
from app.outcome import ExitStatus
from tests.app.gateway.archive import Archive, searchable
from tests.app.gateway.peers import CALLER, PACS_TITLE, send, wait_until
from tests.app.gateway.site import Site
from tests.app.gateway.web_pacs import WebPacs, web_listening
from tests.builders import write_series


@contextmanager
def _configured(site: Site, source: dict[str, object]) -> Iterator[Path]:
    """Write the configuration of a site that has a source."""
    path = site.folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(_stated(site, source)))
    yield path


def _stated(site: Site, source: dict[str, object]) -> dict[str, Any]:
    return {
        "port": site.port or 11112,
        "spool": str(site.folder / "spool"),
        "callers": [{"ae_title": CALLER}],
        "destinations": [{"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": site.pacs.port}],
        "quiet_seconds": 0.3,
        "limits": {"free_disk_mb": 0},
        "sources": [{"name": "archive", **source}],
    }


def _fetch(site: Site, source: dict[str, object], study: str, name: str = "archive") -> int:
    with _configured(site, source) as path:
        return main(["fetch", study, "--from", name, "-c", str(path)])


def _study(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0]).StudyInstanceUID)


def _others(files: list[Path]) -> list[pydicom.Dataset]:
    """Return images of the same study that are no CT, among them a picture of CT, and a CT of another study."""
    images = []
    for modality in ("MR", "CT", "CT"):
        image = pydicom.dcmread(files[0])
        image.Modality, image.SeriesInstanceUID = modality, generate_uid()
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        images.append(image)
    images[1].SOPClassUID = images[1].file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    images[2].StudyInstanceUID = generate_uid()
    return images


@pytest.fixture
def archive(site: Site, files: list[Path]) -> Iterator[Archive]:
    with searchable(Archive(CALLER, [*map(pydicom.dcmread, files), *_others(files)])) as archive:
        yield archive


def _by_move(archive: Archive) -> dict[str, object]:
    return {"ae_title": CALLER, "host": "127.0.0.1", "port": archive.port}


def test_a_study_comes_by_c_move(site: Site, archive: Archive, files: list[Path]) -> None:
    site.start()
    archive.ports["COVIDCT"] = site.port
    assert _fetch(site, _by_move(archive), _study(files)) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


@pytest.mark.parametrize("search", ["fails", "finds nothing", "hangs up"])
def test_a_source_that_tells_nothing_of_images_moves_all_series_of_ct(
    site: Site, archive: Archive, files: list[Path], search: str
) -> None:
    site.start()
    archive.image_search, archive.ports["COVIDCT"] = search, site.port
    archive.images = [image for image in archive.images if image.SOPClassUID != SecondaryCaptureImageStorage]
    assert _fetch(site, _by_move(archive), _study(files)) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


def test_a_source_that_does_not_know_the_gateway_is_said(
    site: Site, archive: Archive, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    site.start()
    assert _fetch(site, _by_move(archive), _study(files)) == ExitStatus.FAILED
    assert "archive: it moved a series with status A801" in capsys.readouterr().err
    assert site.jobs() == []


def test_c_move_needs_a_gateway_that_runs(
    site: Site, archive: Archive, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fetch(site, _by_move(archive), _study(files)) == ExitStatus.USAGE
    assert "the gateway does not run" in capsys.readouterr().err


def test_a_study_that_is_not_there_is_said(site: Site, archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    site.start()
    assert _fetch(site, _by_move(archive), "1.2.3") == ExitStatus.USAGE
    assert "archive has no CT series of this study" in capsys.readouterr().err


@pytest.fixture
def web(files: list[Path]) -> Iterator[WebPacs]:
    with web_listening(WebPacs()) as pacs:
        pacs.files = {pydicom.dcmread(file).SOPInstanceUID: file.read_bytes() for file in files}
        for image in _others(files):
            path = files[0].parent / "other"
            image.save_as(path)
            pacs.files[image.SOPInstanceUID] = path.read_bytes()
            path.unlink()
        yield pacs


def test_a_study_comes_by_wado_rs_as_it_is(site: Site, web: WebPacs, files: list[Path]) -> None:
    site.start()
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"
    folder = site.folder / "spool" / "studies" / _study(files) / "in"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{pydicom.dcmread(file).SOPInstanceUID}.dcm" for file in files
    )
    for path in folder.iterdir():
        assert pydicom.dcmread(path) == next(each for each in web.datasets() if each.SOPInstanceUID == path.stem)
    (job,) = site.jobs()
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK  # again: nothing is new
    assert site.jobs() == [job]


def test_the_gateway_takes_up_what_was_fetched_before_it_ran(site: Site, web: WebPacs, files: list[Path]) -> None:
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    site.start()
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


def _nothing(files: list[Path]) -> bytes:
    return b""


def _another(files: list[Path]) -> bytes:
    return files[0].read_bytes()


def _with_an_element_of_the_file_meta_group(files: list[Path]) -> bytes:
    return files[-1].read_bytes() + struct.pack("<HH2sHL", 2, 0x0102, b"OB", 0, 2) + b"ab"


@pytest.mark.parametrize("given", [_nothing, _another, _with_an_element_of_the_file_meta_group])
def test_all_of_it_is_kept_or_nothing(
    site: Site,
    web: WebPacs,
    files: list[Path],
    given: Callable[[list[Path]], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    web.instead = {str(pydicom.dcmread(files[-1]).SOPInstanceUID): given(files)}
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.FAILED
    assert "error: archive:" in capsys.readouterr().err
    assert not list((site.folder / "spool").rglob("*.dcm"))
    assert not list((site.folder / "spool" / "arriving").iterdir())


def test_of_what_could_be_kept_in_part_nothing_is_run_before_all_of_it_is_there(
    site: Site, web: WebPacs, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, keep = [], Spool.keep

    def keep_two(spool: Spool, study: str, instance: str, arrival: Arrival) -> None:
        if len(kept) == 2:
            raise Refused(0xA700, "the disk is full")
        keep(spool, study, instance, arrival)
        kept.append(instance)

    monkeypatch.setattr(Spool, "keep", keep_two)
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.FAILED
    monkeypatch.setattr(Spool, "keep", keep)
    site.start()
    other = write_series(site.folder / "other", np.zeros((2, 8, 8)), study="other")
    send(site.port, other)  # when this has gone all the way, the other would have, too
    wait_until(lambda: State.COMMITTED in site.states())
    (job,) = (job for job in site.jobs() if job.study == _study(files))
    assert (job.state, job.ran) == (State.FETCHING, None)
    assert "only a part of it" in job.reason
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED] * 2)
    assert {str(each.SeriesDescription) for each in site.pacs.objects.values()} == {"2 instances", "3 instances"}


def test_what_is_all_there_is_taken_up_though_a_fetch_before_could_not_say_so(
    site: Site, web: WebPacs, files: list[Path]
) -> None:
    """As where it was killed at the very end, or what it could not keep has been sent since."""
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    with closing(Jobs(site.folder / "spool" / TABLE)) as jobs:
        assert jobs.receive(_study(files), "archive", time.time(), State.FETCHING)
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    assert site.states() == [State.RECEIVING]


def test_what_was_fetched_and_what_is_sent_are_the_same(site: Site, web: WebPacs, files: list[Path]) -> None:
    site.start()
    assert send(site.port, files[:1]) == [0]
    assert _fetch(site, {"url": web.url}, _study(files)) == ExitStatus.OK
    wait_until(lambda: site.states() == [State.COMMITTED] and site.summary() == "3 instances")
    (job,) = site.jobs()
    assert send(site.port, files) == [0, 0, 0]
    assert site.jobs() == [job]


def test_what_cannot_be_meant_is_said(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fetch(site, {"url": "http://127.0.0.1:1/x"}, "1.2.3", "elsewhere") == ExitStatus.USAGE
    assert "there is no source elsewhere; configured: archive" in capsys.readouterr().err
    assert _fetch(site, {"url": "http://127.0.0.1:1/x"}, "../1.2") == ExitStatus.USAGE
    assert "the study is no valid UID" in capsys.readouterr().err
    assert _fetch(site, {"url": "http://127.0.0.1:1/x"}, "1.2.3") == ExitStatus.FAILED
    assert "archive: it cannot be reached" in capsys.readouterr().err
    with pytest.raises(ValueError, match="two sources have the same name"):
        GatewayConfiguration.model_validate(
            _stated(site, {}) | {"sources": [{"name": "a", "url": "http://b/c"}, {"name": "a", "url": "http://b/d"}]}
        )
