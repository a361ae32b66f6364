"""A gateway in the process of the tests, beside a PACS."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.gateway.configuration import GatewayConfiguration
from app.gateway.events import Event, as_text
from app.gateway.jobs import Job, Jobs, State
from app.gateway.service import TABLE, Gateway
from app.gateway.worker import How, Worker
from app.settings import load_settings
from operators.selection_rules import ANY_SERIES
from tests.app.gateway import stand_ins
from tests.app.gateway.peers import CALLER, PACS_TITLE, Pacs, free_port, listening

_PREPARED = multiprocessing.get_context("forkserver")
"""Starts a worker from a process that has imported its modules: a hundred times the two seconds that this takes."""
_PREPARED.set_forkserver_preload(["tests.app.gateway.stand_ins"])


class Site:
    """A gateway with a PACS, and what one can see of both."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.pacs = stack.enter_context(listening(Pacs()))
        self.lines: list[str] = []
        self.events: list[Event] = []
        self.port = 0

    def configured(self, **changes: Any) -> GatewayConfiguration:
        destination = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": self.pacs.port}
        destination |= changes.pop("destination", {})
        self.port = self.port or free_port()
        stated = {
            "port": self.port,
            "spool": self.folder / "spool",
            "callers": [{"ae_title": CALLER}],
            "destinations": [destination],
            "quiet_seconds": 0.3,
            **changes,
        }
        return GatewayConfiguration.model_validate(stated)

    def start(
        self, serve: Callable[..., None] = stand_ins.quick, models: Path | None = None, **changes: Any
    ) -> Gateway:
        configuration = self.configured(**changes)
        settings = load_settings(["in_plane=32", "precision=float32"])
        how = How(models or self.folder, settings, ANY_SERIES, None)
        worker = Worker(how, configuration.limits.run_seconds, serve)
        if serve is not stand_ins.application:  # which ends with its parent, and is to be started as it is in earnest
            worker._context = _PREPARED  # type: ignore[assignment]
        self.pacs.report_to = configuration.port
        return self.stack.enter_context(Gateway(configuration, worker, self.hear))

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.lines.append(as_text(event, time.time()))

    def jobs(self) -> list[Job]:
        table = Jobs(self.folder / "spool" / TABLE)
        try:
            return table.all()
        finally:
            table.close()

    def states(self) -> list[State]:
        return [job.state for job in self.jobs()]

    def summary(self) -> str:
        """What the only result says that the PACS keeps."""
        (kept,) = self.pacs.objects.values()
        return str(kept.SeriesDescription)
