"""DICOMweb (PS3.18): the client for a node, and STOW-RS of results."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import generate_uid

from app.gateway.configuration import Tls, WebDestination, WebNode
from app.gateway.jobs import Delivery
from app.gateway.sender import Failure, Report
from app.gateway.spool import DUPLICATE

_WAIT = (10.0, 60.0)
"""Seconds for the connection, and between two parts of an answer."""


_OF_THE_OBJECT = (400, 409, 413, 415, 422)
"""Statuses of HTTP that tell about what was sent, not about the service (PS3.18, table 10.5.3-1)."""


_SYSTEM = ssl.get_default_verify_paths()
"""Where the authorities of the system are."""


class Unreachable(Exception):
    """A node does not answer, or not as it should. The message is one line without patient data."""


@contextmanager
def web_client(node: WebNode, tls: Tls | None) -> Iterator[DICOMwebClient]:
    """Open a client; errors of the network and of HTTP become :class:`Unreachable`.

    Secrets are read anew each time, so that they can be changed. Proxies and passwords that the environment names are
    not used: what goes where is said in the configuration alone.
    """
    with requests.Session() as session:
        session.trust_env = False
        session.max_redirects = 0  # what is sent would go where nobody has said
        try:
            _introduce(session, node, tls)
            client = DICOMwebClient(node.url, session, timeout=_WAIT)
            client.set_http_retry_params(retry=False)  # the job table has its own pauses
            yield client
        except requests.HTTPError as error:
            raise Unreachable(f"{node.name}: {_refusal(_status(error))}") from error
        except requests.TooManyRedirects as error:
            raise Unreachable(f"{node.name}: it redirects; state the url that it redirects to") from error
        except requests.exceptions.SSLError as error:
            raise Unreachable(f"{node.name}: it cannot be trusted, or does not trust the gateway (TLS)") from error
        except requests.RequestException as error:
            raise Unreachable(f"{node.name}: it cannot be reached") from error


def _introduce(session: requests.Session, node: WebNode, tls: Tls | None) -> None:
    """Give a session what it shows to a node."""
    try:
        if node.user is not None and node.password_file is not None:
            session.auth = (node.user, _secret(node.password_file))
        if node.token_file is not None:
            session.headers["Authorization"] = f"Bearer {_secret(node.token_file)}"
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{node.name}: its password or token cannot be read") from error
    session.verify = _SYSTEM.cafile or _SYSTEM.capath or True
    if node.tls and tls is not None:
        session.cert, session.verify = (str(tls.certificate), str(tls.key)), str(tls.authorities)


def _secret(path: Path) -> str:
    return path.read_text("utf-8").strip()


def _refusal(status: int) -> str:
    match status:
        case 401 | 403:
            return f"it does not let the gateway in (HTTP {status}); are user and secret known there?"
        case 404:
            return "HTTP 404: is the url that of its DICOMweb service?"
        case 502 | 503 | 504:  # of a proxy before it, as a rule
            return f"it cannot be reached (HTTP {status})"
        case _:
            return f"HTTP {status}"


class WebSender:
    """Brings results to destinations by STOW-RS: a :class:`~app.gateway.sender.Sender`.

    Parameters
    ----------
    tls : Tls, optional
        For destinations with ``tls``.
    report : callable
        Told what destinations have.
    """

    def __init__(self, tls: Tls | None, report: Report) -> None:
        self._tls = tls
        self._report = report

    def store(
        self,
        destination: WebDestination,
        objects: Sequence[tuple[Delivery, Path]],
        stored: Callable[[Delivery], None],
    ) -> list[Failure]:
        """Send each object in a request of its own (PS3.18, 10.5): what one meets does not touch the others."""
        failures: list[Failure] = []
        try:
            with web_client(destination, self._tls) as client:
                for delivery, path in objects:
                    reason = _store(client, path, delivery.sop_instance)
                    if reason is None:
                        stored(delivery)
                    else:
                        failures.append(Failure(f"{destination.name}: {delivery.path}: {reason}"))
        except Unreachable as failure:
            failures.append(Failure(str(failure), reachable=False))
        return failures

    def ask_commitment(
        self, destination: WebDestination, objects: Sequence[Delivery], asked: Callable[[str], threading.Event]
    ) -> Failure | None:
        """Look by QIDO-RS (PS3.18, 10.6) which of the objects are there."""
        kept: list[str] = []
        lost: list[str] = []
        try:
            with web_client(destination, self._tls) as client:
                for each in objects:
                    found = client.search_for_instances(
                        each.study, search_filters={"SOPInstanceUID": each.sop_instance}
                    )
                    there = any(Dataset.from_json(match).SOPInstanceUID == each.sop_instance for match in found)
                    (kept if there else lost).append(each.sop_instance)
        except Unreachable as failure:
            return Failure(str(failure), reachable=False)
        transaction = str(generate_uid())
        asked(transaction)
        self._report(transaction, kept, lost)
        return None


def _store(client: DICOMwebClient, path: Path, instance: str) -> str | None:
    """Send an object; return why it was not stored. What is there already is: a search tells whether it is kept."""
    try:
        answer = client.store_instances([pydicom.dcmread(path)])
    except requests.HTTPError as error:
        if _status(error) not in _OF_THE_OBJECT:
            raise
        return None if DUPLICATE in _reasons(_body(error)) else f"HTTP {_status(error)}"
    if any(item.ReferencedSOPInstanceUID == instance for item in answer.get("ReferencedSOPSequence") or []):
        return None
    reasons = _reasons(answer)
    if DUPLICATE in reasons:
        return None
    return f"status {reasons[0]:04X}" if reasons else "it does not say that it has stored it"


def _reasons(answer: Dataset) -> list[int]:
    return [item.FailureReason for item in answer.get("FailedSOPSequence") or [] if "FailureReason" in item]


def _body(error: requests.HTTPError) -> Dataset:
    """Return what an answer says beside its status; nothing where that is not in JSON."""
    try:
        return Dataset.from_json({} if error.response is None else error.response.json())
    except Exception:  # it may be anything
        return Dataset()


def _status(error: requests.HTTPError) -> int:
    return 0 if error.response is None else error.response.status_code
