"""Callers ask whether the gateway keeps what they have sent, and are told what is true."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from app.gateway import commitment
from app.gateway.commitment import Commitment
from app.gateway.configuration import GatewayConfiguration
from app.gateway.events import Event, Peer
from app.gateway.jobs import Jobs, State
from app.gateway.questions import Question, Questions
from app.gateway.service import TABLE
from app.gateway.spool import Spool
from tests.app.gateway.peers import CALLER, PACS_TITLE, TITLE, free_port, send, wait_until
from tests.app.gateway.site import Site
from tests.builders import write_series

Uids = tuple[str, str]


@contextmanager
def _hearing(port: int, status: int = 0x0000) -> Iterator[list[tuple[int, Dataset]]]:
    """Run a scanner that takes reports; return their event types and contents."""
    reports: list[tuple[int, Dataset]] = []

    def hear(event: Any) -> tuple[int, None]:
        reports.append((event.event_type, event.event_information))
        return status, None

    entity = AE(CALLER)
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, hear)])
    try:
        yield reports
    finally:
        server.shutdown()


def _ask(site: Site, instances: Sequence[Uids], transaction: str = "", kind: int = 1) -> int:
    """Ask in an association that ends at once; return the status of the response."""
    question = Dataset()
    question.TransactionUID = transaction or generate_uid()
    question.ReferencedSOPSequence = []
    for sop_class, instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        question.ReferencedSOPSequence.append(item)
    entity = AE(CALLER)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", site.port, ae_title=TITLE)
    try:
        status, _ = association.send_n_action(
            question, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return int(status.Status)
    finally:
        association.release()


def _start(site: Site, port: int | None) -> None:
    caller = {"ae_title": CALLER, "address": "127.0.0.1"} | ({} if port is None else {"port": port})
    site.start(callers=[caller])


def _uids(files: Sequence[Path]) -> list[Uids]:
    return [(CTImageStorage, str(pydicom.dcmread(file).SOPInstanceUID)) for file in files]


def _told(report: Dataset) -> tuple[list[Uids], list[tuple[str, str, int]]]:
    """Return what is kept, and what is not and why."""
    kept, lost = report.get("ReferencedSOPSequence") or [], report.get("FailedSOPSequence") or []
    return (
        [(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) for item in kept],
        [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID), int(item.FailureReason))
            for item in lost
        ],
    )


def test_what_was_received_is_kept(site: Site, files: list[Path]) -> None:
    port = free_port()
    _start(site, port)
    send(site.port, files)
    with _hearing(port) as reports:
        assert _ask(site, _uids(files), "1.2.3") == 0
        wait_until(lambda: bool(reports))
    ((kind, report),) = reports
    assert (kind, report.TransactionUID) == (1, "1.2.3")
    assert _told(report) == (_uids(files), [])
    assert "FailedSOPSequence" not in report


def test_what_is_not_there_or_something_else_is_not_kept(site: Site, files: list[Path]) -> None:
    port = free_port()
    _start(site, port)
    send(site.port, files[:2])
    there, other, absent = _uids(files)
    with _hearing(port) as reports:
        assert _ask(site, [there, (MRImageStorage, other[1]), absent]) == 0
        wait_until(lambda: bool(reports))
    ((kind, report),) = reports
    assert kind == 2
    lost = [(MRImageStorage, other[1], 0x0119), (*absent, 0x0112)]
    assert _told(report) == ([there], lost)


def test_who_does_not_listen_is_told_later_and_by_the_next_gateway_too(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "_PAUSE", 0.2)
    port = free_port()
    _start(site, port)
    send(site.port, files)
    assert _ask(site, _uids(files), "1.2.3") == 0
    wait_until(lambda: any("it cannot be reached" in line for line in site.lines))
    with site.stack.pop_all():
        pass
    site.pacs.port = free_port()
    _start(site, port)
    with _hearing(port, 0x0110):
        wait_until(lambda: any("it did not take the report" in line for line in site.lines))
    with _hearing(port) as reports:
        wait_until(lambda: bool(reports))
        wait_until(lambda: not _open_questions(site))
    assert _told(reports[0][1]) == (_uids(files), [])


def _open_questions(site: Site) -> int:
    with closing(Questions(site.folder / "spool" / TABLE)) as questions:
        return len(questions.due(1e12))


def test_who_cannot_be_told_or_asks_for_nothing_is_refused(site: Site, files: list[Path]) -> None:
    _start(site, None)
    assert _ask(site, _uids(files)) == 0x0124
    assert any("no port to report to" in line for line in site.lines)
    with site.stack.pop_all():
        pass
    _start(site, free_port())
    assert _ask(site, _uids(files), kind=2) == 0x0123
    assert _ask(site, []) == 0x0115
    assert _ask(site, [(CTImageStorage, "../../etc")]) == 0x0115
    assert _open_questions(site) == 0


def test_a_question_that_cannot_be_answered_for_long_is_given_up(site: Site, files: list[Path]) -> None:
    site.start(callers=[{"ae_title": CALLER, "address": "127.0.0.1", "port": free_port()}], limits={"send_hours": 0.0})
    assert _ask(site, _uids(files)) == 0
    wait_until(lambda: any("was given up" in line for line in site.lines))
    wait_until(lambda: not _open_questions(site))


def test_certificates_that_cannot_be_read_for_a_while_hold_up_nothing_else(tmp_path: Path) -> None:
    """What is deleted in time comes after the answers, in the same thread."""
    callers = [{"ae_title": title, "address": "127.0.0.1", "port": free_port()} for title in (CALLER, "OTHER")]
    destination = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": 104}
    files = dict.fromkeys(("certificate", "key", "authorities"), tmp_path / "gone")
    stated = {"spool": tmp_path, "callers": callers, "destinations": [destination], "tls": files}
    told: list[Event] = []
    with closing(Jobs(tmp_path / TABLE)) as jobs, closing(Questions(tmp_path / TABLE)) as questions:
        for number, title in enumerate((CALLER, CALLER, "OTHER")):
            questions.put(Question(f"1.2.{number}", title, ((CTImageStorage, "1.2.3"),), time.time()))
        configuration = GatewayConfiguration.model_validate(stated)
        Commitment(configuration, Spool(tmp_path, 0), jobs, questions, threading.Event(), told.append).answer()
        assert questions.due(time.time()) == []
        assert [question.failures for question in questions.due(1e12)] == [1, 1, 1]
    assert [event.peer for event in told] == [Peer(CALLER), Peer("OTHER")]
    assert all("cannot be read" in event.message for event in told)


def test_many_ask_at_once(site: Site, files: list[Path]) -> None:
    port = free_port()
    _start(site, port)
    send(site.port, files)
    with _hearing(port) as reports:
        threads = [threading.Thread(target=_ask, args=(site, _uids(files), f"1.2.{number}")) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len({str(report.TransactionUID) for _, report in reports}) == 12)
    assert all(_told(report) == (_uids(files), []) for _, report in reports)


def test_what_was_delivered_is_deleted_in_time_unless_it_was_promised(site: Site, tmp_path: Path) -> None:
    port = free_port()
    site.start(callers=[{"ae_title": CALLER, "address": "127.0.0.1", "port": port}], keep_days=5.0 / 86400.0)
    promised, free = (write_series(tmp_path / name, np.zeros((2, 8, 8)), study=name) for name in ("promised", "free"))
    with _hearing(port) as reports:
        send(site.port, promised)
        assert _ask(site, _uids(promised)[:1]) == 0
        wait_until(lambda: bool(reports))
    send(site.port, free)
    wait_until(lambda: State.COMMITTED in site.states() and len(site.jobs()) == 1)
    (job,) = site.jobs()
    assert job.study == pydicom.dcmread(promised[0]).StudyInstanceUID
    folder = site.folder / "spool" / "studies"
    assert [path.name for path in folder.iterdir()] == [job.study]
    assert len(list((folder / job.study / "in").iterdir())) == 2
    assert sum("deleted: it was delivered" in line for line in site.lines) == 1
    assert len(site.pacs.objects) == 2
