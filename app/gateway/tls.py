"""TLS of the gateway: both sides show certificates (DICOM PS3.15, B.9 and after it BCP 195: TLS 1.2 at least)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from app.gateway.configuration import Tls
from app.outcome import UsageError


class _Patient(ssl.SSLContext):
    """Of a server whose connections shake hands later, each in its own thread: a peer that stalls holds up no other."""

    def wrap_socket(self, *arguments: Any, **keywords: Any) -> ssl.SSLSocket:
        """Wrap a socket, without a handshake."""
        return super().wrap_socket(*arguments, **keywords | {"do_handshake_on_connect": False})


def for_server(tls: Tls) -> ssl.SSLContext:
    """Return what a server needs; :func:`shake_hands` must be called for each connection.

    Raises
    ------
    UsageError
        If a file cannot be read or is none of its kind.
    """
    return _loaded(_Patient(ssl.PROTOCOL_TLS_SERVER), tls)


def for_client(tls: Tls) -> ssl.SSLContext:
    """Return what a client needs; errors as for :func:`for_server`."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def shake_hands(connection: Any) -> None:
    """Do the handshake of a server's connection, where it has TLS.

    Raises
    ------
    OSError
        If the peer shows no certificate that an authority has signed, or stalls.
    """
    if isinstance(connection, ssl.SSLSocket) and connection.server_side:
        connection.do_handshake()


def _loaded(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_none_asked)
        context.load_verify_locations(tls.authorities)
    except OSError as error:  # TLS errors are such, too
        files = ", ".join(map(str, _files(tls)))
        raise UsageError(f"tls: {files}: cannot be read, or are no certificate, key and authorities in PEM") from error
    return context


def _none_asked() -> str:
    """Answer the question for the password of a key: a service has nobody to ask."""
    return ""


def _files(tls: Tls) -> tuple[Path, Path, Path]:
    return tls.certificate, tls.key, tls.authorities
