"""Many scanners at a time, and those who speak no DICOM."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from app.gateway import receiver
from app.gateway.jobs import State
from tests.app.gateway.peers import CALLER, TITLE, accepts, association_request, send, wait_until
from tests.app.gateway.site import Site
from tests.builders import write_series

SCANNERS = 50
BROKEN = 300


@pytest.mark.whole
def test_fifty_scanners_at_once_lose_nothing(site: Site, tmp_path: Path) -> None:
    site.start()
    studies = [
        write_series(tmp_path / str(number), np.zeros((3, 8, 8)), study=str(number)) for number in range(SCANNERS)
    ]
    with ThreadPoolExecutor(SCANNERS) as pool:
        answers = list(pool.map(lambda each: send(site.port, each), studies))
    assert answers == [[0, 0, 0]] * SCANNERS
    wait_until(lambda: site.states() == [State.COMMITTED] * SCANNERS)
    assert {str(each.SeriesDescription) for each in site.pacs.objects.values()} == {"3 instances"}
    assert len(site.pacs.objects) == SCANNERS


def _broken(rng: np.random.Generator, whole: bytes) -> bytes:
    """Cut, change, lengthen or replace an association request."""
    message = bytearray(whole)
    match int(rng.integers(4)):
        case 0:
            del message[int(rng.integers(len(message))) :]
        case 1:
            for place in rng.integers(len(message), size=int(rng.integers(1, 9))):
                message[place] = int(rng.integers(256))
        case 2:
            message[2:6] = rng.bytes(4)
        case _:
            message = bytearray(rng.bytes(int(rng.integers(1, 400))))
    return bytes(message) + rng.bytes(int(rng.integers(0, 3)) * 20)


def test_what_is_no_dicom_stops_nobody(site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 5.0)
    site.start()
    whole, rng = association_request(CALLER, TITLE), np.random.default_rng(0)
    assert whole[0] == 1  # the type of an association request
    for _ in range(BROKEN):
        with socket.create_connection(("127.0.0.1", site.port)) as connection, suppress(OSError):
            connection.sendall(_broken(rng, whole))
            if rng.random() < 0.2:
                connection.settimeout(0.05)
                connection.recv(1 << 12)
    wait_until(lambda: accepts(site.port, files[0]))
    wait_until(lambda: not any("AcceptorThread" in each.name for each in threading.enumerate()))
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])
