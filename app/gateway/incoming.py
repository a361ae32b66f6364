"""The data set of a C-STORE request, on its way to the spool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pynetdicom.association import Association

from app.gateway.header import file_head, read_head
from app.gateway.spool import NOT_UNDERSTOOD, OUT_OF_RESOURCES, Arrival, Refused, checked_uid
from app.gateway.store_command import StoreRequest

SUCCESS = 0x0000
_OTHER_CLASS = 0x0122
"""Status: SOP class not supported (PS3.7, C.5.6)."""
_SOP_CLASS, _SOP_INSTANCE, _STUDY = 0x00080016, 0x00080018, 0x0020000D


class Keeper(Protocol):
    """Decides what is kept; raises :class:`~app.gateway.spool.Refused` where it is not."""

    def admit(self, association: Association, sop_class: str) -> Arrival:
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
    request : StoreRequest
    syntaxes : tuple of str
        Abstract and transfer syntax of its presentation context.
    """

    def __init__(
        self, keeper: Keeper, association: Association, request: StoreRequest, syntaxes: tuple[str, str]
    ) -> None:
        self._keeper = keeper
        self._association = association
        self._sop_class, self._instance = request.sop_class, request.instance
        abstract, self._syntax = syntaxes
        self._study = ""
        self._status = SUCCESS
        self._arrival: Arrival | None = None
        self._try(lambda: self._open(abstract))

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

    def _open(self, abstract: str) -> None:
        if self._sop_class != abstract:
            raise Refused(_OTHER_CLASS, "its class is not that of its presentation context")
        self._arrival = self._keeper.admit(self._association, abstract)
        self._arrival.write(file_head(self._sop_class, self._instance, self._syntax))

    def _append(self, arrival: Arrival, data: memoryview) -> None:
        if arrival.size + len(data) <= self._keeper.largest:
            arrival.write(data)
        else:
            self._refuse(Refused(OUT_OF_RESOURCES, "it is larger than the limit: hung up"))
            self._keeper.hang_up(self._association)

    def _keep(self, arrival: Arrival) -> None:
        self._study = self._study_of(arrival, checked_uid(self._instance))
        self._keeper.keep(self._association, arrival, self._sop_class, self._study, self._instance)

    def _study_of(self, arrival: Arrival, instance: str) -> str:
        """Return the Study Instance UID of a file, which is to be what the message says that it is."""
        try:
            header = read_head(arrival.path, self._syntax, [_SOP_CLASS, _SOP_INSTANCE, _STUDY])
            study, named = header.StudyInstanceUID, (header.SOPClassUID, header.SOPInstanceUID)
        except Exception as error:  # what damaged data make the parser raise is not foreseeable
            raise Refused(NOT_UNDERSTOOD, "it cannot be read") from error
        if named != (self._sop_class, instance):
            raise Refused(NOT_UNDERSTOOD, "its SOP Class or Instance UID is not that of the message")
        return checked_uid(study)

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
