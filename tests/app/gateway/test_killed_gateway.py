"""Nothing that was acknowledged is lost, whenever gateway or worker are killed and whenever the PACS is away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest

from app.gateway.jobs import State
from tests.app.gateway.peers import Pacs, free_port, listening, sending, wait_until
from tests.app.gateway.process import GatewayProcess
from tests.builders import write_series

STUDIES, IMAGES = 20, 3
SECONDS = 4.0
"""At most between two kills; the stream lasts as long as they do."""


class Stream:
    """A scanner that sends studies one after the other, every image until it is acknowledged."""

    def __init__(self, folder: Path, port: int, pause: float) -> None:
        self._port = port
        self._pause = pause
        self._studies = [
            write_series(folder / str(number), np.zeros((IMAGES, 8, 8)), study=str(number)) for number in range(STUDIES)
        ]
        self.uids = [str(pydicom.dcmread(files[0]).StudyInstanceUID) for files in self._studies]
        self._thread = threading.Thread(target=self._send_all)
        self._thread.start()

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _send_all(self) -> None:
        for files in self._studies:
            time.sleep(self._pause)
            left = list(files)
            while left:
                left = self._acknowledged_are_left_out(left)

    def _acknowledged_are_left_out(self, files: list[Path]) -> list[Path]:
        with sending(self._port, files[:1]) as association:
            if not association.is_established:
                time.sleep(0.05)
                return files
            for number, file in enumerate(files):
                try:
                    status = association.send_c_store(pydicom.dcmread(file))
                except RuntimeError:  # the gateway is no more
                    return files[number:]
                if "Status" not in status or status.Status != 0:
                    return files[number:]
        return []


@contextmanager
def _now_and_then(pacs: Pacs, rng: np.random.Generator) -> Iterator[None]:
    """Have a PACS that comes and goes, and is there in the end."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with listening(pacs):
                stop.wait(rng.uniform(0.5, 3.0))
            time.sleep(rng.uniform(0.1, 1.0))

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _kill_one(gateway: GatewayProcess, stream: Stream, rng: np.random.Generator) -> str:
    """Kill the worker alone, or the gateway and start it anew; say which, and in the midst of what."""
    worker = rng.random() < 0.5
    if worker:
        wait_until(lambda: gateway.has_worker() or stream.ended())
    running = " that runs a study" if State.RUNNING in gateway.states().values() else ""
    if worker and gateway.kill_worker():
        return f"worker{running}"
    gateway.kill()
    gateway.start()
    return f"gateway{running}"


@pytest.mark.parametrize(
    ("kills", "seconds"),
    [pytest.param(6, 0.3, marks=pytest.mark.whole), pytest.param(100, 1.5, marks=pytest.mark.slow)],
)
def test_whatever_was_acknowledged_reaches_the_pacs(kills: int, seconds: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    pacs = Pacs(port=free_port())
    with ExitStack() as stack:
        gateway = GatewayProcess(tmp_path, pacs, run_seconds=seconds, limits={"runs": 2 * kills})
        stack.callback(gateway.kill)
        with _now_and_then(pacs, rng):
            stream = Stream(tmp_path / "ct", gateway.port, kills * SECONDS / 2 / STUDIES)
            killed: Counter[str] = Counter()
            for _ in range(kills):
                time.sleep(rng.uniform(0.2, SECONDS))
                killed[_kill_one(gateway, stream, rng)] += 1
        with listening(pacs):
            wait_until(stream.ended)
            wait_until(lambda: gateway.states() == dict.fromkeys(stream.uids, State.COMMITTED))
    print(dict(killed), f"{len(pacs.objects)} results, stored {len(pacs.received)} times")  # noqa: T201
    assert any("worker" in each for each in killed)
    assert any("gateway" in each for each in killed)
    kept = {str(each.StudyInstanceUID): str(each.SeriesDescription) for each in pacs.objects.values()}
    assert kept == dict.fromkeys(stream.uids, f"{IMAGES} instances")
    assert len(pacs.objects) == STUDIES
