"""Results go to a PACS by STOW-RS, and studies come from it by WADO-RS."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from app.gateway.configuration import Tls, WebDestination
from app.gateway.jobs import State
from app.gateway.tls import for_client
from tests.app.gateway import stand_ins
from tests.app.gateway.peers import send, sending, wait_until
from tests.app.gateway.site import Site
from tests.app.gateway.web_pacs import WebPacs, web_listening
from tests.app.tiny_run import write_lungs, write_models


@pytest.fixture
def pacs() -> Iterator[WebPacs]:
    with web_listening(WebPacs()) as pacs:
        yield pacs


def _to(pacs: WebPacs, **more: object) -> dict[str, object]:
    return {"destinations": [{"name": "web", "url": pacs.url, **more}]}


@pytest.mark.slow  # a real Orthanc takes them in tests/pacs
def test_results_are_stored_by_stow_rs_as_they_are(site: Site, pacs: WebPacs, tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "lungs")
    site.start(stand_ins.application, tmp_path / "models", **_to(pacs))
    send(site.port, sorted((tmp_path / "lungs").iterdir()))
    wait_until(lambda: site.states() == [State.COMMITTED])
    (job,) = site.jobs()
    results = list((site.folder / "spool" / "studies" / job.study / "out").rglob("*.dcm"))
    assert {str(each.Modality) for each in pacs.datasets()} >= {"SR", "SEG", "OT"}
    assert len(results) == len(pacs.files)
    for path in results:
        assert pacs.files[pydicom.dcmread(path).SOPInstanceUID] == path.read_bytes(), path.name


def test_what_is_not_found_afterwards_is_sent_again(site: Site, pacs: WebPacs, files: list[Path]) -> None:
    pacs.forgets = 1
    site.start(**_to(pacs))
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert sum("POST" in request for request in pacs.requests) == 2
    assert any("does not keep 1 of the results" in line for line in site.lines)


def test_who_turns_commitment_off_is_not_searched(site: Site, pacs: WebPacs, files: list[Path]) -> None:
    site.start(**_to(pacs, commitment=False))
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(pacs.files) == 1
    assert not any("GET" in request for request in pacs.requests)


@pytest.mark.slow
def test_an_object_that_is_refused_does_not_hold_back_the_others(site: Site, pacs: WebPacs, tmp_path: Path) -> None:
    pacs.refuses = {"SEG": 409}
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "lungs")
    site.start(stand_ins.application, tmp_path / "models", limits={"send_hours": 0.0}, **_to(pacs))
    send(site.port, sorted((tmp_path / "lungs").iterdir()))
    wait_until(lambda: site.states() == [State.FAILED])
    (job,) = site.jobs()
    assert job.reason.startswith("web: seg/")
    assert job.reason.endswith("HTTP 409")
    assert {str(each.Modality) for each in pacs.datasets()} >= {"SR", "OT"}


def test_a_failure_reason_is_told(site: Site, pacs: WebPacs, files: list[Path]) -> None:
    pacs.fails = {"OT": 0xA700}
    site.start(limits={"send_hours": 0.0}, **_to(pacs))
    send(site.port, files)
    wait_until(lambda: site.states() == [State.FAILED])
    (job,) = site.jobs()
    assert job.reason == "web: sc/summary.dcm: status A700"


@pytest.mark.parametrize("status", [200, 409])
def test_what_a_pacs_has_already_is_stored(site: Site, pacs: WebPacs, files: list[Path], status: int) -> None:
    pacs.fails, pacs.failed_status = {"OT": 0x0111}, status
    site.start(**_to(pacs, commitment=False), limits={"send_hours": 0.0})
    send(site.port, files)
    wait_until(lambda: site.states() in ([State.COMMITTED], [State.FAILED]))
    assert site.states() == [State.COMMITTED]


@pytest.mark.parametrize("reasons", [{"OT": 0xA700}, {}])
def test_another_conflict_is_told(site: Site, pacs: WebPacs, files: list[Path], reasons: dict[str, int]) -> None:
    pacs.fails, pacs.failed_status = reasons, 409
    pacs.refuses = {} if reasons else {"OT": 409}
    site.start(limits={"send_hours": 0.0}, **_to(pacs))
    send(site.port, files)
    wait_until(lambda: site.states() == [State.FAILED])
    assert site.jobs()[0].reason == "web: sc/summary.dcm: HTTP 409"


def test_nothing_is_sent_to_where_a_pacs_redirects(site: Site, pacs: WebPacs, files: list[Path]) -> None:
    with web_listening(WebPacs()) as elsewhere:
        pacs.redirects_to = elsewhere.url
        site.start(limits={"send_hours": 0.0}, **_to(pacs))
        send(site.port, files)
        wait_until(lambda: site.states() == [State.FAILED])
        assert "it redirects" in site.jobs()[0].reason
        assert elsewhere.requests == []
        assert elsewhere.files == {}


def _basic(folder: Path) -> tuple[dict[str, object], str]:
    (folder / "password").write_text("s3cret\n")
    token = base64.b64encode(b"gateway:s3cret").decode()
    return {"user": "gateway", "password_file": folder / "password"}, f"Basic {token}"


def _bearer(folder: Path) -> tuple[dict[str, object], str]:
    (folder / "token").write_text("t0ken\n")
    return {"token_file": folder / "token"}, "Bearer t0ken"


@pytest.mark.parametrize("secret", [_basic, _bearer])
def test_secrets_come_from_files_and_are_read_anew(
    site: Site, pacs: WebPacs, files: list[Path], tmp_path: Path, secret: object
) -> None:
    stated, header = secret(tmp_path)  # type: ignore[operator]
    right = {path: path.read_text() for path in (tmp_path / "password", tmp_path / "token") if path.exists()}
    for path in right:
        path.write_text("wrong")
    pacs.wants = header
    site.start(**_to(pacs, **stated))
    send(site.port, files)
    wait_until(lambda: any("HTTP 401" in line for line in site.lines))
    for path, text in right.items():
        path.write_text(text)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert not any("s3cret" in line or "t0ken" in line for line in site.lines)


@pytest.mark.parametrize("authority", ["ours", "theirs"])
def test_certificates_are_shown_by_both_sides(
    site: Site, files: list[Path], keys: dict[str, Tls], authority: str
) -> None:
    with web_listening(WebPacs(), _context(keys[authority])) as pacs:
        site.start(tls=keys["ours"].model_dump(), **_to(pacs, tls=True))
        with sending(site.port, files, tls=for_client(keys["ours"])) as association:
            assert [association.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0, 0, 0]
        if authority == "ours":
            wait_until(lambda: site.states() == [State.COMMITTED])
        else:
            wait_until(lambda: any("web: it cannot be trusted" in line for line in site.lines))
        assert len(pacs.files) == (authority == "ours")


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.authorities)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [
        ({"url": "ftp://pacs"}, "String should match pattern"),
        ({"url": "https://user:password@pacs/web"}, "String should match pattern"),
        ({"url": "https://pacs", "user": "a"}, "user and password_file belong together"),
        ({"url": "http://pacs", "token_file": "t"}, "use https"),
        ({"url": "http://pacs", "tls": True}, "tls needs https"),
        (
            {"url": "https://pacs", "token_file": "t", "user": "a", "password_file": "p"},
            "state either a user or a token_file",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(stated: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WebDestination.model_validate({"name": "web", **stated})
