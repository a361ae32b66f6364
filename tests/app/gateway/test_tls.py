"""Both sides show certificates, or nothing is said."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pydicom
import pytest

from app.gateway.configuration import Tls
from app.gateway.events import Kind
from app.gateway.jobs import State
from app.gateway.tls import for_client, for_server
from app.outcome import UsageError
from tests.app.gateway import raw
from tests.app.gateway.peers import Pacs, listening, sending, wait_until
from tests.app.gateway.site import Site


def _start(site: Site, keys: dict[str, Tls]) -> None:
    site.start(tls=keys["ours"].model_dump(), destination={"tls": True})


def test_a_study_goes_both_ways_by_tls(site: Site, files: list[Path], keys: dict[str, Tls]) -> None:
    pacs = site.stack.enter_context(listening(Pacs(), for_server(keys["ours"])))
    site.pacs = pacs
    pacs.calls_with = for_client(keys["ours"])
    _start(site, keys)
    with sending(site.port, files, tls=for_client(keys["ours"])) as association:
        assert [association.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(pacs.received) == 1


@pytest.mark.parametrize("how", ["plain", "stranger", "no certificate", "old"])
def test_who_shows_no_good_certificate_is_not_listened_to(site: Site, keys: dict[str, Tls], how: str) -> None:
    _start(site, keys)
    context: ssl.SSLContext | None = None
    if how == "stranger":
        context = for_client(keys["theirs"].model_copy(update={"authorities": keys["ours"].authorities}))
    elif how == "no certificate":
        context = ssl.create_default_context(cafile=keys["ours"].authorities)
    elif how == "old":
        context = for_client(keys["ours"])
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with sending(site.port, tls=context) as association:
        assert not association.is_established
    wait_until(lambda: [event.kind for event in site.events] == [Kind.STARTED, Kind.REJECTED])


def test_what_follows_a_handshake_that_fails_is_not_heard(site: Site, files: list[Path], keys: dict[str, Tls]) -> None:
    _start(site, keys)
    image = raw.store("1.2.3", "1.2.3.4")
    with socket.create_connection(("127.0.0.1", site.port)) as stranger:
        no_hello = b"\x16\x03\x01\x00\x05hello"
        stranger.sendall(no_hello + raw.association_request_bytes() + image.encoded())
        wait_until(lambda: [event.kind for event in site.events] == [Kind.STARTED, Kind.REJECTED])
    with sending(site.port, files[:1], tls=for_client(keys["ours"])) as association:  # the other one has ended by then
        assert association.send_c_store(pydicom.dcmread(files[0])).Status == 0
    wait_until(lambda: len(site.events) > 2)
    assert {event.kind for event in site.events[2:]} <= {Kind.ARRIVING, Kind.RECEIVED, Kind.COMPLETE}
    assert [path.stem for path in (site.folder / "spool" / "studies").rglob("in/*.dcm")] == [
        pydicom.dcmread(files[0]).SOPInstanceUID
    ]


def test_a_pacs_of_another_authority_gets_nothing(site: Site, files: list[Path], keys: dict[str, Tls]) -> None:
    site.pacs = site.stack.enter_context(listening(Pacs(), for_server(keys["theirs"])))
    _start(site, keys)
    with sending(site.port, files, tls=for_client(keys["ours"])) as association:
        association.send_c_store(pydicom.dcmread(files[0]))
    wait_until(lambda: any("cannot be reached" in line for line in site.lines))
    assert not site.pacs.received


def test_who_stalls_in_the_handshake_holds_up_nobody(site: Site, keys: dict[str, Tls]) -> None:
    _start(site, keys)
    stalled = socket.create_connection(("127.0.0.1", site.port))
    with stalled, sending(site.port, tls=for_client(keys["ours"])) as association:
        assert association.send_c_echo().Status == 0


def test_files_that_are_none_are_said(tmp_path: Path, keys: dict[str, Tls]) -> None:
    for name in Tls.model_fields:
        with pytest.raises(UsageError, match=r"tls: .* cannot be read, or are no certificate"):
            for_server(keys["ours"].model_copy(update={name: tmp_path / "absent"}))
    (tmp_path / "text").write_text("no key")
    with pytest.raises(UsageError, match=r"tls: .* cannot be read"):
        for_client(keys["ours"].model_copy(update={"key": tmp_path / "text"}))
