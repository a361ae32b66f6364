"""What was found goes to the destinations, again and again until they say that they keep it."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.gateway.configuration import Destination, DicomDestination, GatewayConfiguration, WebDestination
from app.gateway.dicom_sender import DicomSender
from app.gateway.dicomweb import WebSender
from app.gateway.events import Event, Kind, Peer, Tell
from app.gateway.jobs import Delivery, Job, Jobs, pause_after
from app.gateway.sender import Failure, Sender
from app.gateway.spool import Spool

SEND_PAUSE, _LONGEST_PAUSE = 5.0, 900.0
"""Seconds before a failed delivery is repeated the first time, and at most."""
DOWN_PAUSE = 30.0
"""Seconds for which a destination that could not be reached is left alone, whatever there is for it."""
COMMITMENT_PAUSE, _LONGEST_COMMITMENT_PAUSE = 60.0, 3600.0
"""Seconds that a destination has to report on storage commitment before it is asked again: at first, and at most."""


class Deliveries:
    """Takes the results of studies from the spool to the destinations.

    Parameters
    ----------
    configuration : GatewayConfiguration
    spool : Spool
    jobs : Jobs
    stopping : Event
        Set when the gateway ends.
    tell : callable
        Receives what happens.
    """

    def __init__(
        self, configuration: GatewayConfiguration, spool: Spool, jobs: Jobs, stopping: threading.Event, tell: Tell
    ) -> None:
        self._configuration = configuration
        self._spool = spool
        self._jobs = jobs
        self._stopping = stopping
        self._tell = tell
        self._senders: dict[type[Destination], Sender[Any]] = {
            DicomDestination: DicomSender(configuration.ae_title, configuration.tls, self.reported),
            WebDestination: WebSender(configuration.tls, self.reported),
        }
        self._give_up = configuration.limits.send_seconds
        self._asked: dict[str, _Question] = {}
        self._down: dict[str, _Down] = {}
        self._lock = threading.Lock()

    def step(self) -> None:
        """Take the next step of all deliveries that are due."""
        for job in self._jobs.outgoing(time.time()):
            if self._stopping.is_set():
                break
            self._send(job)

    def _send(self, job: Job) -> None:
        """Take the next step of a delivery to each destination: send, ask whether it is kept, or wait for that."""
        known = {destination.name for destination in self._configuration.destinations}
        waiting = self._open(job)
        failures = _blamed(waiting - known, "there is no such destination any more")
        for destination in self._configuration.destinations:
            if destination.name in waiting:
                failures |= self._deliver(destination, job)
        now = time.time()
        if self._jobs.delivered(job, now):
            self._tell(Event(Kind.DELIVERED, "delivered", job.study))
            return
        if not failures and now - job.since >= self._give_up:
            failures = _blamed(self._open(job), "it does not say whether it keeps the results")
        if failures:
            self._postpone(job, failures)

    def _deliver(self, destination: Destination, job: Job) -> dict[str, str]:
        """Take the next step of a delivery to a destination; return what keeps it, by the destination's name."""
        down = self._down.get(destination.name)
        if down is not None and time.monotonic() < down.until:
            return {destination.name: down.message}  # the others are not to wait for it once for each study
        failures: list[Failure] = []
        try:
            failures += self._store(destination, job)
            failures += self._ask(destination, job)
        except socket.gaierror:
            failures.append(Failure(f"{destination.name}: its name cannot be resolved", reachable=False))
        except FileNotFoundError:
            failures.append(Failure(f"{destination.name}: results are gone; retry runs the study again"))
        except Exception as error:  # neither the other destinations nor the other studies are to wait for it
            failures.append(Failure(f"{destination.name}: {type(error).__name__}"))
        lost = next((each for each in failures if not each.reachable), None)
        if lost is None:
            self._down.pop(destination.name, None)
        else:
            self._down[destination.name] = _Down(time.monotonic() + DOWN_PAUSE, lost.message)
        return {destination.name: failures[0].message} if failures else {}

    def _postpone(self, job: Job, failures: Mapping[str, str]) -> None:
        """Tell what keeps a delivery, by the names of destinations, and wait."""
        for name, message in failures.items():
            self._tell(Event(Kind.UNSENT, message, job.study, self._peer(name)))
        reason = next(iter(failures.values()))
        self._jobs.postpone(job, reason, time.time(), SEND_PAUSE, _LONGEST_PAUSE, self._give_up)

    def _peer(self, name: str) -> Peer:
        hosts = {destination.name: destination.host for destination in self._configuration.destinations}
        return Peer(name, hosts.get(name, ""))

    def _open(self, job: Job) -> set[str]:
        """Return the names of destinations that have not committed all of a study, configured or not."""
        return {each.destination for each in self._jobs.deliveries(job.study) if not each.committed}

    def _left(self, destination: Destination, job: Job, *, stored: bool) -> list[Delivery]:
        """Return what a destination has not committed yet, of what it has stored or has not."""
        own = [each for each in self._jobs.deliveries(job.study) if each.destination == destination.name]
        return [each for each in own if not each.committed and each.stored == stored]

    def _store(self, destination: Destination, job: Job) -> list[Failure]:
        left = self._left(destination, job, stored=False)
        if not left:
            return []
        objects = [(each, self._spool.results(job.study) / each.path) for each in left]
        taken: Counter[str] = Counter()

        def stored(delivery: Delivery) -> None:
            self._jobs.stored(delivery)
            taken[delivery.sop_class] += 1

        try:
            return self._senders[type(destination)].store(destination, objects, stored)
        finally:
            if taken:
                message = f"{destination.name}: took {taken.total()} objects"
                self._tell(Event(Kind.STORED, message, job.study, self._peer(destination.name), taken))

    def _ask(self, destination: Destination, job: Job) -> list[Failure]:
        now, left = time.monotonic(), self._left(destination, job, stored=True)
        if not destination.commitment:  # as it was when they were stored, it may have been asked for then
            for delivery in left:
                self._jobs.committed(delivery)
            return []
        with self._lock:
            self._asked = {key: each for key, each in self._asked.items() if now - each.since < self._give_up}
            unanswered = [each for each in self._asked.values() if each.job.study == job.study]
        left = [each for each in left if not _may_be_answered(each, unanswered, now)]
        if not left:
            return []

        def remember(transaction: str) -> threading.Event:
            question = _Question(now, job, tuple(left))
            with self._lock:
                self._asked[transaction] = question
            return question.answered

        failure = self._senders[type(destination)].ask_commitment(destination, left, remember)
        return [] if failure is None else [failure]

    def reported(self, transaction: str, kept: list[str], lost: list[str]) -> None:
        """Take what a destination says of a question; of one that nobody has put, nothing is believed."""
        with self._lock:
            question = self._asked.pop(transaction, None)
        if question is None:
            return
        missing = 0
        for delivery in question.deliveries:
            if delivery.sop_instance in kept:
                self._jobs.committed(delivery)
            else:  # it says that it has lost it, or nothing of it
                missing += 1
                self._jobs.lost(delivery)
        if missing:
            name = question.deliveries[0].destination
            self._postpone(question.job, _blamed({name}, f"it does not keep {missing} of the results"))
        question.answered.set()


def _may_be_answered(delivery: Delivery, unanswered: Sequence[_Question], now: float) -> bool:
    """Say whether a destination still has time to say of an object whether it keeps it."""
    about = (delivery.ran, delivery.destination, delivery.sop_instance)
    asked = [
        question.since
        for question in unanswered
        if any((each.ran, each.destination, each.sop_instance) == about for each in question.deliveries)
    ]
    return bool(asked) and now - max(asked) < pause_after(len(asked), COMMITMENT_PAUSE, _LONGEST_COMMITMENT_PAUSE)


def _blamed(names: set[str], cause: str) -> dict[str, str]:
    """Return why nothing goes on, by the names of the destinations that are the cause."""
    return {name: f"{name}: {cause}" for name in sorted(names)}


@dataclass(frozen=True, slots=True)
class _Down:
    """A destination that cannot be reached: until when it is left alone (monotonic seconds), and why."""

    until: float
    message: str


@dataclass(frozen=True, slots=True)
class _Question:
    """What a destination was asked to commit to, and when (monotonic seconds)."""

    since: float
    job: Job
    deliveries: tuple[Delivery, ...]
    answered: threading.Event = field(default_factory=threading.Event)
