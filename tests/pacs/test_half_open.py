"""A scanner whose network fails: the gateway is not told that it is gone. Like Orthanc, it needs its own network."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from app.gateway import receiver
from app.gateway.jobs import State
from tests.app.gateway import raw
from tests.app.gateway.peers import sending, wait_until
from tests.app.gateway.raw import RawPeer
from tests.app.gateway.site import Site

pytestmark = pytest.mark.pacs

SCANNER = "192.0.2.7"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def address() -> Iterator[None]:
    """Let there be a scanner elsewhere, which does not outlast the test."""
    _ip("addr", "add", f"{SCANNER}/32", "dev", "lo")
    yield
    _ip("route", "del", "blackhole", f"{SCANNER}/32")


def _vanish(peer: RawPeer) -> None:
    """Take the scanner from the network: nothing that either side says arrives any more, not even that it has ended."""
    _ip("addr", "del", f"{SCANNER}/32", "dev", "lo")
    _ip("route", "add", "blackhole", f"{SCANNER}/32")
    peer.vanish()


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize("left", [0, 50], ids=["between messages", "within one"])
def test_who_has_vanished_without_a_word_keeps_its_place_for_a_while(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 4.0)
    site.start(limits={"associations": 1})
    lost = RawPeer(site.port, address=SCANNER)
    assert lost.negotiate()
    message = raw.store("1.2.3", "1.2.3.1").encoded()
    lost.send(message[: len(message) - left])
    if not left:
        answer = lost.answer()
        assert answer is not None
        assert answer.Status == 0
    _vanish(lost)
    with sending(site.port) as association:
        assert association.is_rejected
    wait_until(lambda: _gets_in(site, files))
    wait_until(lambda: site.states() == [State.COMMITTED] * (1 if left else 2))


def _gets_in(site: Site, files: list[Path]) -> bool:
    with sending(site.port, files) as association:
        if not association.is_established:
            return False
        return [association.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0, 0, 0]
