"""The gateway at work: what is received is run, what was found is sent, what fails is tried again."""

from __future__ import annotations

import fcntl
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pydicom

from app.gateway.audit import AUDIT_LOG, AuditTrail, Reporter
from app.gateway.commitment import Commitment
from app.gateway.configuration import (
    Destination,
    DicomDestination,
    GatewayConfiguration,
    WebDestination,
    load_gateway,
)
from app.gateway.dicom_sender import DicomSender
from app.gateway.dicomweb import WebSender
from app.gateway.events import Event, Kind, Peer, Tell, to_all
from app.gateway.jobs import Delivery, Job, Jobs
from app.gateway.metrics import Metrics, Vitals
from app.gateway.questions import Questions
from app.gateway.queue import Queue
from app.gateway.receiver import Receiver
from app.gateway.sender import Failure, Sender
from app.gateway.spool import Spool
from app.gateway.web import Pages
from app.gateway.web_server import WebServer
from app.gateway.worker import Worker
from app.outcome import UsageError
from app.publish import objects_in

TABLE = "jobs.sqlite3"
TICK = 0.5
"""Seconds between two looks at the job table."""
RUN_PAUSE = 30.0
"""Seconds before a failed run is repeated the first time."""
SEND_PAUSE, _LONGEST_PAUSE = 5.0, 900.0
"""Seconds before a failed delivery is repeated the first time, and at most."""
COMMITMENT_PAUSE = 60.0
"""Seconds that a destination has to report on storage commitment before it is asked again."""


def _own(spool: Path) -> IO[str]:
    """Take a spool for as long as the returned file is open.

    Raises
    ------
    UsageError
        If another gateway has it.
    """
    lock = (spool / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(f"another gateway uses the spool {spool}") from None
    return lock


@contextmanager
def open_table(path: Path) -> Iterator[tuple[GatewayConfiguration, Jobs, Spool]]:
    """Open job table and spool of a gateway, which may be running, by the path of its configuration.

    Raises
    ------
    UsageError
        If the configuration is wrong, or the gateway has never run.
    """
    configuration = load_gateway(path)
    table = configuration.spool / TABLE
    if not table.is_file():
        raise UsageError(f"the gateway of {path} has never run: there is no {table}")
    with closing(Jobs(table)) as jobs:
        yield configuration, jobs, Spool(configuration.spool, 0)


class Gateway:
    """Receives, runs and sends until it is closed.

    Parameters
    ----------
    configuration : GatewayConfiguration
    worker : Worker
        Runs the studies.
    tell : callable
        Receives what happens; the audit trail in the spool has got it before.

    Raises
    ------
    UsageError
        If the spool cannot be written or the port cannot be had.
    """

    def __init__(self, configuration: GatewayConfiguration, worker: Worker, tell: Tell) -> None:
        self._configuration = configuration
        self._worker = worker
        queue = Queue(configuration.spool / TABLE)
        metrics = Metrics(queue, self._vitals, [each.name for each in configuration.destinations])
        self._spool = Spool(configuration.spool, configuration.limits.free_disk_mb * 10**6)
        audit = AuditTrail(configuration.spool / AUDIT_LOG, Reporter(configuration.ae_title), self._spool, tell)
        self._tell = to_all(audit, tell, metrics.hear)
        self._jobs = Jobs(configuration.spool / TABLE)
        self._senders: dict[type[Destination], Sender[Any]] = {
            DicomDestination: DicomSender(configuration.ae_title, configuration.tls, self._reported),
            WebDestination: WebSender(configuration.tls, self._reported),
        }
        self._questions = Questions(configuration.spool / TABLE)
        self._commitment = Commitment(configuration, self._spool, self._questions, self._tell)
        self._receiver = Receiver(
            configuration, self._spool, self._jobs, self._reported, self._commitment.asked, self._tell
        )
        self._asked: dict[str, _Question] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        steps = {"run": self._run_next, "send": self._send_all, "answer": self._answer, "clear": self._clear}
        self._threads = [threading.Thread(target=self._loop, args=(step,), name=name) for name, step in steps.items()]
        self._web = None
        if configuration.web is not None:
            title, results = configuration.ae_title, self._spool.results
            pages = Pages(configuration.web, title, queue, metrics, self._vitals, results, self._tell)
            self._web = WebServer(configuration.web, pages)

    def __enter__(self) -> Self:
        with ExitStack() as undo:  # whoever cannot begin holds nothing
            undo.callback(self._jobs.close)
            undo.callback(self._questions.close)
            self._own = undo.enter_context(_own(self._configuration.spool))
            self._spool.tidy()
            for study in self._jobs.recover(self._spool.studies(), time.time(), self._configuration.quiet_seconds):
                self._tell(Event(Kind.DROPPED, "dropped, as was begun", study))
                self._spool.drop(study)
                self._jobs.dropped(study)
            if self._web is not None:
                self._web.start()
                undo.callback(self._web.stop)
            self._receiver.start()
            undo.pop_all()
        where = f"{self._configuration.host}, port {self._configuration.port}"
        self._tell(Event(Kind.STARTED, f"listening as {self._configuration.ae_title} on {where}"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._web is not None:
            self._web.stop()
        self._receiver.stop()
        self._worker.close()
        for thread in self._threads:
            thread.join()
        self._receiver.arriving()  # what the last associations have sent
        self._jobs.close()
        self._questions.close()
        self._own.close()
        self._tell(Event(Kind.STOPPED, "stopped"))

    def _loop(self, step: Callable[[], bool]) -> None:
        """Repeat a step until the end; what goes wrong in it is told, and no reason to end."""
        while not self._stopping.is_set():
            try:
                busy = step()
            except Exception as error:  # one study must not keep the others from being processed
                self._tell(Event(Kind.ERROR, f"error: {type(error).__name__} in {step.__name__.strip('_')}"))
                busy = False
            if not busy:
                self._stopping.wait(TICK)

    def _vitals(self) -> Vitals:
        """Say how the gateway is, to those who watch it."""
        free = shutil.disk_usage(self._configuration.spool).free
        troubles = [f"the thread that is to {each.name} has ended" for each in self._threads if not each.is_alive()]
        if not self._receiver.listening:
            troubles.append("nobody listens for associations")
        if free < self._configuration.limits.free_disk_mb * 10**6:
            troubles.append("the disk is full: nothing is accepted")
        return Vitals(tuple(troubles), free, self._receiver.associations)

    # --- runs ---

    def _run_next(self) -> bool:
        self._jobs.resume(time.time())
        for complete in self._jobs.settle(time.time(), self._receiver.arriving()):
            if self._spool.empty(complete.study):  # the gateway died before the first instance was there
                self._jobs.forget(complete)
            else:
                self._tell_of(complete, Kind.COMPLETE, "complete")
        job = self._jobs.claim(time.time())
        if job is None:
            return False
        try:
            self._run(job)
        except Exception as error:  # what it was counts as a failure of the run, else it would be tried for ever
            self._broke(job, f"the results cannot be used: {type(error).__name__}")
        return True

    def _run(self, job: Job) -> None:
        start = time.monotonic()
        outcome = self._worker.run(
            self._spool.incoming(job.study),
            self._spool.results(job.study),
            lambda line: self._tell_of(job, Kind.PROGRESS, line),
        )
        now, seconds = time.time(), time.monotonic() - start
        if self._stopping.is_set() and outcome.kind == "failed":
            return  # its worker was ended; the next gateway takes it up again
        self._jobs.took(job, seconds, now)
        if outcome.kind == "done":
            current = self._jobs.ran(job, self._deliveries(job.study), now)
            outdated = "" if current else "; more of it has come meanwhile: it will be run again"
            self._tell_of(job, Kind.RAN, f"{outcome.message} in {seconds:.1f} s{outdated}", seconds)
        elif outcome.kind == "refused":
            self._jobs.refused(job, outcome.message, now)
            self._tell_of(job, Kind.REFUSED, f"refused: {outcome.message}", seconds)
        else:
            self._broke(job, outcome.message, seconds)

    def _broke(self, job: Job, reason: str, seconds: float | None = None) -> None:
        self._tell_of(job, Kind.FAILED, f"failed: {reason}", seconds)
        self._jobs.broke(job, reason, time.time(), self._configuration.limits.runs, RUN_PAUSE)

    def _deliveries(self, study: str) -> list[Delivery]:
        folder = self._spool.results(study)
        made = []
        for path in objects_in(folder):
            header = pydicom.dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
            made.append((str(path.relative_to(folder)), str(header.SOPClassUID), str(header.SOPInstanceUID)))
        return [Delivery(study, each.name, *one) for each in self._configuration.destinations for one in made]

    # --- deliveries ---

    def _send_all(self) -> bool:
        self._receiver.arriving()  # while a study runs, too, the quiet time begins when an association has ended
        for job in self._jobs.outgoing(time.time()):
            if self._stopping.is_set():
                break
            self._send(job)
        return False

    def _answer(self) -> bool:
        self._commitment.answer()
        return False

    def _clear(self) -> bool:
        """Delete what has been delivered for long enough, and what nobody was told is kept."""
        days = self._configuration.keep_days
        ended = [] if days is None else self._jobs.ended(time.time() - days * 86400.0)
        promised = self._questions.promised() if ended else set()
        for job in ended:
            if job.study not in promised and self._jobs.drop(job.study, time.time(), job.revision):
                self._tell_of(job, Kind.DROPPED, f"deleted: it was delivered {days:g} days ago")
                self._spool.drop(job.study)
                self._jobs.dropped(job.study)
        return False

    def _send(self, job: Job) -> None:
        """Take the next step of a delivery to each destination: send, ask whether it is kept, or wait for that."""
        known = {destination.name for destination in self._configuration.destinations}
        failures = _blamed(self._open(job) - known, "there is no such destination any more")
        for destination in self._configuration.destinations:
            failures |= self._deliver(destination, job)
        now = time.time()
        if self._jobs.delivered(job, now):
            self._tell_of(job, Kind.DELIVERED, "delivered")
            return
        if not failures and now - job.since >= self._give_up:
            failures = _blamed(self._open(job), "it does not say whether it keeps the results")
        if failures:
            self._postpone(job, failures)

    def _deliver(self, destination: Destination, job: Job) -> dict[str, str]:
        """Take the next step of a delivery to a destination; return what keeps it, by the destination's name."""
        failures: list[Failure] = []
        try:
            failures += self._store(destination, job)
            failures += self._ask(destination, job)
        except Exception as error:  # neither the other destinations nor the other studies are to wait for it
            cause = "its name cannot be resolved" if isinstance(error, OSError) else type(error).__name__
            failures.append(Failure(f"{destination.name}: {cause}"))
        return {destination.name: failures[0].message} if failures else {}

    @property
    def _give_up(self) -> float:
        return self._configuration.limits.send_hours * 3600.0

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
            asked = {
                delivery.sop_instance
                for question in self._asked.values()
                for delivery in question.deliveries
                if delivery.destination == destination.name and now - question.since < COMMITMENT_PAUSE
            }
        left = [each for each in left if each.sop_instance not in asked]
        if not left:
            return []

        def remember(transaction: str) -> threading.Event:
            question = _Question(now, job, tuple(left))
            with self._lock:
                self._asked[transaction] = question
            return question.answered

        failure = self._senders[type(destination)].ask_commitment(destination, left, remember)
        return [] if failure is None else [failure]

    def _reported(self, transaction: str, kept: list[str], lost: list[str]) -> None:
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

    def _tell_of(self, job: Job, kind: Kind, message: str, seconds: float | None = None) -> None:
        self._tell(Event(kind, message, job.study, seconds=seconds))


def _blamed(names: set[str], cause: str) -> dict[str, str]:
    """Return why nothing goes on, by the names of the destinations that are the cause."""
    return {name: f"{name}: {cause}" for name in sorted(names)}


@dataclass(frozen=True, slots=True)
class _Question:
    """What a destination was asked to commit to, and when (monotonic seconds)."""

    since: float
    job: Job
    deliveries: tuple[Delivery, ...]
    answered: threading.Event = field(default_factory=threading.Event)
