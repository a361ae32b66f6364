"""Storage commitment of what the gateway has received: the side that is asked (PS3.4, annex J)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from pydicom import Dataset
from pynetdicom import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from app.gateway.configuration import Caller, DicomNode, GatewayConfiguration
from app.gateway.events import Event, Kind, Peer, Tell
from app.gateway.incoming import SUCCESS
from app.gateway.jobs import Jobs, pause_after
from app.gateway.questions import Question, Questions
from app.gateway.receiver import NOT_AUTHORIZED, PLAIN
from app.gateway.scu import call, reference_to, why_not
from app.gateway.spool import Refused, Spool, checked_uid
from app.outcome import UsageError

_REQUEST = 1
"""Action type of a request (PS3.4, table J.3.2-1)."""
_NO_SUCH_ACTION, _INVALID_ARGUMENT = 0x0123, 0x0115
"""Statuses of the N-ACTION response (PS3.7, 10.1.4.1.10)."""
_ALL_KEPT, _SOME_LOST = 1, 2
"""Event types of the report (PS3.4, table J.3.3-1)."""
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119
"""Failure reasons (PS3.3, C.14.1.1)."""
_PAUSE, _LONGEST_PAUSE = 5.0, 900.0
"""Seconds before a report is repeated the first time, and at most."""


class Commitment:
    """Takes questions, and answers them in associations of its own.

    Parameters
    ----------
    configuration : GatewayConfiguration
    spool : Spool
    jobs : Jobs
    questions : Questions
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
        questions: Questions,
        stopping: threading.Event,
        tell: Tell,
    ) -> None:
        self._configuration = configuration
        self._spool = spool
        self._jobs = jobs
        self._questions = questions
        self._stopping = stopping
        self._tell = tell

    def asked(self, event: Any) -> tuple[int, None]:
        """Take a question (handler of N-ACTION): it is on the disk when the response is sent."""
        title = event.assoc.requestor.ae_title.strip()
        if self._caller(title) is None:
            self._complain(title, "it asks for storage commitment, and no port to report to is configured for it")
            return NOT_AUTHORIZED, None
        if event.action_type != _REQUEST:
            return _NO_SUCH_ACTION, None
        try:
            question = _read(title, event.action_information)
        except Exception:  # what damaged data make the parser raise is not foreseeable
            self._complain(title, "its question for storage commitment cannot be read")
            return _INVALID_ARGUMENT, None
        self._questions.put(question)
        return SUCCESS, None

    def answer(self) -> None:
        """Answer what is due; of a caller who cannot be told one answer, the others wait as well."""
        silent: set[str] = set()
        for question in self._questions.due(time.time()):
            if self._stopping.is_set():
                return
            caller = self._caller(question.caller)
            if caller is None or time.time() - question.since > self._configuration.limits.send_seconds:
                self._questions.settle(question)
                self._complain(question.caller, "its question for storage commitment was given up")
            elif question.caller in silent or not self._answered(caller, question):
                silent.add(question.caller)
                pause = pause_after(question.failures + 1, _PAUSE, _LONGEST_PAUSE)
                self._questions.postpone(question, time.time() + pause)

    def _answered(self, caller: Caller, question: Question) -> bool:
        """Tell a caller what is kept; say whether it has taken note."""
        report = self._report(question)
        try:
            problem = self._send(caller, report)
        except UsageError as error:  # the files of TLS may be readable again the next time
            problem = str(error)
        if problem is not None:
            self._complain(question.caller, problem)
            return False
        self._questions.settle(question)
        self._tell_of(question, report)
        return True

    def _caller(self, title: str) -> Caller | None:
        own = (each for each in self._configuration.callers if each.ae_title == title and each.port is not None)
        return next(own, None)

    def _report(self, question: Question) -> Dataset:
        """Return what is kept, which is never deleted from then on but by a person, and what is not (PS3.3, C.14)."""
        found = self._spool.find([instance for _, instance in question.instances])
        promised = self._jobs.promise({study for study, _ in found.values()})
        there = {instance: sop_class for instance, (study, sop_class) in found.items() if study in promised}
        kept, lost = [], []
        for sop_class, instance in question.instances:
            item = reference_to(sop_class, instance)
            if there.get(instance) == sop_class:
                kept.append(item)
            else:
                item.FailureReason = CLASS_CONFLICT if instance in there else NO_SUCH_INSTANCE
                lost.append(item)
        report = Dataset()
        report.TransactionUID = question.transaction
        if kept:
            report.ReferencedSOPSequence = kept
        if lost:
            report.FailedSOPSequence = lost
        return report

    def _send(self, caller: Caller, report: Dataset) -> str | None:
        """Report to a caller; return what was in the way."""
        node = DicomNode(
            name=caller.ae_title,
            ae_title=caller.ae_title,
            host=str(caller.address),
            port=caller.port or 0,
            tls=self._configuration.tls is not None,
        )
        association = call(
            self._configuration.ae_title,
            node,
            self._configuration.tls,
            [(StorageCommitmentPushModel, syntax) for syntax in PLAIN],
            roles=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        if not association.is_established:
            return why_not(node, association)
        try:
            status, _ = association.send_n_event_report(
                report,
                _SOME_LOST if "FailedSOPSequence" in report else _ALL_KEPT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (RuntimeError, ValueError):
            return f"{node.name}: it takes no report on storage commitment"
        finally:
            association.release()
        return None if status.get("Status") == SUCCESS else f"{node.name}: it did not take the report"

    def _tell_of(self, question: Question, report: Dataset) -> None:
        kept = Counter(str(item.ReferencedSOPClassUID) for item in report.get("ReferencedSOPSequence") or [])
        lost = len(report.get("FailedSOPSequence") or [])
        message = f"{question.caller}: told that {kept.total()} instances are kept and {lost} are not"
        self._tell(Event(Kind.COMMITTED, message, peer=Peer(question.caller), instances=kept))

    def _complain(self, title: str, message: str) -> None:
        self._tell(Event(Kind.REJECTED, f"{title}: {message}", peer=Peer(title)))


def _read(caller: str, information: Dataset) -> Question:
    """Read a question.

    Raises
    ------
    Refused, AttributeError, TypeError
        If it is none.
    """
    instances = tuple(
        (checked_uid(item.ReferencedSOPClassUID), checked_uid(item.ReferencedSOPInstanceUID))
        for item in information.ReferencedSOPSequence
    )
    if not instances:
        raise Refused(_INVALID_ARGUMENT, "it is about nothing")
    return Question(checked_uid(information.TransactionUID), caller, instances, time.time())
