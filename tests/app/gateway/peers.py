"""A PACS and a scanner on loopback, as pynetdicom makes them; a real Orthanc is in ``tests/pacs``."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from app.gateway.tls import shake_hands

CALLER, PACS_TITLE, TITLE = "SCANNER", "PACS", "COVIDCT"
_PATIENCE = 300.0


@dataclass
class Pacs:
    """What a PACS has, and how it behaves.

    Parameters
    ----------
    port : int
        Where it listens.
    objects : dict
        What it has stored, by SOP Instance UID.
    received : list
        SOP Instance UIDs, each time one is stored.
    status : int
        Answer to C-STORE.
    loses : int
        So many times it says of everything that it does not keep it.
    silent : int
        So many questions about commitment are never answered.
    seconds : float
        That it takes to answer the others.
    """

    port: int = 0
    objects: dict[str, Dataset] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    status: int = 0x0000
    loses: int = 0
    silent: int = 0
    seconds: float = 0.0
    report_to: int = 0
    calls_with: ssl.SSLContext | None = None

    def store(self, event: Any) -> int:
        if self.status == 0x0000:
            dataset = event.dataset
            self.objects[dataset.SOPInstanceUID] = dataset
            self.received.append(dataset.SOPInstanceUID)
        return self.status

    def asked(self, event: Any) -> tuple[int, None]:
        question = event.action_information
        if self.silent:
            self.silent -= 1
        else:
            threading.Thread(target=self._answer, args=(question,)).start()
        return 0x0000, None

    def _answer(self, question: Dataset) -> None:
        """Report in an association of its own, as most PACS do."""
        time.sleep(self.seconds)
        known = [item for item in question.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.objects]
        unknown = [item for item in question.ReferencedSOPSequence if item not in known]
        if self.loses:
            self.loses -= 1
            known, unknown = [], known + unknown
        report = Dataset()
        report.TransactionUID = question.TransactionUID
        report.ReferencedSOPSequence, report.FailedSOPSequence = known, unknown
        for item in unknown:
            item.FailureReason = 0x0112
        entity = AE(PACS_TITLE)
        entity.add_requested_context(StorageCommitmentPushModel)
        role = [_scp_role()]
        tls = self.calls_with and (self.calls_with, "127.0.0.1")
        association = entity.associate("127.0.0.1", self.report_to, ae_title=TITLE, ext_neg=role, tls_args=tls)
        if not association.is_established:  # the gateway has ended meanwhile, and will ask again
            return
        kind = 2 if unknown else 1
        association.send_n_event_report(report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        association.release()


def _scp_role() -> Any:
    return build_role(StorageCommitmentPushModel, scp_role=True)


def _shake_hands(event: Any) -> None:
    shake_hands(event.assoc.dul.socket.socket)


def association_request(
    title: str, called: str, contexts: Sequence[tuple[str, list[str]]] = ((Verification, [ImplicitVRLittleEndian]),)
) -> bytes:
    """Return the bytes by which a scanner asks for an association, for classes and their transfer syntaxes."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = threading.Thread(target=lambda: heard.append(_first_bytes(server)))
        listener.start()
        entity = AE(title)
        entity.acse_timeout = 0.5
        roles = []
        for sop_class, syntaxes in contexts:
            entity.add_requested_context(sop_class, syntaxes)
            roles += [_scp_role()] * (sop_class == StorageCommitmentPushModel)
        entity.associate("127.0.0.1", server.getsockname()[1], ae_title=called, ext_neg=roles)
        listener.join()
    return heard[0]


def _first_bytes(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    with connection:
        return connection.recv(1 << 16)


def free_port() -> int:
    """Return a port of loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(pacs: Pacs, tls: ssl.SSLContext | None = None) -> Iterator[Pacs]:
    """Run a PACS, on the port that it had before or a free one."""
    entity = AE(PACS_TITLE)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax)
    entity.add_supported_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_C_STORE, pacs.store), (evt.EVT_N_ACTION, pacs.asked), (evt.EVT_CONN_OPEN, _shake_hands)]
    server = entity.start_server(("127.0.0.1", pacs.port), block=False, evt_handlers=handlers, ssl_context=tls)
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()


@contextmanager
def sending(
    port: int,
    files: Sequence[Path] = (),
    title: str = CALLER,
    called: str = TITLE,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Any]:
    """Open an association to the gateway for what the files are."""
    entity = AE(title)
    entity.add_requested_context(Verification)
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title=called, tls_args=tls and (tls, "127.0.0.1"))
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(port: int, files: Sequence[Path], title: str = CALLER) -> list[int]:
    """Send files in one association; return the status of each."""
    with sending(port, files[:1], title) as association:
        assert association.is_established
        return [association.send_c_store(pydicom.dcmread(file)).Status for file in files]


def accepts(port: int, file: Path) -> bool:
    """Send a file; say whether it was accepted, which it is not where the association has been cut."""
    with sending(port, [file]) as association:
        if not association.is_established:
            return False
        try:
            return bool(association.send_c_store(pydicom.dcmread(file)).get("Status") == 0)
        except RuntimeError:  # cut since
            return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what must come to be, for five minutes at most: slow machines are not wrong."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.03)
