"""The side of the gateway that people and monitoring look at: what there is to see, read only."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CONTENT_TYPE_LATEST

from app.gateway import pages
from app.gateway.configuration import Web
from app.gateway.events import Event, Kind, Tell
from app.gateway.jobs import Delivery, Job, State
from app.gateway.metrics import Metrics, Vitals
from app.gateway.queue import Queue
from app.gateway.spool import Refused, checked_uid
from app.outcome import UsageError
from app.picture import read_picture

PAGE = 200
"""Studies on a page."""
_PLAIN, _HTML, _PNG = "text/plain; charset=utf-8", "text/html; charset=utf-8", "image/png"
_FILES = {"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SUMMARIES = ("sc/summary.dcm", "sc-summary.dcm")
"""Where a run has put the summary page, in folders or flat."""
_NUMBER = re.compile("[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Answer:
    """To a request.

    Parameters
    ----------
    body : bytes
    kind : str
        Content type.
    status : HTTPStatus
    """

    body: bytes
    kind: str = _PLAIN
    status: HTTPStatus = HTTPStatus.OK


class Pages:
    """All that can be looked at, as a WSGI application.

    Parameters
    ----------
    where : Web
        It is served.
    title : str
        AE title of the gateway.
    queue : Queue
    metrics : Metrics
    vitals : callable
        Says how the gateway is.
    results : callable
        Returns the folder with the results of a study, whose UID is checked.
    tell : callable
        Receives what goes wrong.
    """

    def __init__(
        self,
        where: Web,
        title: str,
        queue: Queue,
        metrics: Metrics,
        vitals: Callable[[], Vitals],
        results: Callable[[str], Path],
        tell: Tell,
    ) -> None:
        self._hosts = _hosts(where)
        self._title = title
        self._queue = queue
        self._metrics = metrics
        self._vitals = vitals
        self._results = results
        self._tell = tell
        self._routes: tuple[tuple[str, Callable[..., Answer]], ...] = (
            (r"/", self._show_queue),
            (r"/healthz", self._show_health),
            (r"/metrics", self._show_metrics),
            (r"/studies/([^/]+)", self._show_study),
            (r"/studies/([^/]+)/picture\.png", self._show_picture),
            (rf"/({'|'.join(map(re.escape, _FILES))})", _show_file),
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Answer a request."""
        answer = self._answer(environ)
        headers = _HEADERS | {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        start_response(f"{answer.status.value} {answer.status.phrase}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        if self._hosts is not None and not self._hosts.fullmatch(environ.get("HTTP_HOST", "")):
            return _line(HTTPStatus.MISDIRECTED_REQUEST, "this name is not served: ask for localhost")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _line(HTTPStatus.METHOD_NOT_ALLOWED, "there is nothing to change here: GET and HEAD alone")
        try:
            return self._found(environ)
        except (sqlite3.Error, OSError):
            return _line(HTTPStatus.SERVICE_UNAVAILABLE, "the spool cannot be read")
        except Exception as error:  # its text may name what is nobody's business
            self._tell(Event(Kind.ERROR, f"error: {type(error).__name__} in web"))
            return _line(HTTPStatus.INTERNAL_SERVER_ERROR, "this went wrong; the gateway's log has it")

    def _found(self, environ: WSGIEnvironment) -> Answer:
        query = {name: values[-1] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        for pattern, show in self._routes:
            match = re.fullmatch(pattern, environ.get("PATH_INFO", ""))
            if match:
                return show(query, *match.groups())
        return _not_found()

    # --- pages ---

    def _show_queue(self, query: dict[str, str]) -> Answer:
        chosen, number = query.get("state"), query.get("page", "1")
        if (chosen is not None and chosen not in set(State)) or not _NUMBER.fullmatch(number):
            return _not_found()
        state, crowds = None if chosen is None else State(chosen), self._queue.crowds()
        studies = sum(crowd.number for crowd in crowds.values()) if state is None else crowds[state].number
        jobs, last = self._queue.page(state, int(number), PAGE), max(-(-studies // PAGE), 1)
        return _html(pages.queue_page(self._title, self._vitals().troubles, crowds, jobs, state, int(number), last))

    def _show_health(self, query: dict[str, str]) -> Answer:
        self._queue.crowds()  # that it can be read
        troubles = self._vitals().troubles
        return _line(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(troubles)) if troubles else _line(HTTPStatus.OK, "ok")

    def _show_metrics(self, query: dict[str, str]) -> Answer:
        return Answer(self._metrics.text(), CONTENT_TYPE_LATEST)

    def _show_study(self, query: dict[str, str], study: str) -> Answer:
        known = self._known(study)
        if known is None:
            return _not_found()
        job, deliveries = known
        return _html(pages.study_page(self._title, job, deliveries, _summary(deliveries) is not None))

    def _show_picture(self, query: dict[str, str], study: str) -> Answer:
        known = self._known(study)
        path = known and _summary(known[1])
        if known is None or path is None:
            return _not_found()
        try:
            picture, coded = read_picture(self._results(known[0].study) / path), BytesIO()
        except UsageError:  # it is being replaced or dropped
            return _not_found()
        picture.save(coded, format="PNG")
        return Answer(coded.getvalue(), _PNG)

    def _known(self, study: str) -> tuple[Job, list[Delivery]] | None:
        """Look up a study by what somebody says is its UID."""
        try:
            return self._queue.study(checked_uid(study))
        except Refused:
            return None


def _show_file(query: dict[str, str], name: str) -> Answer:
    return Answer((pages.FOLDER / name).read_bytes(), _FILES[name])


def _summary(deliveries: list[Delivery]) -> str | None:
    """Return the path of the summary page within the results; what is to be sent is what a run has found last."""
    return next((each.path for each in deliveries if each.path in _SUMMARIES), None)


def _hosts(where: Web) -> re.Pattern[str] | None:
    """Return what requests may call a server on loopback; None for others, whose names are the site's.

    Else a page from elsewhere whose name leads to loopback could read all of this (DNS rebinding).
    """
    if not where.host.is_loopback:
        return None
    names = {"localhost", "127.0.0.1", "[::1]", str(where.host)}
    return re.compile(rf"({'|'.join(map(re.escape, sorted(names)))})(:[0-9]{{1,5}})?", re.IGNORECASE)


def _line(status: HTTPStatus, line: str) -> Answer:
    return Answer(f"{line}\n".encode(), status=status)


def _not_found() -> Answer:
    return _line(HTTPStatus.NOT_FOUND, "there is nothing here")


def _html(page: str) -> Answer:
    return Answer(page.encode(), _HTML)
