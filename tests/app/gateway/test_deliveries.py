"""Which destination is asked what, and when; without a gateway around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.gateway import deliveries
from app.gateway.configuration import GatewayConfiguration
from app.gateway.deliveries import Deliveries
from app.gateway.events import Event, Kind
from app.gateway.jobs import Delivery, Jobs, State
from app.gateway.spool import Spool
from tests.app.gateway.peers import CALLER, PACS_TITLE, Pacs, free_port, listening


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with closing(Jobs(tmp_path / "jobs")) as jobs:
        yield jobs


def _to_send(jobs: Jobs, study: str, objects: Sequence[Delivery]) -> None:
    """Have a study run that arrived, all at the time 0."""
    jobs.receive(study, CALLER, 0.0)
    jobs.settle(0.0, [])
    job = jobs.claim(0.0)
    assert job is not None
    assert jobs.ran(job, objects, 0.0)


def _object(study: str, destination: str, **more: bool) -> Delivery:
    return Delivery(study, 0.0, destination, "sr/report.dcm", "1.2.3", f"{study}.1", **more)


def _deliveries(folder: Path, jobs: Jobs, ports: dict[str, int], tell: Any) -> Deliveries:
    configuration = GatewayConfiguration.model_validate(
        {
            "spool": folder / "spool",
            "callers": [{"ae_title": CALLER}],
            "destinations": [
                {"name": name, "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": port}
                for name, port in ports.items()
            ],
            "limits": {"send_hours": 1e9},
        }
    )
    return Deliveries(configuration, Spool(folder / "spool", 0), jobs, threading.Event(), tell)


def test_a_destination_that_is_down_is_not_blamed_for_what_it_keeps_already(tmp_path: Path, jobs: Jobs) -> None:
    told: list[Event] = []
    kept = _object("1.2", "first", stored=True, committed=True)
    _to_send(jobs, "1.1", [_object("1.1", "first", stored=True)])
    _to_send(jobs, "1.2", [kept, _object("1.2", "second", stored=True)])
    _deliveries(tmp_path, jobs, {"first": free_port(), "second": free_port()}, told.append).step()
    blamed = [(event.study, event.peer.name) for event in told if event.kind == Kind.UNSENT and event.peer]
    assert blamed == [("1.1", "first"), ("1.2", "second")]


class _Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1e6

    def time(self) -> float:
        return self.now

    monotonic = time


def test_who_does_not_answer_whether_it_keeps_the_results_is_asked_less_and_less_often(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    monkeypatch.setattr(deliveries, "time", clock)
    _to_send(jobs, "1.1", [_object("1.1", "pacs", stored=True)])
    asked = []
    with listening(Pacs(silent=1000)) as pacs:
        sender = _deliveries(tmp_path, jobs, {"pacs": pacs.port}, lambda event: None)
        for minute in range(8):
            clock.now = 1e6 + minute * 60.0
            sender.step()
            if len(sender._asked) > len(asked):
                asked.append(minute)
    assert asked == [0, 1, 3, 7]
    assert [job.state for job in jobs.all()] == [State.SENDING]
