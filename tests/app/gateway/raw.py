"""A peer that speaks the upper layer protocol byte by byte, so that it can speak it wrongly."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from tests.app.gateway.peers import CALLER, TITLE, association_request

REQUEST, ACCEPTED, REJECTED, DATA, RELEASE, RELEASED, ABORT = range(1, 8)
"""Types of PDU (PS3.8, 9.3.1)."""
ECHO, REPORT, STORE = 1, 3, 5
"""Presentation contexts that :class:`RawPeer` asks for."""
COMMAND, LAST = 1, 2
"""Bits of the control header of a PDV (PS3.8, E.2)."""
NO_DATA, SOME_DATA = 0x0101, 0x0001


@dataclass
class Pdv:
    """A fragment of a message."""

    context: int
    control: int
    data: bytes

    def encoded(self) -> bytes:
        return struct.pack(">LBB", len(self.data) + 2, self.context, self.control) + self.data


@dataclass
class Message:
    """A command, and the data that go with it."""

    context: int
    command: Dataset
    data: bytes = b""

    def fragments(self, most: int = 1 << 14) -> list[Pdv]:
        command = encode(self.command, True, True)
        assert command is not None
        whole = struct.pack("<HHLL", 0, 0, 4, len(command)) + command
        return [*self._cut(whole, COMMAND, most), *(self._cut(self.data, 0, most) if self.data else [])]

    def _cut(self, data: bytes, control: int, most: int) -> list[Pdv]:
        pieces = [data[start : start + most] for start in range(0, len(data), most)]
        last = len(pieces) - 1
        return [Pdv(self.context, control | LAST * (number == last), piece) for number, piece in enumerate(pieces)]

    def encoded(self, most: int = 1 << 14) -> bytes:
        """Return it as P-DATA-TF PDUs."""
        return b"".join(pdu(DATA, each.encoded()) for each in self.fragments(most))


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content)) + content


def echo(number: int = 1) -> Message:
    return Message(ECHO, _command(Verification, 0x0030, number, NO_DATA))


def cancel(number: int) -> Message:
    """Cancel a request that there has never been."""
    command = Dataset()
    command.CommandField, command.MessageIDBeingRespondedTo, command.CommandDataSetType = 0x0FFF, number, NO_DATA
    return Message(ECHO, command)


def store(study: str, instance: str, number: int = 1, pixels: int = 8) -> Message:
    command = _command(CTImageStorage, 0x0001, number, SOME_DATA)
    command.Priority, command.AffectedSOPInstanceUID = 0, instance
    return Message(STORE, command, image(study, instance, pixels))


def report(number: int = 1, items: int = 0) -> Message:
    """Say that so many objects of an unknown transaction are kept."""
    command = _command(StorageCommitmentPushModel, 0x0100, number, SOME_DATA)
    command.AffectedSOPInstanceUID, command.EventTypeID = StorageCommitmentPushModelInstance, 1
    told = Dataset()
    told.TransactionUID, told.ReferencedSOPSequence = "1.2.3", [_reference(each) for each in range(items)]
    data = encode(told, True, True)
    assert data is not None
    return Message(REPORT, command, data)


def _reference(number: int) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
    return item


def _command(sop_class: str, field: int, number: int, data: int) -> Dataset:
    command = Dataset()
    command.AffectedSOPClassUID, command.CommandField = sop_class, field
    command.MessageID, command.CommandDataSetType = number, data
    return command


def image(study: str, instance: str, pixels: int = 8) -> bytes:
    """Return an image as its data set is sent, in Explicit VR Little Endian."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, instance
    made.Modality, made.PatientID = "CT", "4711"
    made.StudyInstanceUID, made.SeriesInstanceUID = study, f"{study}.1"
    made.Rows = made.Columns = pixels
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.PixelData = np.arange(pixels * pixels, dtype=np.int16).tobytes()
    data = encode(made, False, True)
    assert data is not None
    return data


def data_set(file: bytes) -> bytes:
    """Return what follows the file meta group, whose length is its first value."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


@cache
def association_request_bytes() -> bytes:
    contexts = [
        (Verification, [ImplicitVRLittleEndian]),
        (StorageCommitmentPushModel, [ImplicitVRLittleEndian]),
        (CTImageStorage, [ExplicitVRLittleEndian]),
    ]
    return association_request(CALLER, TITLE, contexts)


class RawPeer:
    """A connection to the gateway.

    Parameters
    ----------
    port : int
    window : int, optional
        Bytes that it lets the gateway send before it reads.
    address : str
        Where it calls from.
    """

    def __init__(self, port: int, window: int | None = None, address: str = "127.0.0.1") -> None:
        self.connection = socket.socket()
        self.connection.bind((address, 0))
        if window is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.connection.settimeout(300.0)
        self.connection.connect(("127.0.0.1", port))
        self._heard = BytesIO()

    def negotiate(self) -> bool:
        """Ask for an association; say whether it was granted."""
        self.send(association_request_bytes())
        return next(self.pdus(), (0, b""))[0] == ACCEPTED

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # it has hung up
            self.connection.sendall(data)

    def pdus(self) -> Iterator[tuple[int, bytes]]:
        """Return what it says, until it hangs up or, where a timeout is set, says nothing for so long."""
        with suppress(OSError):
            while header := self._exactly(6):
                kind, _, length = struct.unpack(">BBL", header)
                yield kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size and (more := self.connection.recv(size - len(heard))):
            heard += more
        return heard if len(heard) == size else b""

    def answer(self) -> Dataset | None:
        """Return the next answer to a message; None if there is none."""
        for kind, content in self.pdus():
            if kind != DATA:
                return None
            return decode(BytesIO(content[6:]), True, True)
        return None

    def hung_up(self) -> bool:
        """Say whether the gateway has ended the connection; what it has said is thrown away."""
        self.connection.setblocking(False)
        try:
            while self.connection.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def vanish(self) -> None:
        """End without a farewell: with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def close(self) -> None:
        self.connection.close()
