"""What can be looked at over HTTP, and what cannot."""

from __future__ import annotations

import io
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import numpy as np
import pydicom
import pytest
from PIL import Image

from app.gateway.configuration import GatewayConfiguration, Web
from app.gateway.events import Event, Kind
from app.gateway.jobs import Jobs, State
from app.gateway.metrics import Metrics, Vitals
from app.gateway.queue import Queue
from app.gateway.service import TABLE
from app.gateway.web import _SUMMARIES, PAGE, Pages
from app.outcome import RunFailed
from app.publish import flatten, objects_in
from operators.sc_writer import FOLDER, SUMMARY
from operators.software import RESEARCH_NOTICE
from tests.app.gateway import stand_ins
from tests.app.gateway.browsing import Seen, look
from tests.app.gateway.peers import CALLER, free_port, send, wait_until
from tests.app.gateway.site import Site

ROUTES = ("/", "/healthz", "/metrics", "/style.css", "/icon.svg")


def _start(
    site: Site, serve: Callable[..., None] = stand_ins.quick, models: Path | None = None, **changes: object
) -> int:
    port = free_port()
    site.start(serve, models, web={"port": port}, **changes)
    return port


def _study(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0]).StudyInstanceUID)


def _write(site: Site, *rows: tuple[str, State, float, str]) -> None:
    """Put studies into the table in states that the gateway does not leave."""
    with closing(sqlite3.connect(site.folder / "spool" / TABLE)) as database, database:
        database.executemany(
            "INSERT INTO studies (study, state, revision, failures, due, since, caller, reason)"
            " VALUES (?, ?, 1, 0, 0.0, ?, 'SCANNER', ?)",
            rows,
        )


# --- pages ---


def test_the_queue_shows_every_study_its_state_and_why(site: Site, files: list[Path]) -> None:
    port = _start(site, stand_ins.refusing)
    assert "There is no study here" in look(port, "/").text
    send(site.port, files)
    wait_until(lambda: site.states() == [State.REFUSED])
    page = look(port, "/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for shown in (f'href="./studies/{_study(files)}"', CALLER, "NOT_CHEST_CT: this is a foot", RESEARCH_NOTICE):
        assert shown in page.text
    (job,) = site.jobs()
    assert job.seconds is not None
    assert f"{job.seconds:.1f}&nbsp;s" in page.text
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.since)) in page.text
    for patient in (str(pydicom.dcmread(files[0]).PatientName), str(pydicom.dcmread(files[0]).PatientID)):
        assert patient not in page.text


def test_a_study_shows_its_deliveries_and_its_picture(site: Site, files: list[Path]) -> None:
    port = _start(site, stand_ins.drawing)
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    page = look(port, f"/studies/{_study(files)}")
    assert page.status == 200
    assert page.text.count("1 of 1") == 2
    assert f'src="{_study(files)}/picture.png"' in page.text
    assert 'http-equiv="refresh"' not in page.text  # nothing is to change
    picture = look(port, f"/studies/{_study(files)}/picture.png")
    assert picture.headers["Content-Type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.body))), stand_ins.drawn())


def test_the_summary_page_is_looked_for_where_a_run_puts_it(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / SUMMARY
    path.parent.mkdir()
    path.touch()
    found = [str(each.relative_to(tmp_path)) for each in objects_in(tmp_path)]
    flatten(tmp_path)
    assert (*found, *(str(each.relative_to(tmp_path)) for each in objects_in(tmp_path))) == _SUMMARIES


def test_a_study_without_results_has_no_picture(site: Site, files: list[Path]) -> None:
    port = _start(site, stand_ins.refusing)
    send(site.port, files)
    wait_until(lambda: site.states() == [State.REFUSED])
    page = look(port, f"/studies/{_study(files)}")
    assert "<img" not in page.text.partition("<main>")[2]
    assert "There is nothing to deliver" in page.text
    assert look(port, f"/studies/{_study(files)}/picture.png").status == 404


def test_results_that_no_longer_count_are_not_shown(site: Site, files: list[Path]) -> None:
    port = _start(site, stand_ins.drawing)
    send(site.port, files[:2])
    wait_until(lambda: site.states() == [State.COMMITTED])
    address = f"/studies/{_study(files)}/picture.png"
    assert look(port, address).status == 200
    with closing(Jobs(site.folder / "spool" / TABLE)) as jobs:
        jobs.receive(_study(files), CALLER, time.time() + 1e6)  # not due while this test lasts
    assert look(port, address).status == 404


def test_what_a_picture_is_read_from_may_be_none(site: Site, files: list[Path]) -> None:
    port = _start(site)  # its summary is no colour image
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert look(port, f"/studies/{_study(files)}/picture.png").status == 404
    shutil.rmtree(site.folder / "spool" / "studies")
    assert look(port, f"/studies/{_study(files)}/picture.png").status == 404


def test_older_studies_are_on_further_pages(site: Site) -> None:
    port = _start(site)
    committed = [(f"1.2.{number}", State.COMMITTED, float(number), "") for number in range(PAGE + 5)]
    _write(site, *committed, ("1.3", State.FAILED, 1e6, "the worker died"))
    first, second = look(port, "/").text, look(port, "/?page=2").text
    assert first.count('class="uid"') == PAGE
    assert second.count('class="uid"') == 6
    assert first.index("studies/1.3") < first.index(f"studies/1.2.{PAGE + 4}") < first.index("studies/1.2.100")
    assert 'href="./?page=2"' in first
    assert "older" not in second
    assert 'href="./?page=1"' in second
    assert f'<span class="number">{PAGE + 5}</span>' in first
    failed = look(port, "/?state=failed").text
    assert failed.count('class="uid"') == 1
    assert 'href="./?state=committed&amp;page=2"' in look(port, "/?state=committed").text
    assert 'href="./?page=2"' in look(port, "/?page=9").text


def test_what_a_reason_says_is_text(site: Site) -> None:
    port = _start(site)
    _write(site, ("1.2.3", State.FAILED, 1.0, "<script>alert(1)</script> & \"quoted\" 'too'"))
    for path in ("/", "/studies/1.2.3"):
        page = look(port, path).text
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;quoted&#34;" in page


# --- what is not served ---


@pytest.mark.parametrize(
    "path",
    [
        "/studies/../../etc/passwd",
        "/studies/..%2f..%2fetc%2fpasswd",
        "/studies/%2e%2e/picture.png",
        "/studies/1.2.9/picture.png",
        "/studies/1.2.9%00/picture.png",
        "/studies/1.2.9%2f..%2f1.2.9",
        "/studies/1.2.9%0a",
        "/studies/1..2",
        "/studies/",
        "/studies",
        "/studies/%C3%A9%FF",
        "/studies/1.2.9/out/sc/summary.dcm",
        "/studies/" + "1." * 2000 + "1",
        "/templates/base.html",
        "/base.html",
        "/style.css/",
        "/?page=0",
        "/?page=-1",
        "/?page=1e3",
        "/?page=" + "9" * 99,
        "/?state=dead",
        "/?state=failed'--",
        "/favicon.ico",
    ],
)
def test_what_is_not_there_is_not_found(site: Site, path: str) -> None:
    port = _start(site)
    unlisted = site.folder / "spool" / "studies" / "1.2.9" / "out" / "sc" / "summary.dcm"
    unlisted.parent.mkdir(parents=True)
    unlisted.write_text("a secret")
    answer = look(port, path)
    assert (answer.status, answer.text) == (404, "there is nothing here\n")


def test_what_is_no_uid_is_not_found_even_if_the_table_has_it(site: Site) -> None:
    port = _start(site)
    _write(site, ("..", State.FAILED, 1.0, ""), ("1.2.3", State.FAILED, 1.0, ""))
    assert look(port, "/studies/1.2.3").status == 200
    assert look(port, "/studies/..").status == look(port, "/studies/../picture.png").status == 404


def test_what_is_no_request_is_hung_up_on(site: Site) -> None:
    port = _start(site)
    assert look(port, "/" + "a" * 20000).status == 431
    assert look(port, "/", **{"X-Long": "a" * 20000}).status == 431
    assert look(port, "/healthz").text == "ok\n"


@pytest.mark.parametrize("path", ["/", "/healthz", "/studies/1.2.3", "/nowhere"])
def test_nothing_can_be_changed(site: Site, path: str) -> None:
    port = _start(site)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        answer = look(port, path, method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", [*ROUTES, "/nowhere"])
def test_every_answer_is_kept_from_other_sites_and_caches_and_head_is_get_without_body(site: Site, path: str) -> None:
    port = _start(site)
    whole, head = look(port, path), look(port, path, "HEAD")
    assert whole.status == head.status == (404 if path == "/nowhere" else 200)
    assert whole.body
    assert head.body == b""
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    for answer in (whole, head):
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Server" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:9000", 200),  # through a tunnel
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("127x0.0.1", 421),
        ("localhost:evil", 421),
        ("", 421),
    ],
)
def test_on_loopback_no_other_name_is_answered_to(site: Site, host: str, status: int) -> None:
    port = _start(site)
    for path in ("/", "/metrics"):
        assert look(port, path, Host=host).status == status


# --- without a gateway ---


def _pages(folder: Path, told: Callable[[Event], None] = lambda event: None, host: str = "127.0.0.1") -> Pages:
    def vitals() -> Vitals:
        return Vitals((), 1, 0)

    queue = Queue(folder / TABLE)
    where = Web.model_validate({"host": host})
    return Pages(where, "TITLE", queue, Metrics(queue, vitals, []), vitals, folder.joinpath, told)


def _ask(pages: Pages, path: str, host: str = "localhost") -> Seen:
    environ: dict[str, object] = {"PATH_INFO": path, "HTTP_HOST": host}
    setup_testing_defaults(environ)
    said: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(pages(environ, lambda status, headers, *_: said.append((status, headers))))  # type: ignore[arg-type]
    ((status, headers),) = said
    return Seen(int(status.split()[0]), dict(headers), body)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::"])  # noqa: S104
def test_elsewhere_than_on_loopback_the_site_names_it(tmp_path: Path, host: str) -> None:
    Jobs(tmp_path / TABLE).close()
    assert _ask(_pages(tmp_path, host=host), "/", "gateway.example").status == 200
    assert _ask(_pages(tmp_path), "/", "gateway.example").status == 421


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/studies/1.2.3", "/studies/1.2.3/picture.png"])
def test_without_a_job_table_it_says_so(tmp_path: Path, path: str) -> None:
    answer = _ask(_pages(tmp_path), path)
    assert (answer.status, answer.body) == (503, b"the spool cannot be read\n")


def test_what_goes_wrong_is_told_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Queue) -> None:
        raise ValueError("Doe^Jane")

    monkeypatch.setattr(Queue, "crowds", broken)
    told: list[Event] = []
    answer = _ask(_pages(tmp_path, told.append), "/")
    assert answer.status == 500
    assert [(event.kind, event.message) for event in told] == [(Kind.ERROR, "error: ValueError in web")]
    assert b"Doe" not in answer.body


# --- health ---


def test_a_gateway_that_works_is_healthy(site: Site) -> None:
    port = _start(site)
    answer = look(port, "/healthz")
    assert (answer.status, answer.text) == (200, "ok\n")
    assert "does not work as it should" not in look(port, "/").text


def test_a_full_disk_is_no_health(site: Site) -> None:
    port = _start(site, limits={"free_disk_mb": 10**9})
    answer = look(port, "/healthz")
    assert (answer.status, answer.text) == (503, "the disk is full: nothing is accepted\n")
    assert "the disk is full" in look(port, "/").text
    assert "covid_ct_gateway_healthy 0.0" in look(port, "/metrics").text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_no_health(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(_: object) -> bool:
        raise SystemExit

    monkeypatch.setattr("app.gateway.service.Gateway._send", ends)
    port = _start(site)
    wait_until(lambda: look(port, "/healthz").text == "the thread that is to send has ended\n")
    assert look(port, "/healthz").status == 503


def test_a_gateway_that_does_not_listen_is_no_health(site: Site) -> None:
    port = free_port()
    gateway = site.start(web={"port": port})
    server = gateway._receiver._server
    server.server_close()
    answer = look(port, "/healthz")
    assert (answer.status, answer.text) == (503, "nobody listens for associations\n")


# --- begin and end ---


def test_a_port_that_is_taken_is_said_and_nothing_is_left_running(site: Site) -> None:
    """It may be free when whoever starts the gateway tries again: no fault of the configuration."""
    port = _start(site)
    other = Site(site.folder / "other", site.stack)
    with pytest.raises(
        RunFailed, match=rf"cannot listen on 127\.0\.0\.1, port {port}, for the web: Address already in use"
    ):
        other.start(web={"port": port})
    with pytest.raises(RunFailed, match=rf"cannot listen on 127\.0\.0\.1, port {site.port}:"):  # that of DICOM
        other.start(port=site.port, web={"port": free_port()})
    for host in ({"host": "192.0.2.1"}, {"web": {"host": "192.0.2.1", "port": free_port()}}):
        with pytest.raises(RunFailed, match=r"cannot listen on 192\.0\.2\.1.*: Cannot assign requested address"):
            other.start(**host)
    assert sum(thread.name == "web" for thread in threading.enumerate()) == 1


def test_when_the_gateway_ends_so_does_the_web(site: Site) -> None:
    before = set(threading.enumerate())
    port = free_port()
    with site.stack:
        site.start(web={"port": port})
        assert look(port, "/healthz").status == 200
    with pytest.raises(ConnectionRefusedError):
        look(port, "/healthz")
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name == "web" or name.startswith("waitress")}


def test_without_web_there_is_none(site: Site) -> None:
    site.start()
    assert not any(thread.name == "web" for thread in threading.enumerate())


def test_where_to_listen_is_an_address(site: Site) -> None:
    read = site.configured(web={})
    assert read.web is not None
    assert (str(read.web.host), read.web.port) == ("127.0.0.1", 8080)
    for wrong in ({"host": "localhost"}, {"port": 0}, {"colour": "red"}):
        with pytest.raises(ValueError, match=r"web\."):
            GatewayConfiguration.model_validate(read.model_dump(by_alias=True) | {"web": wrong})
