"""C-STORE of results, and the request for their storage commitment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from app.gateway.configuration import DicomDestination, Tls
from app.gateway.incoming import SUCCESS
from app.gateway.jobs import Delivery
from app.gateway.receiver import PLAIN, reported
from app.gateway.scu import call, reference_to, status_of, why_not
from app.gateway.sender import Failure, Report
from app.gateway.spool import DUPLICATE

_REQUEST_COMMITMENT = 1
"""Action type (PS3.4, table J.3.2-1)."""
_STORED = (SUCCESS, DUPLICATE)
"""Of what it has already, storage commitment tells whether it keeps it."""
_WARNINGS = range(0xB000, 0xC000)
"""Stored, but not as it was (PS3.4, table B.2-1)."""


class DicomSender:
    """Brings results to destinations by C-STORE: a :class:`~app.gateway.sender.Sender`.

    Parameters
    ----------
    ae_title : str
        What the gateway is called.
    tls : Tls, optional
        For destinations with TLS.
    report : callable
        Told what a destination says about commitment while the association that asked is open.
    """

    def __init__(self, ae_title: str, tls: Tls | None, report: Report) -> None:
        self._ae_title = ae_title
        self._tls = tls
        self._report = report

    def store(
        self,
        destination: DicomDestination,
        objects: Sequence[tuple[Delivery, Path]],
        stored: Callable[[Delivery], None],
    ) -> list[Failure]:
        """Send objects in one association."""
        files = [(delivery, pydicom.dcmread(path)) for delivery, path in objects]
        own = {(str(file.SOPClassUID), str(file.file_meta.TransferSyntaxUID)) for _, file in files}
        contexts = sorted(own | {(sop_class, ExplicitVRLittleEndian) for sop_class, _ in own})
        association = self._call(destination, contexts)
        if not association.is_established:
            return [Failure(why_not(destination, association), reachable=False)]
        failures = []
        try:
            for delivery, file in files:
                failure = _store(association, file)
                if failure is None:
                    stored(delivery)
                else:
                    failures.append(Failure(f"{destination.name}: {delivery.path}: {failure}"))
        finally:
            association.release()
        return failures

    def ask_commitment(
        self, destination: DicomDestination, objects: Sequence[Delivery], asked: Callable[[str], threading.Event]
    ) -> Failure | None:
        """Ask for storage commitment (PS3.4, annex J).

        The answer comes later: in this association for a moment, or in one that the destination opens.
        """

        def hear(event: Any) -> tuple[int, None]:
            self._report(*reported(event))
            return 0x0000, None

        contexts = [(StorageCommitmentPushModel, syntax) for syntax in PLAIN]
        association = self._call(destination, contexts, [(evt.EVT_N_EVENT_REPORT, hear)])
        if not association.is_established:
            return Failure(why_not(destination, association), reachable=False)
        question = Dataset()
        question.TransactionUID = generate_uid()
        question.ReferencedSOPSequence = [reference_to(each.sop_class, each.sop_instance) for each in objects]
        answered = asked(str(question.TransactionUID))
        try:
            status, _ = association.send_n_action(
                question, _REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            if "Status" not in status or status.Status != 0x0000:
                return Failure(f"{destination.name}: no storage commitment: {status_of(status)}")
            answered.wait(1.0)
        except RuntimeError:
            return Failure(f"{destination.name}: the association has ended")
        except ValueError:
            return Failure(f"{destination.name}: it offers no storage commitment; set commitment: false")
        finally:
            association.release()
        return None

    def _call(
        self, destination: DicomDestination, contexts: Sequence[tuple[str, str]], handlers: Sequence[Any] = ()
    ) -> Association:
        return call(self._ae_title, destination, self._tls, contexts, handlers)


def _store(association: Association, file: Dataset) -> str | None:
    """Send an object; return why it was not stored."""
    try:
        if not _takes(association, file):
            _make_plain(file)
        status = association.send_c_store(file)
    except ValueError:
        return "the destination does not take such objects"
    except RuntimeError:
        return "the association has ended"
    if "Status" in status and (status.Status in _STORED or status.Status in _WARNINGS):
        return None
    return status_of(status)


def _takes(association: Association, file: Dataset) -> bool:
    """Say whether the peer takes an object in the transfer syntax that it is in."""
    wanted = file.SOPClassUID, file.file_meta.TransferSyntaxUID
    return any((each.abstract_syntax, each.transfer_syntax[0]) == wanted for each in association.accepted_contexts)


def _make_plain(file: Dataset) -> None:
    """Turn an object into the transfer syntax that every peer must take; lossless as ours are, nothing changes."""
    if file.file_meta.TransferSyntaxUID.is_encapsulated:
        file.decompress(generate_instance_uid=False)
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
