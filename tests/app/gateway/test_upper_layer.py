"""What a peer may do with the items of P-DATA, and what is made without the library."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification

from app.gateway.header import file_head
from tests.app.gateway.peers import CALLER, TITLE, association_request
from tests.app.gateway.site import Site

ECHO, STORE = 1, 3
"""Numbers of the presentation contexts, as the library gives them."""
DATA, COMMAND, LAST = 0, 1, 2
ABORT = 0x07

_CONTEXTS = ((Verification, [ImplicitVRLittleEndian]), (CTImageStorage, [ExplicitVRLittleEndian]))

Item = tuple[int, int, bytes]
"""Presentation context, message control header and content of a presentation data value."""


def _request(instance: str) -> C_STORE:
    request = C_STORE()
    request.MessageID, request.Priority = 4711, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, instance
    return request


def _command(instance: str) -> bytes:
    request, message = _request(instance), C_STORE_RQ()
    request.DataSet = BytesIO(b"something")
    message.primitive_to_message(request)
    return bytes(next(iter(message.encode_msg(STORE, 1 << 14))).presentation_data_value_list[0][1][1:])


def _parts(file: Path) -> tuple[str, bytes, bytes]:
    """Return SOP Instance UID, command set and data set of a C-STORE request."""
    image = pydicom.dcmread(file)
    return str(image.SOPInstanceUID), _command(str(image.SOPInstanceUID)), _encoded(image)


def _encoded(dataset: pydicom.Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def _pdu(*items: Item) -> bytes:
    body = b"".join(
        struct.pack(">LBB", len(content) + 2, context, control) + content for context, control, content in items
    )
    return struct.pack(">BBL", 0x04, 0, len(body)) + body


@contextmanager
def _associated(site: Site) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", site.port), timeout=30.0) as connection:
        connection.sendall(association_request(CALLER, TITLE, _CONTEXTS))
        kind, _ = _read(connection)
        assert kind == 0x02  # A-ASSOCIATE-AC
        yield connection


def _read(connection: socket.socket) -> tuple[int, bytes]:
    """Return type and content of the next PDU."""
    kind, _, length = struct.unpack(">BBL", connection.recv(6, socket.MSG_WAITALL))
    return kind, connection.recv(length, socket.MSG_WAITALL)


def _status(connection: socket.socket) -> int:
    """Return the status of the next C-STORE response."""
    kind, content = _read(connection)
    assert kind == 0x04
    place = content.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int(struct.unpack("<H", content[place : place + 2])[0])


def _kept(site: Site) -> dict[str, bytes]:
    """Return the data sets in the spool, by instance."""
    files = (site.folder / "spool" / "studies").rglob("in/*.dcm")
    return {path.stem: _without_head(path.stem, path.read_bytes()) for path in files}


def _without_head(instance: str, file: bytes) -> bytes:
    return file.removeprefix(file_head(CTImageStorage, instance, ExplicitVRLittleEndian))


def _cut(content: bytes, places: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(places), len(content)]
    return [content[first:last] for first, last in pairwise(ends)]


def test_command_and_data_set_may_come_in_one_pdu(site: Site, files: list[Path]) -> None:
    site.start()
    instance, command, data = _parts(files[0])
    with _associated(site) as connection:
        connection.sendall(_pdu((STORE, COMMAND | LAST, command), (STORE, DATA | LAST, data)))
        assert _status(connection) == 0
    assert _kept(site) == {instance: data}


@pytest.mark.parametrize("seed", range(4))
def test_both_may_come_in_any_pieces(site: Site, files: list[Path], seed: int) -> None:
    site.start()
    rng, sent = np.random.default_rng(seed), {}
    with _associated(site) as connection:
        for file in files:
            instance, command, data = _parts(file)
            items: list[Item] = []
            for kind, content in ((COMMAND, command), (DATA, data)):
                pieces = _cut(content, [int(place) for place in rng.integers(len(content), size=9)])
                items += [(STORE, kind, piece) for piece in pieces[:-1]] + [(STORE, kind | LAST, pieces[-1])]
            while items:
                size = int(rng.integers(1, 6))
                connection.sendall(_pdu(*items[:size]))
                del items[:size]
            assert _status(connection) == 0
            sent[instance] = data
    assert _kept(site) == sent


def test_requests_that_do_not_wait_for_the_response_are_all_answered(site: Site, files: list[Path]) -> None:
    site.start()
    sent = [_parts(file) for file in files]
    with _associated(site) as connection:
        for _, command, data in sent:
            connection.sendall(_pdu((STORE, COMMAND | LAST, command), (STORE, DATA | LAST, data)))
        assert [_status(connection) for _ in sent] == [0, 0, 0]
    assert _kept(site) == {instance: data for instance, _, data in sent}


def _wrong_context(command: bytes, data: bytes) -> bytes:
    return _pdu((STORE, COMMAND | LAST, command), (ECHO, DATA | LAST, data))


def _rejected_context(command: bytes, data: bytes) -> bytes:
    return _pdu((99, COMMAND | LAST, command), (99, DATA | LAST, data))


def _command_within(command: bytes, data: bytes) -> bytes:
    return _pdu((STORE, COMMAND | LAST, command), (STORE, DATA, data[:50]), (STORE, COMMAND | LAST, command))


def _item_longer_than_its_pdu(command: bytes, data: bytes) -> bytes:
    whole = bytearray(_pdu((STORE, COMMAND | LAST, command)))
    whole[6:10] = struct.pack(">L", len(command) + 3)
    return bytes(whole)


def _item_without_header(command: bytes, data: bytes) -> bytes:
    return struct.pack(">BBLLBB", 0x04, 0, 6, 1, STORE, 3)


def _data_before_the_command(command: bytes, data: bytes) -> bytes:
    return _pdu((STORE, DATA, data[:50]), (STORE, COMMAND | LAST, command), (STORE, DATA | LAST, data))


def _data_within_the_command(command: bytes, data: bytes) -> bytes:
    halves = (STORE, COMMAND, command[:20]), (STORE, COMMAND | LAST, command[20:])
    return _pdu(halves[0], (STORE, DATA, data[:50]), halves[1], (STORE, DATA | LAST, data))


def _command_without_end(command: bytes, data: bytes) -> bytes:
    return _pdu(*[(STORE, COMMAND, bytes(60_000))] * 20)


def _command_that_is_none(command: bytes, data: bytes) -> bytes:
    return _pdu((STORE, COMMAND | LAST, b"\xff" * 50))


def _request_of_four_gigabytes(command: bytes, data: bytes) -> bytes:
    return struct.pack(">BBL", 0x01, 0, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "message",
    [
        _wrong_context,
        _rejected_context,
        _command_within,
        _data_before_the_command,
        _data_within_the_command,
        _item_longer_than_its_pdu,
        _item_without_header,
        _command_without_end,
        _command_that_is_none,
        _request_of_four_gigabytes,
    ],
)
def test_who_breaks_the_rules_is_aborted_and_nothing_is_kept(site: Site, files: list[Path], message: object) -> None:
    site.start()
    _, command, data = _parts(files[0])
    with _associated(site) as connection:
        connection.sendall(message(command, data))  # type: ignore[operator]
        kind, _ = _read(connection)
        assert kind == ABORT
    assert _kept(site) == {}
    instance, command, data = _parts(files[1])
    with _associated(site) as connection:  # the others are served
        connection.sendall(_pdu((STORE, COMMAND | LAST, command), (STORE, DATA | LAST, data)))
        assert _status(connection) == 0
    assert _kept(site) == {instance: data}


def test_a_scanner_that_vanishes_within_a_data_set_leaves_nothing(site: Site, files: list[Path]) -> None:
    site.start()
    _, command, data = _parts(files[0])
    with _associated(site) as connection:
        connection.sendall(_pdu((STORE, COMMAND | LAST, command), (STORE, DATA, data[:99])))
    site.stack.pop_all().close()  # waits for all associations
    assert not any((site.folder / "spool" / "arriving").iterdir())
