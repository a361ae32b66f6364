"""The data set of a C-STORE request, on its way to the spool."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from app.gateway.header import read_head
from app.gateway.spool import NOT_UNDERSTOOD, OUT_OF_RESOURCES, Arrival, Refused, checked_uid
from app.gateway.upper_layer import uid_value
from operators.identity import IMPLEMENTATION_UID

SUCCESS = 0x0000
_OTHER_CLASS = 0x0122
"""Status: SOP class not supported (PS3.7, C.5.6)."""
_SOP_CLASS, _SOP_INSTANCE, _STUDY = 0x00080016, 0x00080018, 0x0020000D


class Keeper(Protocol):
    """Decides what is kept; raises :class:`~app.gateway.spool.Refused` where it is not."""

    def admit(self, association: Association) -> Arrival:
        """Return where an instance that an association sends goes."""

    @property
    def largest(self) -> int:
        """Bytes that an instance may have."""

    def hang_up(self, association: Association) -> None:
        """Cut the connection."""

    def keep(self, association: Association, arrival: Arrival, sop_class: str, study: str, instance: str) -> None:
        """Keep an instance that is complete."""

    def complain(self, association: Association, message: str, study: str, sop_class: str) -> None:
        """Tell that an instance was not kept; the study may be unknown."""


class Incoming:
    """A data set that arrives: a :class:`~app.gateway.upper_layer.Sink`.

    Where one step fails the rest is passed over, and the sender is told in the end.

    Parameters
    ----------
    keeper : Keeper
    association : Association
        That sends it.
    request : C_STORE
    syntaxes : tuple of str
        Abstract and transfer syntax of its presentation context.
    """

    def __init__(self, keeper: Keeper, association: Association, request: C_STORE, syntaxes: tuple[str, str]) -> None:
        self._keeper = keeper
        self._association = association
        self._sop_class, self._instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        self._study = ""
        self._status = SUCCESS
        self._arrival: Arrival | None = None
        self._try(lambda: self._open(*syntaxes))

    def write(self, data: memoryview) -> None:
        """Take the next bytes."""
        if (arrival := self._arrival) is not None:
            self._try(lambda: self._append(arrival, data))

    def end(self) -> int:
        """Keep it; return the status of the response."""
        if (arrival := self._arrival) is not None:
            self._try(lambda: self._keep(arrival))
        self.abandon()
        return self._status

    def abandon(self) -> None:
        """Forget what has come."""
        if self._arrival is not None:
            self._arrival.close()
            self._arrival = None

    def _open(self, abstract: str, syntax: str) -> None:
        if self._sop_class != abstract:
            raise Refused(_OTHER_CLASS, "its class is not that of its presentation context")
        self._arrival = self._keeper.admit(self._association)
        self._arrival.write(file_head(self._sop_class, self._instance, syntax))

    def _append(self, arrival: Arrival, data: memoryview) -> None:
        if arrival.size + len(data) <= self._keeper.largest:
            arrival.write(data)
        else:
            self._refuse(Refused(OUT_OF_RESOURCES, "it is larger than the limit: hung up"))
            self._keeper.hang_up(self._association)

    def _keep(self, arrival: Arrival) -> None:
        self._study = _study(arrival, self._sop_class, checked_uid(self._instance))
        self._keeper.keep(self._association, arrival, self._sop_class, self._study, self._instance)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Refused as refusal:
            self._refuse(refusal)
        except Exception as error:  # whatever it was: it is not on the disk, and the sender must know
            self._refuse(Refused(OUT_OF_RESOURCES, type(error).__name__))

    def _refuse(self, refusal: Refused) -> None:
        self.abandon()
        self._status = refusal.status
        self._keeper.complain(self._association, f"an instance was not kept: {refusal}", self._study, self._sop_class)


def file_head(sop_class: str, instance: str, syntax: str) -> bytes:
    """Return what precedes the data set in a file: preamble, prefix and file meta information (PS3.10, 7.1)."""
    uids = ((0x0002, sop_class), (0x0003, instance), (0x0010, syntax), (0x0012, IMPLEMENTATION_UID))
    elements = struct.pack("<HH2sHL2s", 2, 1, b"OB", 0, 2, b"\0\1") + b"".join(_uid(*each) for each in uids)
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements


def _uid(element: int, uid: str) -> bytes:
    value = uid_value(uid)
    return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value


def _study(arrival: Arrival, sop_class: str, instance: str) -> str:
    """Return the Study Instance UID of a DICOM file, which is to be of the given SOP class and instance."""
    try:
        header = read_head(arrival.path, [_SOP_CLASS, _SOP_INSTANCE, _STUDY])
        study, same = header.StudyInstanceUID, (header.SOPClassUID, header.SOPInstanceUID) == (sop_class, instance)
    except Exception as error:  # what damaged data make the parser raise is not foreseeable
        raise Refused(NOT_UNDERSTOOD, "it cannot be read") from error
    if not same:
        raise Refused(NOT_UNDERSTOOD, "its SOP Class or Instance UID is not that of the message")
    return checked_uid(study)
