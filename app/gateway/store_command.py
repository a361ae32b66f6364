"""Command sets of C-STORE (PS3.7, 9.3.1), in implicit VR little endian.

The library makes a data set of each, which takes as long as everything else that an instance takes but its way to the
disk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from app.gateway.header import uid_value

_ELEMENT = struct.Struct("<HHL")
_SOP_CLASS, _FIELD, _MESSAGE, _ANSWERED, _DATA_SET, _STATUS, _INSTANCE = (
    0x0002, 0x0100, 0x0110, 0x0120, 0x0800, 0x0900, 0x1000,
)  # fmt: skip
"""Elements of group 0000 (PS3.7, table E.1-1)."""
_REQUEST, _RESPONSE = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_LONGEST_UID = 64


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a C-STORE request says of the instance that follows.

    Parameters
    ----------
    sop_class, instance : str
        Affected SOP Class and SOP Instance UID, unchecked.
    message : int
        Message ID.
    """

    sop_class: str
    instance: str
    message: int


def store_request(command: bytes) -> StoreRequest | None:
    """Return the request that a command set is, or None if it is no C-STORE request with a data set.

    Raises
    ------
    ValueError
        If it is one, but something is missing or damaged.
    """
    values = _values(command)
    if values.get(_FIELD) != _short(_REQUEST) or values.get(_DATA_SET) in (None, _short(_NO_DATA_SET)):
        return None
    if not {_SOP_CLASS, _INSTANCE} <= values.keys() or len(values.get(_MESSAGE, b"")) != 2:
        raise ValueError("an element is missing")
    return StoreRequest(_text(values[_SOP_CLASS]), _text(values[_INSTANCE]), int.from_bytes(values[_MESSAGE], "little"))


def store_response(request: StoreRequest, status: int) -> bytes:
    """Return the command set of a C-STORE response (PS3.7, table 9.3-2)."""
    elements = (
        (_SOP_CLASS, uid_value(request.sop_class)),
        (_FIELD, _short(_RESPONSE)),
        (_ANSWERED, _short(request.message)),
        (_DATA_SET, _short(_NO_DATA_SET)),
        (_STATUS, _short(status)),
        (_INSTANCE, uid_value(request.instance)),
    )
    encoded = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(encoded)) + encoded


def _values(command: bytes) -> dict[int, bytes]:
    """Return the elements of a command set; of what is none, anything."""
    values, place = {}, 0
    while place + _ELEMENT.size <= len(command):
        group, element, length = _ELEMENT.unpack_from(command, place)
        place += _ELEMENT.size + length
        if group == 0:
            values[element] = command[place - length : place]
    return values


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _text(value: bytes) -> str:
    if len(value) > _LONGEST_UID:
        raise ValueError("a UID is too long")
    return value.decode("ascii").rstrip("\0 ")
