"""Figures on a gateway for Prometheus: what has happened is counted as it is told, what is is looked up when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydicom.uid import UID

from app.gateway.events import Event, Kind
from app.gateway.queue import UNFINISHED, Queue
from app.gateway.receiver import ACCEPTED_CLASSES

_PREFIX = "covid_ct_gateway"
_BUCKETS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800)
"""Seconds; a run may take 1800 unless configured otherwise."""
_OUTCOMES = {Kind.RAN: "done", Kind.REFUSED: "refused", Kind.FAILED: "failed"}
_CLASSES = {str(each): UID(each).keyword for each in ACCEPTED_CLASSES}
"""What else a peer may call a SOP class is no name for a figure."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a gateway is, at a moment.

    Parameters
    ----------
    troubles : tuple of str
        What keeps it from working, a line each.
    free : int
        Bytes of its disk.
    associations : int
        How many are open.
    """

    troubles: tuple[str, ...]
    free: int
    associations: int


class Metrics:
    """Counts what is told, and shows it with what can be looked up.

    Parameters
    ----------
    queue : Queue
    vitals : callable
        Says how the gateway is.
    destinations : iterable of str
        Names; of them there are figures from the beginning.
    """

    def __init__(self, queue: Queue, vitals: Callable[[], Vitals], destinations: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        self._received = self._counter("instances_received", "Instances that were new and kept", "sop_class")
        self._rejected = self._counter("rejected", "Associations and instances that were not let in or not kept")
        self._runs = self._counter("runs", "Runs of the application that have ended", "outcome")
        self._seconds = Histogram(
            f"{_PREFIX}_run_seconds",
            "How long runs took",
            ["outcome"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._stored = self._counter("objects_stored", "Results that a destination has taken", "destination")
        self._unsent = self._counter(
            "delivery_failures", "Times that a destination did not take or keep results", "destination"
        )
        self._registry.register(_Present(queue, vitals))
        for name in _CLASSES.values():
            self._received.labels(name)
        for outcome in _OUTCOMES.values():  # what has never happened is 0, not unknown
            self._runs.labels(outcome)
        for destination in destinations:
            self._stored.labels(destination)
            self._unsent.labels(destination)

    def hear(self, event: Event) -> None:
        """Count what has happened."""
        match event.kind:
            case Kind.RECEIVED:
                for sop_class, number in event.instances.items():
                    self._received.labels(_CLASSES.get(sop_class, "other")).inc(number)
            case Kind.REJECTED:
                self._rejected.inc()
            case Kind.RAN | Kind.REFUSED | Kind.FAILED:
                outcome = _OUTCOMES[event.kind]
                self._runs.labels(outcome).inc()
                if event.seconds is not None:
                    self._seconds.labels(outcome).observe(event.seconds)
            case Kind.STORED if event.peer is not None:
                self._stored.labels(event.peer.name).inc(sum(event.instances.values()))
            case Kind.UNSENT if event.peer is not None:
                self._unsent.labels(event.peer.name).inc()

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format.

        Raises
        ------
        sqlite3.Error, OSError
            If the job table or the disk cannot be read.
        """
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", what, labels, registry=self._registry)


class _Present(Collector):
    """What is looked up when it is asked for."""

    def __init__(self, queue: Queue, vitals: Callable[[], Vitals]) -> None:
        self._queue = queue
        self._vitals = vitals

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Look at the job table and at the gateway."""
        now, crowds, vitals = time.time(), self._queue.crowds(), self._vitals()
        studies = GaugeMetricFamily(f"{_PREFIX}_studies", "Studies in the job table", labels=["state"])
        for state, crowd in crowds.items():
            studies.add_metric([state], crowd.number)
        oldest = GaugeMetricFamily(
            f"{_PREFIX}_oldest_study_seconds", "How long the first study has been in a state", labels=["state"]
        )
        for state in UNFINISHED:
            since = crowds[state].since
            oldest.add_metric([state], 0.0 if since is None else max(now - since, 0.0))
        yield studies
        yield oldest
        yield GaugeMetricFamily(f"{_PREFIX}_free_disk_bytes", "Free where the spool is", vitals.free)
        yield GaugeMetricFamily(f"{_PREFIX}_associations", "Open associations", vitals.associations)
        yield GaugeMetricFamily(f"{_PREFIX}_healthy", "1 unless something keeps it from working", not vitals.troubles)
