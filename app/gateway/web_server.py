"""The side of the gateway that people and monitoring look at, as a server."""

from __future__ import annotations

import socket
import threading
from typing import Any
from wsgiref.types import WSGIApplication

from waitress import create_server, wasyncore

from app.gateway.configuration import Web
from app.gateway.ports import not_had

_BOUNDS = {"threads": 4, "connection_limit": 64, "max_request_header_size": 1 << 14, "max_request_body_size": 1 << 10}
"""Whoever watches has no need for more."""

_PATIENCE = 30.0
"""Seconds after which the server looks for connections that do nothing."""


class WebServer:
    """Serves an application, in threads of its own.

    Parameters
    ----------
    where : Web
    application : WSGI application
    """

    def __init__(self, where: Web, application: WSGIApplication) -> None:
        self._where = where
        self._application = application
        self._sockets: dict[int, Any] = {}
        self._server: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises
        ------
        UsageError
            If the port cannot be had.
        RunFailed
            If it cannot be had now: another process has it, or its address is not there.
        """
        host, port = str(self._where.host), self._where.port
        family = socket.AF_INET6 if self._where.host.version == 6 else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise not_had(f"{host}, port {port}, for the web", error) from error
        self._server = create_server(
            self._application,
            map=self._sockets,
            sockets=[listener],
            ident=None,
            **_BOUNDS,
        )
        self._thread.start()

    def stop(self) -> None:
        """Let the requests that are being answered end, and listen no more."""
        self._server.task_dispatcher.shutdown()
        self._stopping.set()
        self._server.pull_trigger()  # wakes the thread
        self._thread.join()
        wasyncore.close_all(self._sockets)

    def _serve(self) -> None:
        """Take one look at the sockets after another, as the server would for ever."""
        while not self._stopping.is_set():
            # select() knows no more than 1024 files, of which associations may take many
            wasyncore.loop(timeout=_PATIENCE, use_poll=True, map=self._sockets, count=1)
