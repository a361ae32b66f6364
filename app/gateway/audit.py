"""The audit trail: what happens in a gateway as DICOM audit messages (PS3.15, A.5), each a line of syslog (RFC 5424).

Only here are patients named, by their Patient ID: that is what the messages are for. Logs and events never do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from app.gateway.events import Event, Kind, Peer, Tell, as_date
from app.gateway.header import read_head, stored_as
from app.gateway.spool import Spool, sync_folder

AUDIT_LOG = "audit.log"
"""Name of the audit trail in the spool."""
_PROGRAM = "covid-ct"
_PRIORITY = 10 * 8 + 5
"""Facility security/authorization, severity "normal but significant" (PS3.15, A.6)."""
_MESSAGE_ID = "DICOM+RFC3881"
"""Of syslog lines with such messages (PS3.15, A.6)."""
_BYTE_ORDER_MARK = "\ufeff"
"""Says that what follows is UTF-8 (RFC 5424, 6.4)."""


class Code(NamedTuple):
    """A code, its scheme and what it means."""

    value: str
    scheme: str
    meaning: str


_ACTIVITY = Code("110100", "DCM", "Application Activity")
_BEGIN = Code("110102", "DCM", "Begin Transferring DICOM Instances")
_ACCESSED = Code("110103", "DCM", "DICOM Instances Accessed")
_TRANSFERRED = Code("110104", "DCM", "DICOM Instances Transferred")
_DELETED = Code("110105", "DCM", "DICOM Study Deleted")
_ALERT = Code("110113", "DCM", "Security Alert")

_START = Code("110120", "DCM", "Application Start")
_STOP = Code("110121", "DCM", "Application Stop")
_NODE_AUTHENTICATION = Code("110126", "DCM", "Node Authentication")
_RESTRICTED_FUNCTION = Code("110132", "DCM", "Use of Restricted Function")

_APPLICATION = Code("110150", "DCM", "Application")
_DESTINATION = Code("110152", "DCM", "Destination Role ID")
_SOURCE = Code("110153", "DCM", "Source Role ID")

_STUDY_UID = Code("110180", "DCM", "Study Instance UID")
_NODE_ID = Code("110182", "DCM", "Node ID")
_PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")

_SUCCESS, _FAILURE = "0", "4"
"""Event outcome indicators; the latter is "minor": the system goes on, and is as safe as before."""
_SERVER_PROCESS = "4"
"""Audit source type code of an application server process (PS3.15, A.5.1.2.1)."""
_PATIENT_ID = 0x00100020
_LONGEST_ID = 64
"""Characters of a Patient ID (LO; PS3.5, 6.2); more, from who knows whom, would only make lines that get cut."""
_MACHINE_NAME, _IP_ADDRESS = "1", "2"


@dataclass(frozen=True, slots=True)
class _Form:
    """What the audit message of a kind of event states.

    ``event``, ``action``, ``type`` and ``outcome`` identify the event, ``gateway`` and ``peer`` are the roles of the
    two, ``requestor`` says which of them has initiated it.
    """

    event: Code
    action: Literal["C", "R", "D", "E"]
    gateway: Code | None = None
    peer: Code | None = None
    requestor: Literal["gateway", "peer", "unknown"] = "gateway"
    type: Code | None = None
    outcome: str = _SUCCESS

    @property
    def of_study(self) -> bool:
        """It is about a study, and so about a patient."""
        return self.event not in (_ACTIVITY, _ALERT)


_STARTED = _Form(_ACTIVITY, "E", _APPLICATION, requestor="unknown", type=_START)
_REJECTED = _Form(_ALERT, "E", requestor="unknown", type=_NODE_AUTHENTICATION, outcome=_FAILURE)
_RECEIVED = _Form(_TRANSFERRED, "C", _DESTINATION, _SOURCE, "peer")
_STORED = _Form(_TRANSFERRED, "R", _SOURCE, _DESTINATION)
_RAN = _Form(_ACCESSED, "R")
_FORMS: Mapping[Kind, _Form] = {
    Kind.STARTED: _STARTED,
    Kind.STOPPED: replace(_STARTED, type=_STOP),
    Kind.REJECTED: _REJECTED,
    Kind.ARRIVING: replace(_RECEIVED, event=_BEGIN, action="E"),
    Kind.RECEIVED: _RECEIVED,
    Kind.FETCHED: _Form(_BEGIN, "E", _DESTINATION, _SOURCE),
    Kind.RAN: _RAN,
    Kind.REFUSED: _RAN,
    Kind.FAILED: replace(_RAN, outcome=_FAILURE),
    Kind.RETRIED: _RAN,
    Kind.STORED: _STORED,
    Kind.UNSENT: replace(_STORED, outcome=_FAILURE),
    Kind.DROPPED: _Form(_DELETED, "D"),
}
_NOT_KEPT = replace(_RECEIVED, outcome=_FAILURE)
_NOT_ITS_BUSINESS = replace(_REJECTED, type=_RESTRICTED_FUNCTION)


def _form(event: Event) -> _Form | None:
    if event.kind is Kind.REJECTED and event.instances:  # its sender was let in
        return _NOT_KEPT if event.study else _NOT_ITS_BUSINESS
    return _FORMS.get(event.kind)


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who tells the audit trail.

    Parameters
    ----------
    ae_title : str
        Of the gateway.
    person : str
        At the command line, as :func:`person` returns it; nobody by default.
    host : str
        Name of this machine.
    process : int
        The identifier of this process.
    """

    ae_title: str
    person: str = ""
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)


def person() -> str:
    """Return who runs this process, as login name and machine (PS3.15, A.5.2.1)."""
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:  # as in containers
        name = str(user)
    return f"{name}@{socket.gethostname()}"


def audit_message(event: Event, now: float, reporter: Reporter, patient: str = "") -> Element | None:
    """Return the audit message of an event (PS3.15, A.5.1), or None for what is none of the audit trail's business.

    The messages are Application Activity (A.5.3.1), Begin Transferring DICOM Instances (A.5.3.3), DICOM Instances
    Accessed (A.5.3.6) and Transferred (A.5.3.7), DICOM Study Deleted (A.5.3.8) and Security Alert (A.5.3.11).

    Parameters
    ----------
    event : Event
    now : float
        When it happened, in seconds since 1970.
    reporter : Reporter
    patient : str
        Patient ID; empty where it is not known, as in DICOM (type 2).
    """
    form = _form(event)
    if form is None:
        return None
    message = Element("AuditMessage")
    _identify(message, event, form, now)
    _add_participants(message, event, form, reporter)
    source = _add(message, "AuditSourceIdentification", AuditSourceID=reporter.ae_title)
    _add(source, "AuditSourceTypeCode", **{"csd-code": _SERVER_PROCESS})
    if form.of_study:
        _add_study(message, event)
        _add_object(message, "1", "1", _PATIENT_NUMBER, patient, "")
    elif form.event == _ALERT and event.peer is not None:
        _add_node(message, event.peer, event.message)
    return message


def _identify(message: Element, event: Event, form: _Form, now: float) -> None:
    identification = _add(
        message,
        "EventIdentification",
        EventActionCode=form.action,
        EventDateTime=as_date(now),
        EventOutcomeIndicator=form.outcome,
    )
    _add_code(identification, "EventID", form.event)
    if form.type is not None:
        _add_code(identification, "EventTypeCode", form.type)
    if form.outcome != _SUCCESS:
        _add(identification, "EventOutcomeDescription").text = _printable(event.message)


def _add_participants(message: Element, event: Event, form: _Form, reporter: Reporter) -> None:
    """Add the gateway, the peer and the person; one of them at most is the requestor (PS3.15, table A.5.2-1)."""
    gateway = {"UserID": str(reporter.process), "UserName": _PROGRAM, **_place(reporter.host)}
    gateway["AlternativeUserID"] = f"AETITLES={reporter.ae_title}"
    _add_participant(message, gateway, form.gateway, form.requestor == "gateway" and not reporter.person)
    if form.peer is not None or event.peer is not None:
        peer = event.peer or Peer("")
        who = {"UserID": peer.name or peer.address, **_place(peer.address)}
        _add_participant(message, who, form.peer, form.requestor == "peer" and not reporter.person)
    if reporter.person:
        _add_participant(message, {"UserID": reporter.person, **_place(reporter.host)}, None, requestor=True)


def _add_participant(message: Element, who: Mapping[str, str], role: Code | None, requestor: bool) -> None:
    participant = _add(message, "ActiveParticipant", **who, UserIsRequestor="true" if requestor else "false")
    if role is not None:
        _add_code(participant, "RoleIDCode", role)


def _place(address: str) -> dict[str, str]:
    """Return the attributes of a network access point; none where there is no address."""
    if not address:
        return {}
    try:
        ip_address(address)
    except ValueError:
        return {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": _MACHINE_NAME}
    return {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": _IP_ADDRESS}


def _add_study(message: Element, event: Event) -> None:
    study = _add_object(message, "2", "3", _STUDY_UID, event.study, event.study)
    if event.instances:
        description = _add(study, "ParticipantObjectDescription")
        for sop_class, number in sorted(event.instances.items()):
            _add(description, "SOPClass", UID=sop_class, NumberOfInstances=str(number))


def _add_node(message: Element, peer: Peer, alert: str) -> None:
    """Add the subject of an alert, with the description that it must have."""
    node = _add_object(message, "2", "13", _NODE_ID, peer.address, peer.name)
    _add(
        node, "ParticipantObjectDetail", type="Alert Description", value=b64encode(_printable(alert).encode()).decode()
    )


def _add_object(message: Element, kind: str, role: str, id_type: Code, identifier: str, name: str) -> Element:
    """Add a participant object. The schema wants a name for each; a patient's stays empty: it is not told."""
    added = _add(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=identifier,
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _add_code(added, "ParticipantObjectIDTypeCode", id_type)
    _add(added, "ParticipantObjectName").text = _printable(name)
    return added


def _add_code(parent: Element, name: str, code: Code) -> None:
    _add(parent, name, **{"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning})


def _add(parent: Element, name: str, **attributes: str) -> Element:
    return SubElement(parent, name, {key: _printable(value) for key, value in attributes.items()})


def _printable(text: str) -> str:
    """Replace what neither XML nor a line can hold: strangers choose their own names."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def names_patient(event: Event) -> bool:
    """Say whether the audit message of an event has a Patient ID."""
    form = _form(event)
    return form is not None and form.of_study


def patient_id(folder: Path) -> str:
    """Return the Patient ID of the first instance in a folder, empty where there is none or it cannot be read."""
    try:
        first = min(folder.glob("*.dcm"))
        _, syntax = stored_as(first)
        return str(read_head(first, syntax, [_PATIENT_ID]).get("PatientID") or "")[:_LONGEST_ID]
    except Exception:  # it is just being deleted, or what damaged data make the parser raise, which is not foreseeable
        return ""


def syslog_line(message: Element, now: float, reporter: Reporter) -> str:
    """Return an audit message as a line of syslog, without its end (RFC 5424, 6; PS3.15, A.6)."""
    header = f"<{_PRIORITY}>1 {as_date(now)} {reporter.host or '-'} {_PROGRAM} {reporter.process} {_MESSAGE_ID} -"
    return f"{header} {_BYTE_ORDER_MARK}{tostring(message, encoding='unicode')}"


class AuditTrail:
    """Writes audit messages to a file, a line each, from any thread. When it returns, the line is on the disk.

    What cannot be written stops nothing; that it is so, and how much is missing, is told.

    Parameters
    ----------
    path : Path
        Made where absent, readable by its owner alone. It may be moved away at any time: the next line makes it anew.
    reporter : Reporter
    spool : Spool
        Has the instances that state the Patient ID.
    tell : callable
        Told when the file cannot be written, and when it can be again.
    """

    def __init__(self, path: Path, reporter: Reporter, spool: Spool, tell: Tell) -> None:
        self._path = path
        self._reporter = reporter
        self._spool = spool
        self._tell = tell
        self._lock = threading.Lock()
        self._missing = 0

    def __call__(self, event: Event) -> None:
        """Write the audit message of an event, if there is one."""
        now = time.time()
        patient = patient_id(self._spool.incoming(event.study)) if event.study and names_patient(event) else ""
        message = audit_message(event, now, self._reporter, patient)
        if message is not None:
            trouble = self._write(syslog_line(message, now, self._reporter))
            if trouble:
                self._tell(Event(Kind.ERROR, trouble))

    def _write(self, line: str) -> str:
        """Write a line; return what there is to be told about an outage that begins or ends."""
        with self._lock:
            missing = self._missing
            try:
                _append(self._path, f"{line}\n".encode())
            except OSError as error:
                self._missing += 1
                return "" if missing else f"error: the audit trail cannot be written: {error.strerror}"
            self._missing = 0
            return f"the audit trail can be written again; it lacks {missing} messages" if missing else ""


def _append(path: Path, line: bytes) -> None:
    """Add a line to a file, for good: whole, or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # commands of people write, too, each in its own process
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, line) < len(line):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
        if size == 0:
            _settle(descriptor, path.parent)
    finally:
        os.close(descriptor)


def _settle(descriptor: int, folder: Path) -> None:
    """Let a new file outlive a crash, and belong to whom the gateway runs as: who comes first may be root."""
    owner = folder.stat()
    if os.geteuid() == 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    sync_folder(folder)
