"""The pages on which people watch a gateway, as Jinja templates beside this file."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.gateway.events import as_date
from app.gateway.jobs import Delivery, Job, State
from app.gateway.queue import UNFINISHED, Crowd
from operators.software import NAME, RESEARCH_NOTICE, VERSION

REFRESH = 10
"""Seconds after which a page is loaded again while something is to change."""
FOLDER = Path(__file__).with_name("templates")

SIGNS = {
    State.FETCHING: "⇣",
    State.RECEIVING: "↓",
    State.READY: "⋯",
    State.RUNNING: "▶",
    State.SENDING: "↑",
    State.COMMITTED: "✓",
    State.REFUSED: "⊘",
    State.FAILED: "✕",
    State.DROPPING: "⌫",
}
"""Beside the name of a state: colours alone would say nothing to many."""


@dataclass
class Sent:
    """What has become of the results of a study at a destination."""

    objects: int = 0
    stored: int = 0
    committed: int = 0


def sent(deliveries: Iterable[Delivery]) -> dict[str, Sent]:
    """Count deliveries by destination."""
    counts: defaultdict[str, Sent] = defaultdict(Sent)
    for each in deliveries:
        count = counts[each.destination]
        count.objects += 1
        count.stored += each.stored
        count.committed += each.committed
    return dict(counts)


def queue_page(
    title: str,
    troubles: Sequence[str],
    crowds: Mapping[State, Crowd],
    jobs: Sequence[Job],
    state: State | None,
    number: int,
    last: int,
) -> str:
    """Show the queue.

    Parameters
    ----------
    title : str
        AE title of the gateway.
    troubles : sequence of str
        What keeps it from working.
    crowds : mapping
        The studies in each state.
    jobs : sequence of Job
        Those to show.
    state : State, optional
        The only one that is shown.
    number, last : int
        Of this page, and of the last one.
    """
    return _render(
        "queue.html",
        title=title,
        root="./",
        refresh=REFRESH,
        troubles=troubles,
        crowds=crowds,
        jobs=jobs,
        chosen=state,
        number=number,
        last=last,
    )


def study_page(title: str, job: Job, deliveries: Sequence[Delivery], picture: bool) -> str:
    """Show a study; ``picture`` says whether there is one."""
    return _render(
        "study.html",
        title=title,
        root="../",
        refresh=REFRESH if job.state in UNFINISHED else None,
        job=job,
        waits=job.failures > 0 and job.state in UNFINISHED,
        sent=sent(deliveries),
        picture=picture,
    )


def _render(name: str, **values: object) -> str:
    return _TEMPLATES.get_template(name).render(values, now=time.time())


def _readable(time: float) -> str:
    return as_date(time)[:19].replace("T", " ")


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"readable": _readable, "iso": as_date, "zone": lambda time: as_date(time)[19:]}
    made.globals |= {"software": f"{NAME} {VERSION}", "notice": RESEARCH_NOTICE, "signs": SIGNS}
    return made


_TEMPLATES = _environment()
