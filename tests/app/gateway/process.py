"""A gateway in a process of its own: to be measured, and to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import yaml

from app.gateway.jobs import Job, Jobs, State
from app.gateway.service import TABLE
from tests.app.gateway.peers import CALLER, PACS_TITLE, Pacs, free_port, sending, wait_until
from tests.app.gateway.stand_ins import RUN_SECONDS
from tests.app.tiny_run import ROOT


class GatewayProcess:
    """A gateway that runs the stand-in of the application, and its worker.

    Parameters
    ----------
    folder : Path
        For its configuration, its spool and what it says.
    pacs : Pacs
        Where results go, and who may report on commitment.
    silence : float
        Seconds after which a peer that says nothing is hung up on.
    run_seconds : float
        That a study takes.
    **changes
        Of the configuration.
    """

    def __init__(
        self, folder: Path, pacs: Pacs, silence: float = 60.0, run_seconds: float = 0.0, **changes: Any
    ) -> None:
        self.port = free_port()
        pacs.report_to = self.port
        self._folder = folder
        self._silence = silence
        self._environment = os.environ | {RUN_SECONDS: str(run_seconds)}
        destination = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": pacs.port}
        stated: dict[str, Any] = {
            "port": self.port,
            "spool": "spool",
            "callers": [{"ae_title": CALLER}],
            "destinations": [destination | changes.pop("destination", {})],
            "quiet_seconds": 0.5,
            **changes,
        }
        self._configuration = folder / "gateway.yaml"
        self._configuration.write_text(yaml.safe_dump(stated), "utf-8")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.app.gateway.run_gateway"]
        with (self._folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(
                [*command, str(self._configuration), str(self._silence)],
                cwd=ROOT,
                env=self._environment,
                stdout=said,
                stderr=said,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self.answers)

    def answers(self) -> bool:
        with sending(self.port) as association:
            return bool(association.is_established) and association.send_c_echo().get("Status") == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def kill_worker(self) -> bool:
        """Kill the process that runs the studies alone; False if there is none."""
        workers = self._workers()
        for worker in workers:
            worker.kill()
        return bool(workers)

    def has_worker(self) -> bool:
        return bool(self._workers())

    def _workers(self) -> list[psutil.Process]:
        try:
            children = self.process.children()
            return [each for each in children if "spawn_main" in " ".join(each.cmdline())]
        except psutil.NoSuchProcess:
            return []

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    @property
    def said(self) -> str:
        """What went to standard output and error: nothing, but tracebacks."""
        return (self._folder / "said.txt").read_text()

    @property
    def studies(self) -> Path:
        return self._folder / "spool" / "studies"

    def jobs(self) -> list[Job]:
        path = self._folder / "spool" / TABLE
        if not path.is_file():  # it has not got so far
            return []
        with closing(Jobs(path)) as table:
            return table.all()

    def states(self) -> dict[str, State]:
        return {job.study: job.state for job in self.jobs()}
