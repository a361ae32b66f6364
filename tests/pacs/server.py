"""A real Orthanc with its DICOMweb plugin, in a network namespace where nobody else can reach it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.gateway.configuration import Tls

HTTP_PORT = 8042
HTTPS_PORT = 8443
DICOM_PORT = 4242
TITLE = "ORTHANC"
_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
_DICOM_PARTS = 'multipart/related; type="application/dicom"'
_JSON = "application/dicom+json"


class PacsFailed(Exception):
    """The server did not start, or refused what was asked of it."""


class Orthanc:
    """What a client sees of a running server: C-STORE by dcmtk, DICOMweb, and Orthanc's own interface."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def store(self, files: Iterable[Path]) -> None:
        """Send by C-STORE, every object in the transfer syntax of its file."""
        command = ["dcmsend", "--decompress-never", "127.0.0.1", str(DICOM_PORT), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PacsFailed(f"dcmsend: {done.stdout}{done.stderr}{self._log.read_text()}")

    def stow(self, files: Iterable[Path]) -> None:
        """Send in one STOW-RS request."""
        boundary = uuid4().hex
        start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(start + file.read_bytes() + b"\r\n" for file in files) + f"--{boundary}--".encode()
        headers = {"Content-Type": f"{_DICOM_PARTS}; boundary={boundary}", "Accept": _JSON}
        answer = json.loads(self._request("POST", "/dicom-web/studies", body, headers))
        failed = answer.get("00081198", {}).get("Value")
        if failed:
            raise PacsFailed(f"STOW-RS: Failed SOP Sequence {failed}")

    def qido(self, path: str) -> list[dict[str, Any]]:
        """Search by QIDO-RS; every match in DICOM JSON."""
        return list(json.loads(self._request("GET", f"/dicom-web/{path}", headers={"Accept": _JSON})))

    def wado(self, study: str, series: str, instance: str) -> bytes:
        """Retrieve an object by WADO-RS in the transfer syntax in which the server holds it."""
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}"
        body = self._request("GET", path, headers={"Accept": f"{_DICOM_PARTS}; transfer-syntax=*"})
        boundary, start = body[: body.index(b"\r\n")], body.index(b"\r\n\r\n") + 4
        return body[start : body.rindex(b"\r\n" + boundary)]

    def rest(self, path: str) -> Any:
        """Answer of Orthanc's own interface."""
        return json.loads(self._request("GET", path))

    def know(self, title: str, port: int, *, tls: bool = False) -> None:
        """Add another application entity of this network, until the server ends; its AE title is in capitals."""
        entity = {"AET": title.upper(), "Host": "127.0.0.1", "Port": port, "UseDicomTls": tls}
        self._request("PUT", f"/modalities/{title}", json.dumps(entity).encode())

    def take(self, files: Iterable[Path]) -> None:
        """Take files by Orthanc's own interface."""
        for file in files:
            self._request("POST", "/instances", file.read_bytes())

    def send_to(self, title: str) -> None:
        """Send all that is there to another application entity, by C-STORE."""
        resources = {"Resources": self.rest("/studies"), "Synchronous": True}
        self._request("POST", f"/modalities/{title}/store", json.dumps(resources).encode())

    def commitment(self, title: str, instances: list[list[str]]) -> Any:
        """Ask another application entity to commit to instances, as pairs of UIDs; return its report."""
        asked = json.dumps({"DicomInstances": instances}).encode()
        path = json.loads(self._request("POST", f"/modalities/{title}/storage-commitment", asked))["Path"]
        while (report := self.rest(path))["Status"] == "Pending":
            time.sleep(0.05)
        return report

    def file(self, instance: str) -> bytes:
        """Retrieve an object by Orthanc's own interface."""
        (found,) = json.loads(self._request("POST", "/tools/lookup", instance.encode()))
        return self._request("GET", f"/instances/{found['ID']}/file")

    def _request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", HTTP_PORT)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise PacsFailed(f"{method} {path}: {response.status} {content[:500]!r}\n{self._log.read_text()}")
        return content


@contextmanager
def running(folder: Path, tls: Tls | None = None, **more: Any) -> Iterator[Orthanc]:
    """Start a server that keeps everything in ``folder``; with TLS, it speaks DICOM with nobody without.

    Over HTTP this Orthanc itself cannot ask for certificates (1.10.1 dies of the first): :func:`proxied` does.

    Parameters
    ----------
    folder : Path
    tls : Tls, optional
    **more
        Options of Orthanc.
    """
    # Orthanc cannot be told to listen on the loopback device alone.
    if len(Path("/proc/net/route").read_text("ascii").splitlines()) > 1:
        raise PacsFailed("this is no network namespace of its own; run it by `make pacs` or `make viewer`")
    configuration, log = folder / "orthanc.json", folder / "orthanc.log"
    configuration.write_text(json.dumps(_configuration(folder) | _secured(tls) | more), "utf-8")
    with log.open("wb") as output, subprocess.Popen(["Orthanc", configuration], stdout=output, stderr=output) as server:
        try:
            client = Orthanc(log)
            _wait(server, client, log)
            yield client
        finally:
            server.terminate()


_PROXY = """
user root root;
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log {folder}/access.log;
  client_max_body_size 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {tls.certificate};
    ssl_certificate_key {tls.key};
    ssl_client_certificate {tls.authorities};
    ssl_verify_client on;
    location /dicom-web/ {{ proxy_pass http://127.0.0.1:{to}; proxy_request_buffering off; }}
  }}
}}
"""


@contextmanager
def proxied(folder: Path, tls: Tls) -> Iterator[Path]:
    """Run nginx before the DICOMweb service of the server: both sides show certificates; return its access log."""
    configuration, log = folder / "nginx.conf", folder / "nginx.log"
    configuration.write_text(_PROXY.format(folder=folder, tls=tls, port=HTTPS_PORT, to=HTTP_PORT), "utf-8")
    with subprocess.Popen(["nginx", "-e", log, "-c", configuration]) as server:
        try:
            while server.poll() is None and not (folder / "nginx.pid").exists():
                time.sleep(0.05)
            if server.poll() is not None:
                raise PacsFailed(f"nginx ended with status {server.returncode}:\n{log.read_text()}")
            yield folder / "access.log"
        finally:
            server.terminate()


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "StorageDirectory": str(folder),
        "HttpPort": HTTP_PORT,
        "DicomPort": DICOM_PORT,
        "DicomAet": TITLE,
        "AuthenticationEnabled": False,
        "Plugins": [_PLUGIN],
    }


def _secured(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(tls.certificate),
        "DicomTlsPrivateKey": str(tls.key),
        "DicomTlsTrustedCertificates": str(tls.authorities),
        "DicomTlsRemoteCertificateRequired": True,
    }


def _wait(server: subprocess.Popen[bytes], client: Orthanc, log: Path) -> None:
    while server.poll() is None:
        try:
            client.rest("/system")
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise PacsFailed(f"Orthanc ended with status {server.returncode}:\n{log.read_text()}")
