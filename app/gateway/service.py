"""The gateway at work: what is received is run, what was found is sent, what fails is tried again."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from app.gateway.audit import AUDIT_LOG, AuditTrail, Reporter
from app.gateway.commitment import Commitment
from app.gateway.configuration import GatewayConfiguration, load_gateway
from app.gateway.deliveries import Deliveries
from app.gateway.events import Event, Kind, Tell, to_all
from app.gateway.jobs import Jobs
from app.gateway.metrics import Metrics, Vitals
from app.gateway.questions import Questions
from app.gateway.queue import Queue
from app.gateway.receiver import Receiver
from app.gateway.runs import Runs
from app.gateway.spool import Spool
from app.gateway.web import Pages
from app.gateway.web_server import WebServer
from app.gateway.worker import Worker
from app.outcome import RunFailed, UsageError

TABLE = "jobs.sqlite3"
TICK = 0.5
"""Seconds between two looks at the job table."""
_ATTEMPTS = 5


def _own(spool: Path) -> IO[str]:
    """Take a spool for as long as the returned file is open.

    Raises
    ------
    RunFailed
        If another gateway has it: it may be about to end.
    """
    lock = (spool / "lock").open("w")
    for _ in range(_ATTEMPTS):
        with suppress(BlockingIOError):  # somebody may just look whether a gateway runs
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.1)
    lock.close()
    raise RunFailed(f"another gateway uses the spool {spool}")


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


def delete(jobs: Jobs, spool: Spool, event: Event, tell: Tell, revision: int | None = None) -> bool:
    """Delete the study of an event, which is told before: the instances say whose they are.

    Parameters
    ----------
    jobs, spool
    event : Event
    tell : callable
    revision : int, optional
        Of the study as the caller knows it.

    Returns
    -------
    bool
        False if it arrives, runs, is not known or of another revision.
    """
    with spool.alone():
        if not jobs.drop(event.study, time.time(), revision):
            return False
        tell(event)
        spool.drop(event.study)
        jobs.dropped(event.study)
    return True


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
        If the spool cannot be written or a port cannot be had.
    RunFailed
        If another gateway has the spool, or another process a port.
    """

    def __init__(self, configuration: GatewayConfiguration, worker: Worker, tell: Tell) -> None:
        self._configuration = configuration
        self._worker = worker
        queue = Queue(configuration.spool / TABLE)
        metrics = Metrics(queue, self._vitals, [each.name for each in configuration.destinations])
        self._spool = Spool(configuration.spool, configuration.limits.free_bytes)
        audit = AuditTrail(configuration.spool / AUDIT_LOG, Reporter(configuration.ae_title), self._spool, tell)
        self._tell = to_all(audit, tell, metrics.hear)
        self._jobs = Jobs(configuration.spool / TABLE)
        self._stopping = threading.Event()
        self._deliveries = Deliveries(configuration, self._spool, self._jobs, self._stopping, self._tell)
        self._questions = Questions(configuration.spool / TABLE)
        self._commitment = Commitment(
            configuration, self._spool, self._jobs, self._questions, self._stopping, self._tell
        )
        self._receiver = Receiver(
            configuration, self._spool, self._jobs, self._deliveries.reported, self._commitment.asked, self._tell
        )
        self._runs = Runs(
            configuration, self._spool, self._jobs, worker, self._receiver.arriving, self._stopping, self._tell
        )
        steps = {"run": self._run, "send": self._send, "keep": self._keep}
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
            self._recover()
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

    def _recover(self) -> None:
        """Begin where a gateway that is no more has left off."""
        with self._spool.alone():
            studies = self._spool.studies()
            begun = self._jobs.recover(studies, time.time(), self._configuration.quiet_seconds)
        for study in begun:
            delete(self._jobs, self._spool, Event(Kind.DROPPED, "dropped, as was begun", study), self._tell)

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
        troubles = [f"the thread that is to {each.name} has ended" for each in self._threads if not each.is_alive()]
        if not self._receiver.listening:
            troubles.append("nobody listens for associations")
        if self._spool.full():
            troubles.append("the disk is full: nothing is accepted")
        return Vitals(tuple(troubles), self._spool.free(), self._receiver.associations)

    # --- steps: each says whether there was something to do ---

    def _run(self) -> bool:
        return self._runs.step()

    def _send(self) -> bool:
        self._receiver.arriving()  # while a study runs, too, the quiet time begins when an association has ended
        self._deliveries.step()
        return False

    def _keep(self) -> bool:
        """Say what is kept, and delete what need not be; one after the other, so that nothing is both."""
        self._commitment.answer()
        self._clear()
        return False

    def _clear(self) -> None:
        """Delete what has been delivered for long enough, and what nobody was told is kept."""
        days = self._configuration.keep_days
        for job in [] if days is None else self._jobs.ended(time.time() - days * 86400.0):
            event = Event(Kind.DROPPED, f"deleted: it was delivered {days:g} days ago", job.study)
            delete(self._jobs, self._spool, event, self._tell, job.revision)
