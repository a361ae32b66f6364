"""Certificates of an authority that is made for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

from app.gateway.configuration import Tls


def certified(folder: Path) -> Tls:
    """Make an authority, and a certificate by it for loopback."""
    ca, key = folder / "ca.pem", folder / "ca.key"
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj")
    _openssl(*new, f"/CN={folder.name}", "-x509", "-days", "2", "-keyout", str(key), "-out", str(ca))
    request, own, extension = folder / "own.csr", folder / "own.key", folder / "names"
    _openssl(*new, "/CN=127.0.0.1", "-keyout", str(own), "-out", str(request))
    extension.write_text("subjectAltName=IP:127.0.0.1")
    signed = ("-CA", str(ca), "-CAkey", str(key), "-CAcreateserial", "-days", "2", "-extfile", str(extension))
    _openssl("x509", "-req", "-in", str(request), *signed, "-out", str(folder / "own.pem"))
    return Tls(certificate=folder / "own.pem", key=own, authorities=ca)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
