"""The side of the gateway that listens: C-ECHO, C-STORE of CT images, and reports of storage commitment."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from app.gateway.configuration import DicomNode, GatewayConfiguration
from app.gateway.events import Event, Kind, Peer, Tell
from app.gateway.incoming import SUCCESS, Incoming
from app.gateway.jobs import Jobs
from app.gateway.ports import not_had
from app.gateway.sender import Report
from app.gateway.spool import NOT_UNDERSTOOD, OUT_OF_RESOURCES, Arrival, Refused, Spool
from app.gateway.store_command import StoreRequest
from app.gateway.tls import for_server, shake_hands
from app.gateway.upper_layer import Sink, StreamingEntity, cut
from operators.ct_pixels import READABLE_SYNTAXES
from operators.dicom_folder import MULTI_FRAME_CT

ACCEPTED_CLASSES = (CTImageStorage, *MULTI_FRAME_CT)
ACCEPTED_SYNTAXES = [each for each in READABLE_SYNTAXES if each != DeflatedExplicitVRLittleEndian]
"""A few deflated bytes may become more than fit into memory."""
PLAIN = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
MAX_PDU = 1 << 20
"""Bytes of a PDU that senders may use: larger ones cost less time."""
SILENCE = 60.0
"""Seconds after which a peer that says nothing, or takes nothing, is hung up on."""
_BACKLOG = 128
"""Connections that may wait to be looked at. The library has five wait; the others would try again after a second."""

NOT_AUTHORIZED = 0x0124
"""Status (PS3.7, C.5.25)."""
_UNLIMITED = 1 << 16
_TOO_MANY = (0x02, 0x03, 0x02)
"""Result, source and reason of a rejection for now: local limit exceeded (PS3.8, table 9-21)."""
_CALLER_UNKNOWN = (0x01, 0x01, 0x03)
"""Result, source and reason of a rejection for good: calling AE title not recognised (PS3.8, table 9-21)."""


class Receiver:
    """Listens, and keeps what comes. What it has acknowledged is on the disk and in the job table.

    Parameters
    ----------
    configuration : GatewayConfiguration
    spool : Spool
    jobs : Jobs
    report : callable
        Told what destinations say about commitment.
    asked : callable
        Takes the N-ACTION of a caller that asks for commitment, and returns its status.
    tell : callable
        Receives what happens.
    """

    def __init__(
        self,
        configuration: GatewayConfiguration,
        spool: Spool,
        jobs: Jobs,
        report: Report,
        asked: Callable[[Any], tuple[int, None]],
        tell: Tell,
    ) -> None:
        self._configuration = configuration
        self._spool = spool
        self._jobs = jobs
        self._report = report
        self._asked = asked
        self._tell = tell
        self._lock = threading.Lock()
        self._arriving: dict[Any, dict[str, Counter[str]]] = {}
        self._repeating: dict[Any, set[str]] = {}
        self._entity = self._made_entity()
        self._server: Any = None

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises
        ------
        UsageError
            If the port cannot be had.
        RunFailed
            If it cannot be had now: another process has it, or its address is not there.
        """
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._prepare),
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_N_EVENT_REPORT, self._event),
            (evt.EVT_N_ACTION, self._asked),
        ]
        tls = None if self._configuration.tls is None else for_server(self._configuration.tls)
        where = (self._configuration.host, self._configuration.port)
        try:
            self._server = self._entity.start_server(where, block=False, evt_handlers=handlers, ssl_context=tls)
        except OSError as error:
            raise not_had(f"{where[0]}, port {where[1]}", error) from error
        self._server.socket.listen(_BACKLOG)

    def stop(self) -> None:
        """Listen no more, and end all associations."""
        if self._server is not None:
            self._server.shutdown()
            open_ones = self._server.active_associations
            established = [each for each in open_ones if each.is_established]
            for association in established:
                association.abort()
            for association in open_ones:
                cut(association)  # the others have nothing to lose; some wait for a peer that has never spoken
            for association in established:
                association.join(SILENCE)
                association.dul.join(SILENCE)

    @property
    def listening(self) -> bool:
        """Whether it listens."""
        return self._server is not None and self._server.socket.fileno() >= 0

    @property
    def associations(self) -> int:
        """How many associations are open."""
        return 0 if self._server is None else len(self._server.active_associations)

    def arriving(self) -> set[str]:
        """Return the studies of which an open association has sent something; note the end of the others."""
        with self._lock:
            for association in [each for each in self._arriving if not _working(each)]:
                for study, instances in self._arriving[association].items():
                    self._jobs.received(study, time.time(), self._configuration.quiet_seconds)
                    if instances:  # not one may have been kept
                        peer, message = _peer(association), f"received {instances.total()} instances"
                        self._tell(Event(Kind.RECEIVED, message, study, peer, instances))
                del self._arriving[association]
            self._repeating = {each: studies for each, studies in self._repeating.items() if _working(each)}
            return set().union(*self._arriving.values(), *self._repeating.values())

    def _made_entity(self) -> AE:
        entity = StreamingEntity(self._configuration.ae_title, self._incoming, self.complain)
        entity.maximum_associations = _UNLIMITED  # it counts connections; see _admit
        entity.maximum_pdu_size = MAX_PDU
        entity.network_timeout = entity.dimse_timeout = SILENCE
        entity.acse_timeout = SILENCE / 2
        entity.require_called_aet = True
        callers = {caller.ae_title for caller in self._configuration.callers}
        entity.require_calling_aet = sorted(callers | self._reporters())
        entity.add_supported_context(Verification, PLAIN)
        entity.add_supported_context(StorageCommitmentPushModel, PLAIN, scu_role=True, scp_role=True)
        for sop_class in ACCEPTED_CLASSES:
            entity.add_supported_context(sop_class, ACCEPTED_SYNTAXES)
        return entity

    def _prepare(self, event: Any) -> None:
        """Say who cannot do TLS as it must. Who hangs up at once, as monitors do, is no stranger that wants in."""
        failure = prepare(event)
        if isinstance(failure, ssl.SSLError) and not isinstance(failure, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self.complain(event.assoc, "it speaks no TLS, or shows no certificate by the authorities: hung up")

    def _admit(self, event: Any) -> None:
        """Reject those who call from elsewhere than they should, and whoever is too many."""
        requestor = event.assoc.requestor
        asking = [each for each in self._server.active_associations if each.requestor.primitive is not None]
        if len(asking) > self._configuration.limits.associations:
            self.complain(event.assoc, "an association was rejected for now: there are too many")
            event.assoc.acse.send_reject(*_TOO_MANY)
            event.assoc.kill()
            return
        title = requestor.primitive.calling_ae_title.strip()
        mine = [caller for caller in self._configuration.callers if caller.ae_title == title]
        address = ip_address(requestor.address)
        address = getattr(address, "ipv4_mapped", None) or address  # where both kinds come in by one socket
        if mine and not any(caller.address in (None, address) for caller in mine):
            self._rejected(event)
            event.assoc.acse.send_reject(*_CALLER_UNKNOWN)
            event.assoc.kill()

    def _rejected(self, event: Any) -> None:
        self.complain(event.assoc, "an association was rejected: who may call, from where, and whom, is configured")

    def complain(self, association: Any, message: str, study: str = "", sop_class: str = "") -> None:
        """Tell that somebody was not let in or, with a SOP Class UID, that an instance was not kept."""
        peer = _peer(association)
        told = f"{peer.name or 'somebody'} at {peer.address}: {message}"
        self._tell(Event(Kind.REJECTED, told, study, peer, {sop_class: 1} if sop_class else {}))

    def _incoming(self, association: Association, request: StoreRequest, syntaxes: tuple[str, str]) -> Sink:
        return Incoming(self, association, request, syntaxes)

    def admit(self, association: Association, sop_class: str) -> Arrival:
        """Return where an instance that an association sends goes.

        Raises
        ------
        Refused
            If it may not send, or nothing can be kept now.
        """
        if _peer(association).name not in {caller.ae_title for caller in self._configuration.callers}:
            raise Refused(NOT_UNDERSTOOD, "it may not send images")
        if sop_class not in ACCEPTED_CLASSES:
            raise Refused(NOT_UNDERSTOOD, "its presentation context is not for images")
        return self._spool.begin()

    @property
    def largest(self) -> int:
        """Bytes that an instance may have."""
        return self._configuration.limits.instance_bytes

    def hang_up(self, association: Association) -> None:
        """Cut the connection."""
        cut(association)

    def keep(self, association: Association, arrival: Arrival, sop_class: str, study: str, instance: str) -> None:
        """Keep an instance that is complete.

        Raises
        ------
        Refused
            If it cannot be kept.
        """
        if self._spool.holds(study, instance, arrival) and self._jobs.knows(study):
            with self._lock:
                self._repeating.setdefault(association, set()).add(study)
            return
        self._begin(association, study)
        self._spool.keep(study, instance, arrival)
        with self._lock:
            kept = self._arriving[association][study]
            kept[sop_class] += 1
        if kept.total() == 1:  # not before: the audit trail reads whose it is
            caller = _peer(association)
            self._tell(Event(Kind.ARRIVING, f"arriving from {caller.name}", study, caller))

    def _begin(self, association: Association, study: str) -> None:
        """Note in the job table that an association sends a study, when its first new instance comes.

        Deliveries end by that, so there must be room. A study is not to begin with the rest of what was there and has
        been deleted since: what came again before is not kept any more.
        """
        with self._lock:
            known = self._arriving.setdefault(association, {})
            if study not in known:
                self._spool.check_room()
                again = study in self._repeating.get(association, ())
                if not self._jobs.receive(study, _peer(association).name, time.time(), again=again):
                    raise Refused(OUT_OF_RESOURCES, "its study is being deleted, or has been: send all of it again")
                known[study] = Counter()

    def _event(self, event: Any) -> tuple[int, None]:
        """Take the report of a destination on storage commitment (PS3.4, J.3.3); of nobody else it is looked at."""
        if _peer(event.assoc).name not in self._reporters():
            return NOT_AUTHORIZED, None
        self._report(*reported(event))
        return SUCCESS, None

    def _reporters(self) -> set[str]:
        return {each.ae_title for each in self._configuration.destinations if isinstance(each, DicomNode)}


def reported(event: Any) -> tuple[str, list[str], list[str]]:
    """Return transaction, committed and not committed SOP Instance UIDs of a report on storage commitment."""
    report = event.event_information
    kept, lost = (
        [str(item.ReferencedSOPInstanceUID) for item in report.get(keyword) or []]
        for keyword in ("ReferencedSOPSequence", "FailedSOPSequence")
    )
    return str(report.TransactionUID), kept, lost


def prepare(event: Any) -> OSError | None:
    """Make a new connection answer at once, and end where the peer stalls, in the middle of a message, too.

    Returns why the connection was cut, if it was.

    With Nagle's algorithm each C-STORE costs 40 ms more against some peers. The timeouts of the library are looked at
    between messages alone.
    """
    connection = event.assoc.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(SILENCE)
    try:
        shake_hands(connection)
    except OSError as error:
        cut(event.assoc)
        return error
    return None


def _peer(association: Any) -> Peer:
    """Return who has called. What strangers call themselves may be anything, and goes to logs."""
    requestor = association.requestor
    title = requestor.primitive.calling_ae_title if requestor.primitive else ""
    return Peer("".join(each for each in title if each.isprintable()).strip(), str(requestor.address or ""))


def _working(association: Any) -> bool:
    """Say whether something of an association may still come, or is just being kept."""
    return bool(association.is_alive() or association.dul.is_alive())
