"""Figures for Prometheus agree with what has happened."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pydicom
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom.uid import CTImageStorage

from app.gateway.events import Event, Kind, Peer
from app.gateway.jobs import Jobs, State
from app.gateway.metrics import Metrics, Vitals
from app.gateway.queue import Queue
from tests.app.gateway import stand_ins
from tests.app.gateway.browsing import look
from tests.app.gateway.peers import CALLER, PACS_TITLE, free_port, send, sending, wait_until
from tests.app.gateway.site import Site

PREFIX = "covid_ct_gateway_"


def _figures(text: str) -> dict[str, float]:
    """Return the samples by their names, without the prefix, and the values of their labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.name.startswith(PREFIX) for sample in samples)
    return {
        " ".join(
            [sample.name.removeprefix(PREFIX), *(value for _, value in sorted(sample.labels.items()))]
        ): sample.value
        for sample in samples
    }


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    Jobs(tmp_path / "jobs").close()
    return Queue(tmp_path / "jobs")


@pytest.fixture
def metrics(queue: Queue) -> Metrics:
    return Metrics(queue, lambda: Vitals((), 10, 1), ["pacs"])


def test_the_figures_of_a_gateway_are_those_of_what_happened(site: Site, files: list[Path]) -> None:
    nowhere = {"name": "nowhere", "ae_title": "NOBODY", "host": "127.0.0.1", "port": free_port()}
    pacs = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": site.pacs.port}
    port = free_port()
    site.start(destinations=[pacs, nowhere], web={"port": port})
    with sending(site.port, title="STRANGER") as association:
        assert association.is_rejected
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: {Kind.STORED, Kind.UNSENT} <= {event.kind for event in site.events})
    with sending(site.port) as association:
        assert association.is_established
        answer = look(port, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    figures = _figures(answer.text)
    unsent = [event.peer.name for event in site.events if event.kind == Kind.UNSENT and event.peer]
    assert set(unsent) == {"nowhere"}
    assert 1 <= figures["delivery_failures_total nowhere"] <= len(unsent)
    expected = {
        "instances_received_total CTImageStorage": 3,
        "rejected_total": 1,
        "runs_total done": 1,
        "runs_total refused": 0,
        "runs_total failed": 0,
        "run_seconds_count done": 1,
        "run_seconds_bucket 1800.0 done": 1,
        "objects_stored_total pacs": 1,
        "objects_stored_total nowhere": 0,
        "delivery_failures_total pacs": 0,
        "studies sending": 1,
        "studies committed": 0,
        "healthy": 1,
    }
    assert {name: figures[name] for name in expected} == expected
    (took,) = [job.seconds for job in site.jobs()]
    assert took == figures["run_seconds_sum done"]
    assert figures["free_disk_bytes"] > 0
    assert figures["associations"] >= 1
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    for secret in (study, CALLER, "Phantom"):
        assert secret not in answer.text


@pytest.mark.parametrize(
    ("serve", "state", "outcome"),
    [(stand_ins.refusing, State.REFUSED, "refused"), (stand_ins.dying, State.FAILED, "failed")],
)
def test_runs_are_counted_by_how_they_ended(
    site: Site, files: list[Path], serve: object, state: State, outcome: str
) -> None:
    port = free_port()
    site.start(serve, limits={"runs": 2}, web={"port": port})  # type: ignore[arg-type]
    send(site.port, files)
    wait_until(lambda: site.states() == [state])
    runs = 2 if outcome == "failed" else 1
    wait_until(lambda: _figures(look(port, "/metrics").text)[f"runs_total {outcome}"] == runs)  # told after the state
    figures = _figures(look(port, "/metrics").text)
    assert figures[f"runs_total {outcome}"] == figures[f"run_seconds_count {outcome}"] == runs
    assert figures["runs_total done"] == 0
    assert figures[f"studies {state}"] == 1


def test_what_strangers_may_say_is_no_label(metrics: Metrics) -> None:
    instances = {CTImageStorage: 2, "1.2.3.Doe^Jane": 1, "1.2.4": 4}
    metrics.hear(Event(Kind.RECEIVED, "received", "1.2.5", Peer("A"), instances))
    metrics.hear(Event(Kind.REJECTED, "Doe^Jane", peer=Peer("Doe^Jane")))
    text = metrics.text().decode()
    figures = _figures(text)
    assert figures["instances_received_total CTImageStorage"] == 2
    assert figures["instances_received_total other"] == 5
    assert figures["rejected_total"] == 1
    assert "Doe" not in text
    assert "1.2.5" not in text


def test_a_run_whose_time_is_not_known_is_counted_all_the_same(metrics: Metrics) -> None:
    metrics.hear(Event(Kind.FAILED, "failed"))
    metrics.hear(Event(Kind.FAILED, "failed", seconds=700.0))
    figures = _figures(metrics.text().decode())
    assert figures["runs_total failed"] == 2
    assert figures["run_seconds_bucket 600.0 failed"] == 0
    assert figures["run_seconds_bucket 1200.0 failed"] == figures["run_seconds_count failed"] == 1


def test_it_is_told_how_long_a_study_waits(metrics: Metrics, tmp_path: Path) -> None:
    began = time.time() - 3600.0
    with closing(Jobs(tmp_path / "jobs")) as jobs:
        jobs.receive("1.1", "A", began)
        jobs.receive("1.2", "A", began + 1000.0)
        jobs.settle(began + 1000.0, ["1.1"])
    figures = _figures(metrics.text().decode())
    assert figures["oldest_study_seconds receiving"] >= 3600.0
    assert 2600.0 <= figures["oldest_study_seconds ready"] < figures["oldest_study_seconds receiving"]
    assert figures["oldest_study_seconds running"] == 0.0
    assert "oldest_study_seconds committed" not in figures


def test_troubles_are_a_figure(queue: Queue) -> None:
    metrics = Metrics(queue, lambda: Vitals(("the disk is full",), 10, 0), [])
    figures = _figures(metrics.text().decode())
    assert (figures["healthy"], figures["free_disk_bytes"]) == (0.0, 10.0)
