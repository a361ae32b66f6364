"""Command sets that are made and read without the library, beside those of the library."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE

from app.gateway.store_command import StoreRequest, store_request, store_response

_UIDS = ["1.2.3", "1.2.34", "2.25." + "7" * 39]


def _encoded(message: Any, primitive: Any) -> bytes:
    """Return a command set as the library encodes it."""
    message.primitive_to_message(primitive)
    return bytes(next(iter(message.encode_msg(1, 1 << 14))).presentation_data_value_list[0][1][1:])


def _request(uid: str = "1.2.3", data: bytes | None = b"something") -> bytes:
    request = C_STORE()
    request.MessageID, request.Priority = 4711, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, uid
    request.DataSet = None if data is None else BytesIO(data)
    return _encoded(C_STORE_RQ(), request)


@pytest.mark.parametrize("uid", _UIDS)
def test_a_request_of_the_library_is_read(uid: str) -> None:
    assert store_request(_request(uid)) == StoreRequest(CTImageStorage, uid, 4711)


@pytest.mark.parametrize("uid", _UIDS)
@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xC000])
def test_the_response_is_what_the_library_makes(uid: str, status: int) -> None:
    response = C_STORE()
    response.MessageIDBeingRespondedTo, response.Status = 4711, status
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = CTImageStorage, uid
    made = store_response(StoreRequest(CTImageStorage, uid, 4711), status)
    assert made == _encoded(C_STORE_RSP(), response)


def test_what_is_no_request_with_a_data_set_is_left_to_the_library() -> None:
    echo = C_ECHO()
    echo.MessageID, echo.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
    response = store_response(StoreRequest(CTImageStorage, "1.2.3", 1), 0)
    for command in (_encoded(C_ECHO_RQ(), echo), response, _request(data=None), b"", b"\xff" * 50):
        assert store_request(command) is None


@pytest.mark.parametrize("element", [0x0002, 0x0110, 0x1000])
def test_a_request_without_something_is_refused(element: int) -> None:
    with pytest.raises(ValueError, match="missing"):
        store_request(_without(_request(), element))


def test_a_uid_that_is_no_text_is_refused() -> None:
    command = _request("1.2.3").replace(b"1.2.3\0", b"1.2.\xff\0")
    with pytest.raises(ValueError, match="ascii"):
        store_request(command)


def test_a_uid_that_is_too_long_is_refused() -> None:
    command = _request("1.2.3").replace(struct.pack("<L", 6) + b"1.2.3\0", struct.pack("<L", 66) + b"1.2.3" + b"4" * 61)
    with pytest.raises(ValueError, match="long"):
        store_request(command)


@pytest.mark.parametrize("element", [0x0002, 0x0100, 0x0800, 0x1000])
def test_elements_of_other_groups_say_nothing(element: int) -> None:
    more = _request() + struct.pack("<HHL", 9, element, 6) + b"1.2.9\0"
    assert store_request(more) == store_request(_request())


def test_whatever_is_cut_off_is_a_request_of_less_or_refused() -> None:
    whole = _request()
    for end in range(len(whole)):
        try:
            request = store_request(whole[:end])
        except ValueError:
            continue
        assert request is None or (request.sop_class, request.message) == (CTImageStorage, 4711)


def _without(command: bytes, absent: int) -> bytes:
    kept, place = b"", 0
    while place < len(command):
        element, length = struct.unpack_from("<2xHL", command, place)
        kept += b"" if element == absent else command[place : place + 8 + length]
        place += 8 + length
    return kept
