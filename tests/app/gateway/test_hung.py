"""Peers that connect and hang: they cost a place each, for a while, and nobody anything else."""

from __future__ import annotations

import fcntl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import pydicom
import pytest

from app.gateway import receiver
from app.gateway.jobs import State
from app.gateway.spool import Arrival, Spool
from tests.app.gateway import raw
from tests.app.gateway.peers import send, sending, wait_until
from tests.app.gateway.raw import COMMAND, DATA, Pdv, RawPeer, pdu
from tests.app.gateway.site import Site

PEERS = 64
"""As many as may be there at a time, by default."""
PLACES = 8
"""As many where they are few."""
LONG = 600.0
"""Seconds of silence that no test lives to see: who is hung up on nevertheless is so for another reason."""


def _negotiates(peer: RawPeer) -> None:
    peer.negotiate()


def _stops_within_a_message(peer: RawPeer) -> None:
    peer.negotiate()
    peer.send(raw.store("1.2", "1.3").encoded()[:-50])


@pytest.fixture
def peers() -> Iterator[Callable[[int], RawPeer]]:
    with ExitStack() as stack:

        def connect(port: int) -> RawPeer:
            peer = RawPeer(port)
            stack.callback(peer.close)
            return peer

        yield connect


def test_a_scanner_gets_in_again_when_those_who_hang_are_hung_up_on(
    site: Site, files: list[Path], peers: Callable[[int], RawPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 10.0)  # the last has to hang before the first is hung up on
    site.start(limits={"associations": PLACES})
    hung = [peers(site.port) for _ in range(PLACES)]
    for peer, hang in zip(hung, cycle((_negotiates, _stops_within_a_message)), strict=False):
        hang(peer)
    wait_until(lambda: _acceptors() >= PLACES)
    with sending(site.port, files) as association:
        assert association.is_rejected
        assert association.acceptor.primitive.result == 0x02  # for now: it may try again
    wait_until(lambda: all(peer.hung_up() for peer in hung))
    wait_until(lambda: _acceptors() == 0)
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_a_scanner_gets_in_while_many_are_connected_and_say_nothing(
    site: Site, files: list[Path], peers: Callable[[int], RawPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", LONG)
    site.start(limits={"associations": 2})
    silent = [peers(site.port) for _ in range(PEERS + 10)]
    wait_until(lambda: _acceptors() >= PEERS)
    assert send(site.port, files) == [0, 0, 0]
    wait_until(silent[0].hung_up)
    assert not silent[-1].hung_up()
    wait_until(lambda: site.states() == [State.COMMITTED])


def _acceptors() -> int:
    return sum("AcceptorThread" in each.name for each in threading.enumerate())


def test_who_has_gone_before_asking_keeps_no_place(site: Site, files: list[Path]) -> None:
    """So do those who look whether a port is open, again and again."""
    site.start(limits={"associations": 2})
    for _ in range(10):
        RawPeer(site.port).close()
        RawPeer(site.port).vanish()
    wait_until(lambda: _acceptors() == 0)
    assert send(site.port, files) == [0, 0, 0]


@pytest.mark.parametrize("where", ["before the association", "within a message"])
def test_who_says_a_byte_now_and_then_is_hung_up_on(
    site: Site, peers: Callable[[int], RawPeer], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 3.0)
    site.start()
    slow = peers(site.port)
    if where == "within a message":
        slow.negotiate()
        message = raw.store("1.2", "1.3", pixels=64).encoded()
    else:
        message = raw.association_request_bytes()
    left = iter(message)

    def hung_up() -> bool:
        slow.connection.settimeout(300.0)
        slow.send(bytes([next(left)]))
        return slow.hung_up()

    wait_until(hung_up)
    wait_until(lambda: _acceptors() == 0)


@pytest.mark.parametrize("kind", [raw.REQUEST, DATA])
def test_a_pdu_that_claims_four_gigabytes_is_not_waited_for(
    site: Site, files: list[Path], peers: Callable[[int], RawPeer], monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", LONG)
    site.start()
    large = peers(site.port)
    if kind == DATA:
        large.negotiate()
    large.send(struct.pack(">BBL", kind, 0, (1 << 32) - 1))
    wait_until(large.hung_up)
    assert send(site.port, files) == [0, 0, 0]


def _never_waits(peer: RawPeer) -> bool:
    peer.send(raw.echo().encoded() * 100)
    return peer.hung_up()


def _reports_at_length(peer: RawPeer) -> bool:
    message = raw.report()
    message.data = bytes(5_000_000)
    peer.send(message.encoded())
    return peer.hung_up()


def _never_ends_a_command(peer: RawPeer) -> bool:
    peer.send(pdu(DATA, Pdv(raw.ECHO, COMMAND, bytes(1 << 15)).encoded()))
    return peer.hung_up()


@pytest.mark.parametrize("talk", [_never_waits, _reports_at_length, _never_ends_a_command])
def test_who_says_more_than_the_protocol_allows_is_hung_up_on(
    site: Site,
    files: list[Path],
    peers: Callable[[int], RawPeer],
    monkeypatch: pytest.MonkeyPatch,
    talk: Callable[[RawPeer], bool],
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", LONG)
    site.start()
    talker = peers(site.port)
    talker.negotiate()
    wait_until(lambda: talk(_blocking(talker)))
    assert any("what the protocol does not allow" in line for line in site.lines)
    assert send(site.port, files) == [0, 0, 0]


def _blocking(peer: RawPeer) -> RawPeer:
    peer.connection.settimeout(300.0)
    return peer


def test_who_does_not_read_the_answers_is_hung_up_on(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 3.0)
    site.start()
    deaf = RawPeer(site.port, window=1)
    deaf.negotiate()
    question = raw.echo().encoded()
    deaf.connection.setblocking(False)

    def blocked() -> bool:
        """Ask again when the last answer has come, unread, until none comes any more."""
        before = _unread(deaf)
        deaf.send(question)
        for _ in range(200):
            if _unread(deaf) != before:
                return False
            time.sleep(0.005)
        return True

    wait_until(lambda: _until_blocked(blocked))
    wait_until(lambda: _acceptors() == 0)
    deaf.close()
    assert send(site.port, files) == [0, 0, 0]


def _until_blocked(blocked: Callable[[], bool]) -> bool:
    return any(blocked() for _ in range(1000))


def _unread(peer: RawPeer) -> int:
    """Return how many bytes have come that were not read."""
    return int.from_bytes(fcntl.ioctl(peer.connection, termios.FIONREAD, bytes(4)), "little")


def test_images_do_not_pile_up_in_memory_while_the_disk_is_busy(
    site: Site, peers: Callable[[int], RawPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a peer that does not wait for answers wait in the network."""
    idle, keep, begun = threading.Event(), Spool.keep, Spool.begin
    arrivals: list[Arrival] = []

    def begin(spool: Spool, kind: str = "") -> Arrival:
        arrivals.append(begun(spool, kind))
        return arrivals[-1]

    def keep_late(spool: Spool, study: str, instance: str, arrival: Arrival) -> None:
        idle.wait()
        keep(spool, study, instance, arrival)

    monkeypatch.setattr(Spool, "begin", begin)
    monkeypatch.setattr(Spool, "keep", keep_late)
    site.start()
    hasty = peers(site.port)
    hasty.negotiate()
    images = [raw.store("1.2.3", f"1.2.3.{number + 1}", pixels=100).encoded() for number in range(20)]
    try:
        hasty.send(b"".join(images))
        wait_until(lambda: bool(arrivals))
        _echo_goes_through(site)
        assert len(arrivals) == 1
    finally:
        idle.set()
    answers = [hasty.answer() for _ in images]
    assert [answer and answer.Status for answer in answers] == [0] * 20


def _echo_goes_through(site: Site) -> None:
    with sending(site.port) as association:
        assert association.send_c_echo().Status == 0


def test_a_peer_that_is_reset_leaves_its_study_to_be_run(site: Site) -> None:
    site.start()
    peer = RawPeer(site.port)
    peer.negotiate()
    peer.send(raw.store("1.2.3", "1.2.3.1").encoded())
    answer = peer.answer()
    assert answer is not None
    assert answer.Status == 0
    peer.send(raw.store("1.2.3", "1.2.3.2").encoded()[:-1])
    peer.vanish()
    wait_until(lambda: site.states() == [State.COMMITTED])
    (kept,) = (site.folder / "spool" / "studies").glob("*/in/*")
    assert pydicom.dcmread(kept).SOPInstanceUID == "1.2.3.1"
