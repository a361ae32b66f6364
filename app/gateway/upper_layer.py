"""The upper layer of associations that are accepted: pynetdicom's, but data sets of C-STORE go on while they come.

pynetdicom collects a data set in memory, hands it to another thread and looks for work once in a millisecond. Here the
thread that reads gives each fragment (PS3.8, 9.3.1 and E.2) to a sink at once and waits for the network, so that an
instance of any size takes no memory, and is on its way to the disk before it is complete. All other messages, and the
negotiation, are pynetdicom's.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler, ThreadedAssociationServer

from app.gateway.store_command import StoreRequest, store_request, store_response

_P_DATA_TF = 0x04
_ESTABLISHED = "Sta6"
_COMMAND, _LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8, E.2)."""
_LONGEST_PDU = 1 << 21
"""Bytes. One that claims more is not read: it is twice of what peers are told that they may send."""
_LONGEST_OTHER = 1 << 18
"""Bytes of a PDU that is no P-DATA: 128 contexts with all transfer syntaxes take less."""
_LARGEST_COMMAND, _LARGEST_DATA = 1 << 16, 1 << 21
"""Bytes of a command, real ones have some hundreds, and of the data of what is no C-STORE. They are held in memory."""
_MOST_SILENT = 64
"""Connections that have not asked for an association."""
_MOST_UNANSWERED = 4
"""Messages that a peer may have sent without waiting for the answers. By the protocol it is one."""
_PIECE = 1 << 18
"""Bytes that are handed on at a time."""
_PATIENCE = 5.0
"""Milliseconds to wait for the network before looking whether there is something to send."""
_CLOSED, _INVALID = "Evt17", "Evt19"
"""Events of the state machine (PS3.8, table 9-10): connection closed; invalid PDU."""


class Sink(Protocol):
    """Takes the data set of one C-STORE request."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes; they are overwritten afterwards."""

    def end(self) -> int:
        """Take note that it is complete; return the status of the response (PS3.4, table B.2-1)."""

    def abandon(self) -> None:
        """Take note that it will never be complete."""


Open = Callable[[Association, StoreRequest, tuple[str, str]], Sink]
"""Makes a sink: of the association, the request, and abstract and transfer syntax."""
Complain = Callable[[Association, str], None]
"""Told of an association, and what is wrong with it."""
_Storing = tuple[StoreRequest, Sink, int]
"""A request, where its data set goes, and its presentation context."""


class StreamingEntity(AE):
    """Application entity whose servers give data sets of C-STORE to sinks.

    Parameters
    ----------
    ae_title : str
    open_sink : callable
        Makes the sinks.
    complain : callable
        Told of associations whose peer breaks the protocol, before it is hung up on.
    """

    def __init__(self, ae_title: str, open_sink: Open, complain: Complain) -> None:
        super().__init__(ae_title)
        self._handler = partial(_Handler, open_sink, complain)

    def make_server(self, *arguments: Any, **keywords: Any) -> AssociationServer:  # type: ignore[override]
        """Return a server, as its base class does."""
        keywords |= {"server_class": _Server, "request_handler": self._handler}
        return super().make_server(*arguments, **keywords)


class _Server(ThreadedAssociationServer):
    """Has a place for who wants to speak, whoever else only connects."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Hang up on the first of those who have connected and asked for nothing, if they are many."""
        silent = [each for each in self.active_associations if each.requestor.primitive is None]
        if len(silent) >= _MOST_SILENT:
            cut(silent[0])
        return super().verify_request(request, client_address)


class _Handler(RequestHandler):
    """Makes the association of a connection."""

    def __init__(self, open_sink: Open, complain: Complain, *arguments: Any) -> None:
        self._open_sink, self._complain = open_sink, complain
        super().__init__(*arguments)

    def _create_association(self) -> Association:
        association = super()._create_association()
        layer = _UpperLayer(association, self._open_sink, self._complain)
        association.dul = layer
        association._serve_request = layer.counted(association._serve_request)  # type: ignore[method-assign]
        association.bind(evt.EVT_CONN_CLOSE, _end_at_once)
        association.network_timeout = self.ae.network_timeout  # the one before has had it
        association.set_socket(_Socket(association, client_socket=self.request))
        return association


def _end_at_once(event: Any) -> None:
    """End the thread of a connection that has ended before it asked for an association: it would wait for that."""
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)


def cut(association: Any) -> None:
    """End a connection, whatever either side is about to say, from any thread.

    What has come already can still be read, and where TLS has failed as if there had never been any: nothing of it is.
    """
    if isinstance(association.dul, _UpperLayer):
        association.dul.spoilt = True
    with suppress(OSError, AttributeError):  # it has ended by itself
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)


class _Gone(Exception):
    """The connection has ended."""


class _Invalid(Exception):
    """The peer breaks the rules."""


class _Socket(AssociationSocket):
    """Waits until there is something to read, and reads it without copies."""

    _unread = b""
    _deadline = 0.0

    def begin(self) -> None:
        """Have all that a PDU consists of come within the time that the peer may be silent for.

        Else it could take its time for every byte, and keep others out, even before it has said who it is.
        """
        patience = None if self.socket is None else self.socket.gettimeout()
        self._deadline = time.monotonic() + (patience or 0.0)

    @property
    def ready(self) -> bool:
        if self.socket is None or not self._is_connected:
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        waiting = not self.assoc.dul.to_provider_queue.queue
        try:
            look = select.poll()  # select() knows no more than 1024 files
            look.register(self.socket, select.POLLIN)
            return bool(look.poll(_PATIENCE if waiting else 0.0))
        except (OSError, ValueError):
            self.event_queue.put(_CLOSED)
            return False

    def unread(self, data: bytes) -> None:
        """Have :meth:`recv` return bytes that were read before."""
        self._unread = data

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the connection ends."""
        data = bytearray(nr_bytes)
        got = min(len(self._unread), nr_bytes)
        data[:got], self._unread = self._unread[:got], self._unread[got:]
        got += self._fill(memoryview(data)[got:])
        return data[:got]

    def fill(self, view: memoryview) -> None:
        """Read as many bytes as there is room for."""
        if self._fill(view) < len(view):
            raise _Gone

    def drain(self) -> bool:
        """Forget some of what is there; False at the end."""
        return self.socket is not None and bool(self.socket.recv(_PIECE))

    def _fill(self, view: memoryview) -> int:
        got = 0
        while got < len(view):
            connection = self.socket
            try:
                read = 0 if connection is None else connection.recv_into(view[got:])
            except ValueError:  # TLS that has ended, or never begun
                read = 0
            if not read:
                break
            if time.monotonic() > self._deadline:
                raise TimeoutError("a PDU takes too long")
            got += read
        return got


class _UpperLayer(DULServiceProvider):
    """Reads P-DATA item by item; what belongs to a C-STORE request goes to a sink, and is answered from here."""

    socket: _Socket

    def __init__(self, association: Association, open_sink: Open, complain: Complain) -> None:
        super().__init__(association)
        self._run_loop_delay = 0.0  # it is the socket that waits
        self._open_sink, self._complain = open_sink, complain
        self._command = bytearray()
        self._storing: _Storing | None = None
        self._whole: list[_Storing] = []
        self.spoilt = False
        self._buffer = memoryview(bytearray(_PIECE))
        self._in_work: deque[object] = deque()

    def counted(self, serve: Callable[..., None]) -> Callable[..., None]:
        """Return a function that serves a request, and counts it: the library serves reports in a thread each."""

        def serve_and_count(*message: object) -> None:
            self._in_work.append(message)
            try:
                serve(*message)
            except Exception:  # else the thread would end, and leave the connection to itself
                cut(self.assoc)
            finally:
                self._in_work.pop()

        return serve_and_count

    def run_reactor(self) -> None:
        """Read until the association ends, in a thread of its own."""
        try:
            super().run_reactor()
        except Exception:  # a message out of turn: the library has hung up, its traceback would quote it
            self.kill_dul()
        finally:
            for _, sink, _ in [*self._whole, *filter(None, [self._storing])]:
                sink.abandon()

    def _read_pdu_data(self) -> None:
        if self.spoilt:
            self._pass_over()
            return
        self._read_pdu()
        if self._storing is None:
            return
        # Meanwhile there is nothing to do for the thread of the association, which would look each millisecond. The
        # library uses the same event while it sends requests, which it never does in associations that were accepted.
        self.assoc._reactor_checkpoint.clear()
        try:
            while self._streaming and self.event_queue.empty() and not self._kill_thread and self.socket.ready:
                self._idle_timer.restart()
                self._read_pdu()
        finally:
            self.assoc._reactor_checkpoint.set()

    @property
    def _streaming(self) -> bool:
        """Whether nothing but more of what arrives is to be looked after."""
        established = self.state_machine.current_state == _ESTABLISHED and not self.spoilt
        return established and self.to_provider_queue.empty() and self.assoc.dimse.msg_queue.empty()

    def _read_pdu(self) -> None:
        self.socket.begin()
        try:
            head = bytes(self.socket.recv(6))
            if len(head) < 6:
                raise _Gone
            kind, length = struct.unpack(">BxL", head)
            if length > (_LONGEST_PDU if kind == _P_DATA_TF else _LONGEST_OTHER):
                raise _Invalid
            if kind == _P_DATA_TF and self.state_machine.current_state == _ESTABLISHED:
                self._read_items(length)
                return
        except (_Gone, OSError):
            self.event_queue.put(_CLOSED)
        except Exception:  # damaged messages make the library raise anything
            self._complain(self.assoc, "it says what the protocol does not allow: hung up")
            self.spoilt = True
            self.event_queue.put(_INVALID)
        else:
            self.socket.unread(head)
            super()._read_pdu_data()

    def _pass_over(self) -> None:
        """Read what a peer that is being hung up on still says: nobody knows where in it a PDU begins."""
        try:
            gone = not self.socket.drain()
        except OSError:
            gone = True
        if gone:
            self.event_queue.put(_CLOSED)

    def _read_items(self, left: int) -> None:
        """Read the presentation data values of a P-DATA-TF PDU (PS3.8, 9.3.5).

        What it completes is kept, and answered, when all of it has proved to be good.
        """
        while left:
            length, context, control = struct.unpack(">LBB", self._read(6))
            left -= 4 + length
            if length < 2 or left < 0:
                raise _Invalid
            if self._storing is not None:
                self._stream(self._storing, context, control, length - 2)
            elif control & _COMMAND:
                self._take_command(context, control, length - 2)
            else:
                self._take_data(context, control, length - 2)
        for request, sink, context in self._whole:
            self._answer(request, sink.end(), context)
        self._whole.clear()

    def _take_command(self, context: int, control: int, size: int) -> None:
        """Read a part of a command; when it is whole, begin to store or give it to the library."""
        if self.assoc.dimse.message is not None or len(self._command) + size > _LARGEST_COMMAND:
            raise _Invalid
        self._command += self._read(size)
        if not control & _LAST:
            return
        command, self._command = bytes(self._command), bytearray()
        request = store_request(command)
        if request is None:
            self._give(context, control, command)
        else:
            self._storing = request, self._opened(request, context), context

    def _take_data(self, context: int, control: int, size: int) -> None:
        """Give the library a part of what follows one of its commands."""
        message: Any = self.assoc.dimse.message
        if self._command or message is None or message.data_set.tell() + size > _LARGEST_DATA:
            raise _Invalid
        self._give(context, control, self._read(size))

    def _give(self, context: int, control: int, data: bytes) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context, bytes([control]) + data]]  # type: ignore[list-item]
        self.assoc.dimse.receive_primitive(primitive)
        self.assoc.dimse.cancel_req.clear()  # nothing can be cancelled here; the library fails where they are many
        if self.assoc.dimse.msg_queue.qsize() + len(self._in_work) > _MOST_UNANSWERED:
            raise _Invalid

    def _opened(self, request: StoreRequest, context: int) -> Sink:
        """Return the sink for what follows a request."""
        accepted = self.assoc._accepted_cx.get(context)
        if accepted is None:
            raise _Invalid
        return self._open_sink(self.assoc, request, (str(accepted.abstract_syntax), str(accepted.transfer_syntax[0])))

    def _stream(self, storing: _Storing, context: int, control: int, size: int) -> None:
        """Give a part of a data set to its sink."""
        _, sink, expected = storing
        if control & _COMMAND or context != expected:
            raise _Invalid
        while size:
            view = self._buffer[: min(size, _PIECE)]
            self.socket.fill(view)
            sink.write(view)
            size -= len(view)
        if control & _LAST:
            self._whole.append(storing)
            self._storing = None
            if len(self._whole) > _MOST_UNANSWERED:
                raise _Invalid

    def _answer(self, request: StoreRequest, status: int, context: int) -> None:
        command = store_response(request, status)
        item = struct.pack(">LBB", len(command) + 2, context, _COMMAND | _LAST) + command
        self.socket.send(struct.pack(">BBL", _P_DATA_TF, 0, len(item)) + item)

    def _read(self, size: int) -> bytes:
        data = bytes(self.socket.recv(size))
        if len(data) < size:
            raise _Gone
        return data
