"""Nothing that was acknowledged is lost, whenever the gateway is killed and whenever the PACS is away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from app.gateway.jobs import Jobs, State
from app.gateway.service import TABLE
from tests.app.gateway.peers import CALLER, PACS_TITLE, Pacs, free_port, listening, sending, wait_until
from tests.app.tiny_run import ROOT
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


class Killed:
    """A gateway process that can be killed, and started again."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.app.gateway.run_gateway", str(self._configuration)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


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


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_whatever_was_acknowledged_reaches_the_pacs(kills: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    pacs, port = Pacs(port=free_port()), free_port()
    pacs.report_to = port
    configuration = tmp_path / "gateway.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(port, pacs.port)), "utf-8")
    with ExitStack() as stack:
        gateway = Killed(configuration)
        stack.callback(gateway.kill)
        with _now_and_then(pacs, rng):
            stream = Stream(tmp_path / "ct", port, kills * SECONDS / 2 / STUDIES)
            for _ in range(kills):
                time.sleep(rng.uniform(0.2, SECONDS))
                gateway.kill()
                gateway.start()
        with listening(pacs):
            wait_until(stream.ended)
            wait_until(lambda: _states(tmp_path) == dict.fromkeys(stream.uids, State.COMMITTED))
    kept = {str(each.StudyInstanceUID): str(each.SeriesDescription) for each in pacs.objects.values()}
    assert kept == dict.fromkeys(stream.uids, f"{IMAGES} instances")
    assert len(pacs.objects) == STUDIES


def _configuration(port: int, pacs_port: int) -> dict[str, object]:
    return {
        "port": port,
        "spool": "spool",
        "callers": [{"ae_title": CALLER}],
        "destinations": [{"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": pacs_port}],
        "quiet_seconds": 0.5,
    }


def _states(folder: Path) -> dict[str, State]:
    table = Jobs(folder / "spool" / TABLE)
    try:
        return {job.study: job.state for job in table.all()}
    finally:
        table.close()
