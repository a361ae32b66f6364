"""A PACS that speaks DICOMweb on loopback; a real Orthanc is in ``tests/pacs``."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom import Dataset

_BOUNDARY = b"--parts"


@dataclass
class WebPacs:
    """What it has, and how it behaves.

    Parameters
    ----------
    files : dict
        What it has stored, as it was sent, by SOP Instance UID.
    refuses : dict
        HTTP status with which it answers a request to store an object of a Modality.
    forgets : int
        So many searches find nothing.
    fails : dict
        Failure Reason with which it refuses, in the answer, an object of a Modality.
    failed_status : int
        HTTP status of such an answer.
    wants : str, optional
        Value of the header Authorization without which it lets nobody in.
    redirects_to : str
        Url of another one, if it has moved there.
    instead : dict
        What it gives in the place of an instance; nothing and HTTP 404 where it is empty.
    requests : list
        What was asked of it.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)
    forgets: int = 0
    fails: dict[str, int] = field(default_factory=dict)
    failed_status: int = 200
    wants: str | None = None
    redirects_to: str = ""
    instead: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def datasets(self) -> list[Dataset]:
        return [pydicom.dcmread(BytesIO(file)) for file in self.files.values()]


@contextmanager
def web_listening(pacs: WebPacs, tls: ssl.SSLContext | None = None) -> Iterator[WebPacs]:
    """Run it on a free port."""

    class Handler(_Handler):
        owner = pacs

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    pacs.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: WebPacs
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        self.owner.requests.append(str(args[0]))

    def do_POST(self) -> None:
        body = self._body()
        if not self._let_in():
            return
        boundary = b"--" + self.headers["Content-Type"].split('boundary="')[1].rstrip('"').encode()
        files = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in body.split(boundary)[1:-1]]
        answer = Dataset()
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = [], []
        for file in files:
            image = pydicom.dcmread(BytesIO(file), stop_before_pixels=True)
            if image.Modality in self.owner.refuses:
                self._answer(self.owner.refuses[image.Modality], b"", "text/plain")
                return
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
            if image.Modality in self.owner.fails:
                item.FailureReason = self.owner.fails[image.Modality]
                answer.FailedSOPSequence.append(item)
            else:
                self.owner.files[image.SOPInstanceUID] = file
                answer.ReferencedSOPSequence.append(item)
        status = self.owner.failed_status if answer.FailedSOPSequence else 200
        self._answer(status, json.dumps(answer.to_json_dict()).encode(), "application/dicom+json")

    def do_GET(self) -> None:
        if not self._let_in():
            return
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        parts = address.path.split("/")[2:]
        if len(parts) == 6:
            self._retrieve(parts[5])
        else:
            self._search(parts, query)

    def _retrieve(self, instance: str) -> None:
        file = self.owner.instead.get(instance, self.owner.files[instance])
        if not file:
            self._answer(404, b"", "text/plain")
            return
        part = b"\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n"
        content = _BOUNDARY + part + _BOUNDARY + b"--\r\n"
        kind = f'multipart/related; type="application/dicom"; boundary="{_BOUNDARY[2:].decode()}"'
        self._answer(200, content, kind)

    def _search(self, parts: list[str], query: dict[str, str]) -> None:
        """Find series of a study, or instances of a study or series."""
        if self.owner.forgets:
            self.owner.forgets -= 1
            self._answer(200, b"[]", "application/dicom+json")
            return
        found: dict[str, Dataset] = {}
        for image in self.owner.datasets():
            series = parts[3] if len(parts) > 4 else image.SeriesInstanceUID
            if (image.StudyInstanceUID, image.SeriesInstanceUID) == (parts[1], series):
                match = Dataset()
                match.SeriesInstanceUID, match.Modality = image.SeriesInstanceUID, image.Modality
                if parts[-1] == "instances":
                    match.SOPInstanceUID, match.SOPClassUID = image.SOPInstanceUID, image.SOPClassUID
                if all(str(match.get(name)) == value for name, value in query.items() if name in match):
                    found[match.get("SOPInstanceUID", match.SeriesInstanceUID)] = match
        first = int(query.get("offset", 0))
        page = [match.to_json_dict() for match in list(found.values())[first : first + 2]]
        self._answer(200, json.dumps(page).encode(), "application/dicom+json")

    def _let_in(self) -> bool:
        if self.owner.redirects_to:
            self.send_response(307)
            self.send_header("Location", self.owner.redirects_to + self.path.removeprefix("/dicom-web"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        known = self.owner.wants is None or self.headers.get("Authorization") == self.owner.wants
        if not known:
            self._answer(401, b"", "text/plain")
        return known

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
