"""What can be seen of the job table, without holding up those who write to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.gateway.jobs import COLUMNS, Delivery, Job, State, deliveries_of, job_of

UNFINISHED = (State.FETCHING, State.RECEIVING, State.READY, State.RUNNING, State.SENDING)
"""States that a study leaves without a person."""
_PATIENCE = 5.0
"""Seconds that somebody else may keep the file locked."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """The studies in a state.

    Parameters
    ----------
    number : int
    since : float, optional
        Since when the first of them has been in it, in seconds since 1970.
    """

    number: int = 0
    since: float | None = None


class Queue:
    """The job table, to be read alone; for any thread.

    Each look opens the file anew, for reading, and sees it at one moment: SQLite lets others write meanwhile.

    Parameters
    ----------
    path : Path
        Must be there when it is looked at, else sqlite3.Error.
    """

    def __init__(self, path: Path) -> None:
        self._address = f"{path.absolute().as_uri()}?mode=ro"

    def crowds(self) -> dict[State, Crowd]:
        """Return how many studies there are in each state."""
        with self._look() as database:
            rows = database.execute("SELECT state, count(*), min(since) FROM studies GROUP BY state").fetchall()
        return dict.fromkeys(State, Crowd()) | {State(state): Crowd(*rest) for state, *rest in rows}

    def page(self, state: State | None, number: int, size: int) -> list[Job]:
        """Return the studies on a page, the latest change first; ``number`` begins with 1."""
        with self._look() as database:
            rows = database.execute(
                f"SELECT {COLUMNS} FROM studies WHERE ?1 IS NULL OR state = ?1"  # noqa: S608 - columns of ours
                " ORDER BY since DESC, study LIMIT ?2 OFFSET ?3",
                (state, size, (number - 1) * size),
            )
            return [job_of(row) for row in rows]

    def study(self, study: str) -> tuple[Job, list[Delivery]] | None:
        """Return a study and what of it is or was to be sent; None if it is not known."""
        with self._look() as database:
            row = database.execute(f"SELECT {COLUMNS} FROM studies WHERE study = ?", (study,)).fetchone()  # noqa: S608
            return row and (job_of(row), deliveries_of(database, study))

    @contextmanager
    def _look(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._address, uri=True, isolation_level=None, timeout=_PATIENCE)
        with closing(connection) as database:
            database.execute("BEGIN")
            yield database
