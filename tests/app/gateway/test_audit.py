"""The audit trail: each message against the standard, each line whole, and what a round through the gateway leaves."""

from __future__ import annotations

import fcntl
import os
import re
import ssl
import stat
import subprocess
import threading
from base64 import b64decode
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from app.cli import main
from app.gateway import receiver
from app.gateway.audit import AUDIT_LOG, AuditTrail, Reporter, audit_message, patient_id, person, syslog_line
from app.gateway.events import Event, Kind, Peer
from app.gateway.jobs import Jobs, State
from app.gateway.receiver import Receiver
from app.gateway.service import TABLE
from app.gateway.spool import Spool
from app.outcome import ExitStatus
from tests.app.gateway import stand_ins
from tests.app.gateway.audit_schema import DESTINATION, SOURCE, check, code, roles
from tests.app.gateway.peers import CALLER, free_port, send, sending, wait_until
from tests.app.gateway.site import Site
from tests.app.gateway.spooled import keep
from tests.builders import write_series

STUDY, PATIENT, NAME = "1.2.3", "4711-A", "Doe^Jane"
REPORTER = Reporter("COVIDCT", host="gateway", process=42)
BY_PERSON = Reporter("COVIDCT", "jane@gateway", host="gateway", process=43)
NOW = 1.7e9
LINE = re.compile(
    r"<85>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d) (?P<host>\S+) covid-ct (?P<process>\d+)"
    r" DICOM\+RFC3881 - \ufeff(?P<message><AuditMessage>.*</AuditMessage>)"
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A study of three images of a patient who has a name."""
    return write_series(tmp_path / "ct", np.zeros((3, 8, 8)), study="1", PatientID=PATIENT, PatientName=NAME)


@pytest.fixture
def spool(tmp_path: Path, files: list[Path]) -> Spool:
    spool = Spool(tmp_path / "spool", 0)
    for file in files:
        keep(spool, STUDY, str(pydicom.dcmread(file).SOPInstanceUID), file.read_bytes())
    return spool


def parsed(line: str) -> Element:
    found = LINE.fullmatch(line)
    assert found, line
    return ElementTree.fromstring(found["message"])  # noqa: S314 - our own


def messages(path: Path) -> list[Element]:
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)  # not while somebody writes
        text = stream.read().decode()
    assert text.endswith("\n")
    read = [parsed(line) for line in text[:-1].split("\n")]
    for message in read:
        check(message)
    return read


def named(event: Event, reporter: Reporter = REPORTER, patient: str = PATIENT) -> Element:
    message = audit_message(event, NOW, reporter, patient)
    assert message is not None
    return parsed(syslog_line(message, NOW, reporter))


def event_of(message: Element) -> str:
    return message[0][0].attrib["csd-code"]


def outcome(message: Element) -> str:
    return message[0].attrib["EventOutcomeIndicator"]


def objects(message: Element) -> list[str]:
    return [each.attrib["ParticipantObjectID"] for each in message.iter("ParticipantObjectIdentification")]


def participants(message: Element) -> list[dict[str, str]]:
    return [dict(each.attrib) for each in message.iter("ActiveParticipant")]


SCANNER, PACS = Peer("SCANNER", "192.0.2.1"), Peer("pacs", "pacs.example")
CTS = {str(CTImageStorage): 3}
KINDS = [
    (Event(Kind.STARTED, "listening"), "110100", "E", "0", "110120"),
    (Event(Kind.STOPPED, "stopped"), "110100", "E", "0", "110121"),
    (Event(Kind.REJECTED, "who?", peer=SCANNER), "110113", "E", "4", "110126"),
    (Event(Kind.REJECTED, "it may not", peer=SCANNER, instances=CTS), "110113", "E", "4", "110132"),
    (Event(Kind.REJECTED, "full", STUDY, SCANNER, CTS), "110104", "C", "4", None),
    (Event(Kind.ARRIVING, "arriving", STUDY, SCANNER), "110102", "E", "0", None),
    (Event(Kind.RECEIVED, "received", STUDY, SCANNER, CTS), "110104", "C", "0", None),
    (Event(Kind.FETCHED, "asked for", STUDY, PACS), "110102", "E", "0", None),
    (Event(Kind.RAN, "ran", STUDY), "110103", "R", "0", None),
    (Event(Kind.REFUSED, "refused", STUDY), "110103", "R", "0", None),
    (Event(Kind.FAILED, "failed", STUDY), "110103", "R", "4", None),
    (Event(Kind.RETRIED, "again", STUDY), "110103", "R", "0", None),
    (Event(Kind.STORED, "took", STUDY, PACS, CTS), "110104", "R", "0", None),
    (Event(Kind.UNSENT, "down", STUDY, PACS), "110104", "R", "4", None),
    (Event(Kind.DROPPED, "dropped", STUDY), "110105", "D", "0", None),
]
OTHERS = {Kind.COMPLETE, Kind.PROGRESS, Kind.DELIVERED, Kind.COMMITTED, Kind.ERROR}


def test_every_kind_is_tested() -> None:
    assert {event.kind for event, *_ in KINDS} | OTHERS == set(Kind)
    assert not {event.kind for event, *_ in KINDS} & OTHERS


@pytest.mark.parametrize("reporter", [REPORTER, BY_PERSON])
@pytest.mark.parametrize(("event", "identifier", "action", "result", "type_code"), KINDS)
def test_what_happens_is_told_as_the_standard_says(
    event: Event, identifier: str, action: str, result: str, type_code: str | None, reporter: Reporter
) -> None:
    message = named(event, reporter)
    check(message)
    assert event_of(message) == identifier
    assert (message[0].attrib["EventActionCode"], outcome(message)) == (action, result)
    assert [each.attrib["csd-code"] for each in message.iter("EventTypeCode")] == ([type_code] if type_code else [])
    assert [each.text for each in message.iter("EventOutcomeDescription")] == ([event.message] if result == "4" else [])
    (source,) = message.iter("AuditSourceIdentification")
    assert source.attrib["AuditSourceID"] == "COVIDCT"
    assert (PATIENT in ElementTree.tostring(message, "unicode")) == bool(event.study)


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_the_others_are_not_told(kind: Kind) -> None:
    assert audit_message(Event(kind, "something", STUDY), NOW, REPORTER, PATIENT) is None


def test_who_sent_what_to_whom() -> None:
    gateway = {"UserID": "42", "UserName": "covid-ct", "AlternativeUserID": "AETITLES=COVIDCT"}
    gateway |= {"NetworkAccessPointID": "gateway", "NetworkAccessPointTypeCode": "1"}
    scanner = {"UserID": "SCANNER", "NetworkAccessPointID": "192.0.2.1", "NetworkAccessPointTypeCode": "2"}
    pacs = {"UserID": "pacs", "NetworkAccessPointID": "pacs.example", "NetworkAccessPointTypeCode": "1"}
    by = {"true": {"UserIsRequestor": "true"}, "false": {"UserIsRequestor": "false"}}
    counts = {str(CTImageStorage): 3, str(SecondaryCaptureImageStorage): 1}

    received = named(Event(Kind.RECEIVED, "received", STUDY, SCANNER, counts))
    assert participants(received) == [gateway | by["false"], scanner | by["true"]]
    assert [each[0].attrib["csd-code"] for each in received.iter("ActiveParticipant")] == [DESTINATION, SOURCE]
    assert objects(received) == [STUDY, PATIENT]
    assert {each.attrib["UID"]: int(each.attrib["NumberOfInstances"]) for each in received.iter("SOPClass")} == counts

    stored = named(Event(Kind.STORED, "took", STUDY, PACS, counts))
    assert participants(stored) == [gateway | by["true"], pacs | by["false"]]
    assert [each[0].attrib["csd-code"] for each in stored.iter("ActiveParticipant")] == [SOURCE, DESTINATION]

    fetched = named(Event(Kind.FETCHED, "asked for", STUDY, PACS))
    assert participants(fetched) == [gateway | by["true"], pacs | by["false"]]
    assert [each[0].attrib["csd-code"] for each in fetched.iter("ActiveParticipant")] == [DESTINATION, SOURCE]

    dropped = named(Event(Kind.DROPPED, "dropped", STUDY), BY_PERSON)
    jane = {"UserID": "jane@gateway", "NetworkAccessPointID": "gateway", "NetworkAccessPointTypeCode": "1"}
    assert participants(dropped) == [gateway | {"UserID": "43"} | by["false"], jane | by["true"]]

    rejected = named(Event(Kind.REJECTED, "who?", peer=Peer("", "2001:db8::1")))
    stranger = {"UserID": "2001:db8::1", "NetworkAccessPointID": "2001:db8::1", "NetworkAccessPointTypeCode": "2"}
    assert participants(rejected) == [gateway | by["false"], stranger | by["false"]]
    assert objects(rejected) == ["2001:db8::1"]
    (detail,) = rejected.iter("ParticipantObjectDetail")
    assert b64decode(detail.attrib["value"]) == b"who?"


HOSTILE = [
    "<script>&amp;\"'",
    "]]>--><!--",
    "a\nb\r\nc\td",
    "\x00\x01\x1b[2J\x7f\x85",
    "\u2028\u2029\ufffe\uffff\ud800",
    "Größe 漢字",
    "",
    "x" * 300,
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", sorted(set(Kind) - OTHERS))
def test_nothing_that_a_stranger_says_breaks_a_line(kind: Kind, text: str) -> None:
    for study, instances in ((text, {text: 1}), ("", {})):
        event = Event(kind, text or "-", study, Peer(text, text), instances)
        message = audit_message(event, NOW, Reporter(text, text), text)
        assert message is not None
        line = syslog_line(message, NOW, REPORTER)
        assert len(line.splitlines()) == 1
        assert line.encode().decode() == line
        read = parsed(line)
        check(read)
        shown = "".join(each if each.isprintable() else "\ufffd" for each in text)
        assert shown in {each["UserID"] for each in participants(read)}


def test_only_the_id_of_a_patient_is_read(spool: Spool, tmp_path: Path) -> None:
    assert patient_id(spool.incoming(STUDY)) == PATIENT
    assert patient_id(spool.incoming("1.2.4")) == ""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "1.dcm").write_bytes(b"no DICOM")
    assert patient_id(damaged) == ""
    with pytest.warns(UserWarning, match="exceeds the maximum length"):
        (endless,) = write_series(tmp_path / "endless", np.zeros((1, 8, 8)), PatientID="7" * 60_000)
    assert patient_id(endless.parent) == "7" * 64
    (without,) = write_series(tmp_path / "without", np.zeros((1, 8, 8)), PatientID=None)
    assert patient_id(without.parent) == ""


def _trail(path: Path, spool: Spool, told: list[Event]) -> AuditTrail:
    return AuditTrail(path, REPORTER, spool, told.append)


def test_a_line_is_for_its_owner_alone_and_has_the_patients_id(spool: Spool, tmp_path: Path) -> None:
    path, told = tmp_path / AUDIT_LOG, list[Event]()
    before = os.umask(0)
    try:
        _trail(path, spool, told)(Event(Kind.DROPPED, "dropped", STUDY))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (message,) = messages(path)
    assert objects(message) == [STUDY, PATIENT]
    assert told == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which only root can")
def test_what_root_begins_belongs_to_whom_the_spool_belongs(spool: Spool, tmp_path: Path) -> None:
    folder, told = tmp_path / "given", list[Event]()
    folder.mkdir()
    os.chown(folder, 1234, 5678)
    _trail(folder / AUDIT_LOG, spool, told)(Event(Kind.STARTED, "listening"))
    found = (folder / AUDIT_LOG).stat()
    assert (found.st_uid, found.st_gid) == (1234, 5678)


def test_a_trail_that_is_moved_away_is_begun_anew(spool: Spool, tmp_path: Path) -> None:
    path, told = tmp_path / AUDIT_LOG, list[Event]()
    trail = _trail(path, spool, told)
    trail(Event(Kind.STARTED, "listening"))
    trail(Event(Kind.PROGRESS, "half of it", STUDY))
    path.rename(tmp_path / "audit.log.1")
    trail(Event(Kind.DROPPED, "dropped", STUDY))
    trail(Event(Kind.STOPPED, "stopped"))
    assert [event_of(each) for each in messages(tmp_path / "audit.log.1")] == ["110100"]
    assert [event_of(each) for each in messages(path)] == ["110105", "110100"]
    assert told == []


def test_many_threads_and_processes_write_whole_lines(spool: Spool, tmp_path: Path) -> None:
    path, told = tmp_path / AUDIT_LOG, list[Event]()
    trails = [_trail(path, spool, told) for _ in range(2)]  # as of two processes: they share nothing but the file
    instances = {f"1.2.{number}": number for number in range(200)}
    start = threading.Barrier(12)

    def write(number: int) -> None:
        start.wait()
        for turn in range(8):
            trails[number % 2](Event(Kind.RECEIVED, "received", STUDY, Peer(f"{number}-{turn}", ""), instances))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    senders = [participants(message)[1]["UserID"] for message in messages(path)]
    assert sorted(senders) == sorted(f"{number}-{turn}" for number in range(12) for turn in range(8))
    assert told == []


def test_an_outage_is_told_once_and_stops_nothing(spool: Spool, tmp_path: Path) -> None:
    path, told = tmp_path / AUDIT_LOG, list[Event]()
    trail = _trail(path, spool, told)
    path.symlink_to("/dev/full")
    for _ in range(3):
        trail(Event(Kind.STARTED, "listening"))
    assert [event.kind for event in told] == [Kind.ERROR]
    assert told[0].message == "error: the audit trail cannot be written: No space left on device"
    path.unlink()
    for _ in range(2):
        trail(Event(Kind.STOPPED, "stopped"))
    assert [event.message for event in told[1:]] == ["the audit trail can be written again; it lacks 3 messages"]
    assert [event_of(each) for each in messages(path)] == ["110100"] * 2
    path.unlink()
    path.mkdir()
    trail(Event(Kind.STARTED, "listening"))
    assert len(told) == 3


def test_no_half_line_stays_where_the_disk_is_full(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / AUDIT_LOG, list[Event]()
    trail = _trail(path, spool, told)
    trail(Event(Kind.STARTED, "listening"))
    whole = path.read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:100]))
        trail(Event(Kind.STOPPED, "stopped"))
    assert path.read_bytes() == whole
    assert len(told) == 1


def test_a_round_leaves_who_did_what_and_whose_it_was(site: Site, files: list[Path]) -> None:
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    site.stack.close()
    path = site.folder / "spool" / AUDIT_LOG
    read = messages(path)
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    assert event_of(read[0]) == event_of(read[-1]) == "110100"
    assert [code(message[0][1])[2] for message in (read[0], read[-1])] == ["Application Start", "Application Stop"]
    begun, received, ran, stored = read[1:-1]
    assert [event_of(each) for each in (begun, received, ran, stored)] == ["110102", "110104", "110103", "110104"]
    for message in (begun, received, ran, stored):
        assert objects(message) == [study, PATIENT]
        assert outcome(message) == "0"
    for message in (begun, received):
        scanner = participants(message)[1]
        assert (scanner["UserID"], scanner["NetworkAccessPointID"]) == (CALLER, "127.0.0.1")
    assert [dict(each.attrib) for each in received.iter("SOPClass")] == [
        {"UID": str(CTImageStorage), "NumberOfInstances": "3"}
    ]
    assert participants(stored)[1]["UserID"] == "pacs"
    assert roles(stored) == [DESTINATION, SOURCE]
    everything = path.read_text("utf-8")
    assert "Doe" not in everything
    assert len(everything) < 20_000  # nothing like an image
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert any(study in line for line in site.lines)
    assert not any(PATIENT in line or "Doe" in line for line in site.lines)


def _audited(site: Site, identifier: str) -> list[Element]:
    return [each for each in messages(site.folder / "spool" / AUDIT_LOG) if event_of(each) == identifier]


def test_who_is_not_let_in_and_what_is_not_kept(site: Site, files: list[Path]) -> None:
    elsewhere = {"ae_title": "ELSEWHERE", "address": "192.0.2.1"}
    site.start(limits={"free_disk_mb": 10**9}, callers=[{"ae_title": CALLER}, elsewhere])
    for title in ("<STRANGER>", "ELSEWHERE"):
        with sending(site.port, files, title) as association:
            assert association.is_rejected
    assert send(site.port, files) == [0xA700] * 3
    refused = _audited(site, "110104")
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    assert [(outcome(each), *objects(each)) for each in refused] == [("4", study, "")] * 3
    site.stack.close()  # all that has arrived is told of by now
    assert len(_audited(site, "110104")) == 3
    assert not _audited(site, "110102")
    assert [participants(alert)[1]["UserID"] for alert in _audited(site, "110113")] == ["<STRANGER>", "ELSEWHERE"]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (None, False),
        (TimeoutError("the handshake"), False),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), False),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), True),
        (ssl.SSLError(1, "wrong version number"), True),
    ],
)
def test_a_stranger_by_tls_is_told_and_a_monitor_is_not(
    failure: OSError | None, told: bool, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    configuration = Site.configured(_Nowhere(tmp_path), callers=[{"ae_title": CALLER}])  # type: ignore[arg-type]
    with closing(Jobs(tmp_path / TABLE)) as jobs:
        listener = Receiver(configuration, spool, jobs, lambda *_: None, lambda _: (0, None), events.append)
        monkeypatch.setattr(receiver, "prepare", lambda _: failure)
        listener._prepare(_Connection())
    assert [event.kind for event in events] == ([Kind.REJECTED] if told else [])


class _Nowhere:
    """What a :class:`Site` needs to be configured."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.pacs = folder, 104, self


class _Connection:
    """Of somebody who has not asked for an association yet."""

    primitive, address = None, "192.0.2.1"

    def __init__(self) -> None:
        self.assoc = self.requestor = self


def test_each_destination_that_takes_nothing_is_told(site: Site, files: list[Path]) -> None:
    nowhere = [
        {"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": free_port(), "commitment": False}
        for name in ("first", "second")
    ]
    site.start(destinations=nowhere)
    send(site.port, files)
    wait_until(lambda: len(_failed(site)) == 2)
    assert _failed(site) == {"first", "second"}


def _failed(site: Site) -> set[str]:
    return {participants(each)[1]["UserID"] for each in _audited(site, "110104") if outcome(each) == "4"}


def _command(action: str, folder: Path, study: str, **stated: Any) -> int:
    configuration = folder / "gateway.yaml"
    callers, destinations = [{"ae_title": CALLER}], [{"name": "pacs", "ae_title": "P", "host": "p", "port": 104}]
    configuration.write_text(
        yaml.safe_dump({"spool": "spool", "callers": callers, "destinations": destinations, **stated}), "utf-8"
    )
    return int(main(["gateway", action, study, "-c", str(configuration)]))


def test_what_a_person_does_is_told_with_the_persons_name(
    site: Site, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    site.start(stand_ins.refusing)
    send(site.port, files)
    wait_until(lambda: site.states() == [State.REFUSED])
    site.stack.close()
    study = site.jobs()[0].study
    assert _command("retry", site.folder, study) == ExitStatus.OK
    assert _command("drop", site.folder, study) == ExitStatus.OK
    retried, dropped = messages(site.folder / "spool" / AUDIT_LOG)[-2:]
    assert (event_of(retried), event_of(dropped)) == ("110103", "110105")
    for message in (retried, dropped):
        assert objects(message) == [study, PATIENT]
        assert [each["UserID"] for each in participants(message)] == [str(os.getpid()), person()]
        assert participants(message)[1]["UserIsRequestor"] == "true"
    assert person().split("@")[0] in {subprocess.check_output(["id", "-un"], text=True).strip(), str(os.getuid())}
    assert capsys.readouterr().err == ""
    assert _command("drop", site.folder, study) == ExitStatus.USAGE
    assert len(_audited(site, "110105")) == 1


def test_a_deletion_that_was_begun_is_told_when_it_is_ended(site: Site, spool: Spool) -> None:
    with closing(Jobs(site.folder / "spool" / TABLE)) as jobs:
        jobs.recover([STUDY], 0.0, 0.0)
        jobs.settle(0.0, [])
        assert jobs.drop(STUDY, 0.0)
    site.start()
    (dropped,) = _audited(site, "110105")
    assert objects(dropped) == [STUDY, PATIENT]
    assert not spool.incoming(STUDY).exists()
