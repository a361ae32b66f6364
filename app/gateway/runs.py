"""Studies that are complete are run, one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pydicom

from app.gateway.configuration import GatewayConfiguration
from app.gateway.events import Event, Kind, Tell
from app.gateway.jobs import Delivery, Job, Jobs
from app.gateway.spool import Spool, sync_folder
from app.gateway.worker import Worker
from app.publish import objects_in

RUN_PAUSE = 30.0
"""Seconds before a failed run is repeated the first time."""
_IDENTIFIERS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]


class _OfAnotherStudy(Exception):
    """Results belong to another study than the one that was received: damaged images may name two."""


class Runs:
    """Takes studies from the job table to the worker, and back.

    Parameters
    ----------
    configuration : GatewayConfiguration
    spool : Spool
    jobs : Jobs
    worker : Worker
    arriving : callable
        Returns the studies of which an open association sends something.
    stopping : Event
        Set when the gateway ends.
    tell : callable
        Receives what happens.
    """

    def __init__(
        self,
        configuration: GatewayConfiguration,
        spool: Spool,
        jobs: Jobs,
        worker: Worker,
        arriving: Callable[[], set[str]],
        stopping: threading.Event,
        tell: Tell,
    ) -> None:
        self._configuration = configuration
        self._spool = spool
        self._jobs = jobs
        self._worker = worker
        self._arriving = arriving
        self._stopping = stopping
        self._tell = tell

    def step(self) -> bool:
        """Run a study; say whether there was one."""
        self._jobs.resume(time.time())
        for complete in self._jobs.settle(time.time(), self._arriving()):
            if self._spool.empty(complete.study):  # the gateway died before the first instance was there
                self._jobs.forget(complete)
            else:
                self._tell_of(complete, Kind.COMPLETE, "complete")
        job = self._jobs.claim(time.time())
        if job is None:
            return False
        try:
            self._run(job)
        except _OfAnotherStudy:
            self._broke(job, "the results are of another study: the images name two")
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
            sync_folder(self._spool.results(job.study).parent)
            current = self._jobs.ran(job, self._deliveries(job.study, now), now)
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

    def _deliveries(self, study: str, ran: float) -> list[Delivery]:
        folder = self._spool.results(study)
        made = []
        for path in objects_in(folder):
            header = pydicom.dcmread(path, specific_tags=_IDENTIFIERS, stop_before_pixels=True)
            if header.StudyInstanceUID != study:
                raise _OfAnotherStudy
            made.append((str(path.relative_to(folder)), str(header.SOPClassUID), str(header.SOPInstanceUID)))
        names = [each.name for each in self._configuration.destinations]
        return [Delivery(study, ran, name, *one) for name in names for one in made]

    def _tell_of(self, job: Job, kind: Kind, message: str, seconds: float | None = None) -> None:
        self._tell(Event(kind, message, job.study, seconds=seconds))
