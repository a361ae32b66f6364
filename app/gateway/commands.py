"""``covid-ct gateway``: run it, look at its jobs, take one up again or drop it; ``covid-ct fetch``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.console import tell
from app.outcome import UsageError

if TYPE_CHECKING:
    from app.gateway.configuration import GatewayConfiguration
    from app.gateway.events import Event, Tell
    from app.gateway.spool import Spool


def add_gateway_arguments(
    parser: argparse.ArgumentParser, models: Callable[[], Path], cache: Callable[[str | None], Path | None]
) -> None:
    """Declare ``covid-ct gateway``.

    Parameters
    ----------
    parser : ArgumentParser
        Of the command.
    models, cache : callable
        Return the folder of the models, and that of what can be made again.
    """
    parser.add_argument(
        "action",
        nargs="?",
        choices=list(_ACTIONS),
        default="run",
        help="run: receive, run and send until it is stopped (default); jobs: list the studies; retry: take up again"
        " what failed or was refused; drop: forget a study, and delete it",
    )
    parser.add_argument("study", nargs="?", metavar="UID", help="Study Instance UID, with retry and drop")
    parser.add_argument(
        "-c", "--config", metavar="FILE", type=Path, required=True, help="gateway.yaml, see docs/pacs.md"
    )
    parser.set_defaults(command=_gateway, models=models, cache=cache)


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``covid-ct fetch``."""
    parser.add_argument("study", metavar="UID", help="Study Instance UID")
    parser.add_argument("-f", "--from", dest="source", metavar="NAME", required=True, help="a source of gateway.yaml")
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, required=True, help="gateway.yaml")
    parser.set_defaults(command=_fetch)


def _fetch(arguments: argparse.Namespace) -> None:
    _check_packages()
    from app.gateway.configuration import load_gateway
    from app.gateway.events import as_text
    from app.gateway.fetch import fetch
    from app.gateway.jobs import Jobs
    from app.gateway.service import TABLE
    from app.gateway.spool import Spool

    configuration = load_gateway(arguments.config)
    spool = Spool(configuration.spool, configuration.limits.free_bytes)
    audit = _audit(configuration, spool)

    def hear(event: Event) -> None:
        audit(event)
        tell(as_text(event, time.time()))

    with closing(Jobs(configuration.spool / TABLE)) as jobs:
        fetch(configuration, spool, jobs, arguments.source, arguments.study, hear)


def _check_packages() -> None:
    if find_spec("pynetdicom") is None or find_spec("dicomweb_client") is None:
        raise UsageError("a package for the gateway is missing: pip install -c constraints.txt '.[gateway]'")


def _gateway(arguments: argparse.Namespace) -> None:
    if (arguments.action in ("retry", "drop")) != (arguments.study is not None):
        raise UsageError("retry and drop take the UID of a study, the other actions none")
    _check_packages()
    _ACTIONS[arguments.action](arguments)


def _run(arguments: argparse.Namespace) -> None:
    from app.gateway.configuration import load_gateway
    from app.gateway.events import as_json, as_text
    from app.gateway.service import Gateway
    from app.gateway.worker import How, Worker
    from app.settings import load_settings

    configuration = load_gateway(arguments.config)
    settings = load_settings(f"{name}={value}" for name, value in configuration.settings.items())
    how = How(arguments.models(), settings, configuration.rules, arguments.cache(None))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    form = as_json if configuration.log == "json" else as_text
    with Gateway(
        configuration,
        Worker(how, configuration.limits.run_seconds),
        lambda event: tell(form(event, time.time())),
    ):
        stop.wait()


def _list(arguments: argparse.Namespace) -> None:
    from app.gateway.events import as_date
    from app.gateway.service import open_table

    with open_table(arguments.config) as (_, jobs, _):
        for job in jobs.all():
            sys.stdout.write(f"{job.study}  {job.state:9}  since {as_date(job.since)}  {job.reason}".rstrip() + "\n")


def _retry(arguments: argparse.Namespace) -> None:
    from app.gateway.events import Event, Kind
    from app.gateway.service import open_table

    with open_table(arguments.config) as (configuration, jobs, spool):
        results = any(spool.results(arguments.study).rglob("*.dcm"))
        if not jobs.retry(arguments.study, time.time(), results=results):
            raise UsageError(f"study {arguments.study} has neither failed nor been refused; see covid-ct gateway jobs")
        _audit(configuration, spool)(Event(Kind.RETRIED, "taken up again", arguments.study))


def _drop(arguments: argparse.Namespace) -> None:
    from app.gateway.events import Event, Kind
    from app.gateway.service import delete, open_table

    with open_table(arguments.config) as (configuration, jobs, spool):
        if not delete(jobs, spool, Event(Kind.DROPPED, "dropped", arguments.study), _audit(configuration, spool)):
            raise UsageError(f"study {arguments.study} arrives, runs, or is not known; see covid-ct gateway jobs")


def _audit(configuration: GatewayConfiguration, spool: Spool) -> Tell:
    """Return the audit trail of a gateway, which says that it was a person, and who."""
    from app.gateway.audit import AUDIT_LOG, AuditTrail, Reporter, person
    from app.gateway.events import as_text

    reporter = Reporter(configuration.ae_title, person())
    path = configuration.spool / AUDIT_LOG
    return AuditTrail(path, reporter, spool, lambda trouble: tell(as_text(trouble, time.time())))


_ACTIONS = {"run": _run, "jobs": _list, "retry": _retry, "drop": _drop}
