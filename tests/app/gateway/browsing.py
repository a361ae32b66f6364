"""A gateway looked at over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Seen:
    """What a server has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def look(port: int, path: str, method: str = "GET", **headers: str) -> Seen:
    """Ask a server on loopback."""
    connection = HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Seen(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()
