"""The job table: what state every study is in. Each change is one transaction of SQLite, on the disk when it returns.

A study goes ``receiving`` -> ``ready`` -> ``running`` -> ``sending`` -> ``committed``, or ends ``refused``; one that is
fetched is ``fetching`` before, until all of it is there. What fails again and again is ``failed`` and waits for a
person. An instance that comes late takes a study back to ``receiving``, from wherever it is; what a run that had begun
without it has found is thrown away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import astuple, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.gateway.database import Database
from app.outcome import UsageError


class State(StrEnum):
    """Of a study."""

    FETCHING = "fetching"
    RECEIVING = "receiving"
    READY = "ready"
    RUNNING = "running"
    SENDING = "sending"
    COMMITTED = "committed"
    REFUSED = "refused"
    FAILED = "failed"
    DROPPING = "dropping"


@dataclass(frozen=True, slots=True)
class Job:
    """A study, as the table has it.

    Parameters
    ----------
    study : str
        Study Instance UID.
    state : State
    revision : int
        Grows whenever new instances begin to arrive.
    failures : int
        In a row, of the run or of the delivery.
    due : float
        When the next step may be taken, in seconds since 1970.
    since : float
        When the state was entered.
    caller : str
        AE title that sent the latest instances.
    reason : str
        Of a refusal or a failure: one line without patient data.
    arrived : float, optional
        When the first instance came.
    ran, seconds : float, optional
        When the latest run ended, however it did, and how long it took.
    """

    study: str
    state: State
    revision: int
    failures: int
    due: float
    since: float
    caller: str
    reason: str
    arrived: float | None = None
    ran: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """An object that is to reach a destination.

    Parameters
    ----------
    study : str
        Study Instance UID.
    ran : float
        When the run ended that made it: what is said of an earlier object of the same UID is not said of this one.
    destination, path : str
        ``path`` is relative to the results of the study.
    sop_class, sop_instance : str
        UIDs of the object.
    stored : bool
        The destination has accepted it.
    committed : bool
        The destination has said that it keeps it, or is not asked to.
    """

    study: str
    ran: float
    destination: str
    path: str
    sop_class: str
    sop_instance: str
    stored: bool = False
    committed: bool = False


_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    study TEXT PRIMARY KEY, state TEXT NOT NULL, revision INTEGER NOT NULL, failures INTEGER NOT NULL,
    due REAL NOT NULL, since REAL NOT NULL, caller TEXT NOT NULL, reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON studies (state, due);
CREATE TABLE IF NOT EXISTS deliveries (
    study TEXT NOT NULL, destination TEXT NOT NULL, path TEXT NOT NULL, sop_class TEXT NOT NULL,
    sop_instance TEXT NOT NULL, stored INTEGER NOT NULL, committed INTEGER NOT NULL,
    PRIMARY KEY (study, destination, sop_instance)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS promises (study TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
_UPGRADES = (
    (
        "ALTER TABLE studies ADD COLUMN arrived REAL",
        "ALTER TABLE studies ADD COLUMN ran REAL",
        "ALTER TABLE studies ADD COLUMN seconds REAL",
        "CREATE INDEX by_change ON studies (since)",
    ),
    ("ALTER TABLE deliveries ADD COLUMN ran REAL NOT NULL DEFAULT 0",),
)
"""What each version since the first has changed; ``user_version`` of the file counts those that it has."""
COLUMNS = "study, state, revision, failures, due, since, caller, reason, arrived, ran, seconds"
"""Of a study, in the order of :class:`Job`."""
_OF_DELIVERIES = "study, ran, destination, path, sop_class, sop_instance, stored, committed"
"""Columns, in the order of :class:`Delivery`."""


class Jobs:
    """The table in a file, for all threads of a process.

    Parameters
    ----------
    path : Path
        Made where absent, and upgraded where an earlier version has made it.

    Raises
    ------
    UsageError
        If a later version has made it.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _SCHEMA)
        self._transaction = self._database.transaction
        with self._transaction() as database:
            _upgrade(database, path)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # --- what arrives ---

    def receive(
        self, study: str, caller: str, now: float, state: State = State.RECEIVING, *, again: bool = False
    ) -> bool:
        """Note that new instances of a study begin to arrive, before the first is acknowledged.

        A run in progress goes on, but what it finds will not count. False if the study is just being deleted or, where
        some of it has come ``again``, has been. With the state ``FETCHING`` nothing else is done with it before
        :meth:`fetched`.
        """
        with self._transaction() as database:
            known = {job.state for job in _studies(database, "study = ?", study)}
            if State.DROPPING in known or (again and not known):
                return False
            database.execute(
                "INSERT INTO studies (study, state, revision, failures, due, since, caller, reason, arrived)"
                " VALUES (?, ?, 1, 0, ?, ?, ?, '', ?)"
                " ON CONFLICT (study) DO UPDATE SET revision = revision + 1, caller = excluded.caller, failures = 0,"
                " due = excluded.due, reason = '', since = excluded.since,"
                " state = iif(excluded.state <> ? AND state IN (?, ?), state, excluded.state)",
                (study, state, now, now, caller, now, State.FETCHING, State.FETCHING, State.RUNNING),
            )
            database.execute("DELETE FROM deliveries WHERE study = ?", (study,))
        return True

    def knows(self, study: str) -> bool:
        """Say whether a study is in the table, and is to stay."""
        with self._transaction() as database:
            return bool(_studies(database, "study = ? AND state <> ?", study, State.DROPPING))

    def received(self, study: str, now: float, quiet: float) -> None:
        """Note that an association that sent instances of a study has ended: the quiet time begins."""
        with self._transaction() as database:
            database.execute(
                "UPDATE studies SET due = ? WHERE study = ? AND state IN (?, ?)",
                (now + quiet, study, State.RECEIVING, State.RUNNING),
            )

    def fetched(self, study: str, now: float, problem: str = "") -> None:
        """Note that all of a study that was fetched is there, or what was in the way: then it is fetched anew."""
        with self._transaction() as database:
            for job in _studies(database, "study = ? AND state = ?", study, State.FETCHING):
                state = State.FETCHING if problem else State.RECEIVING
                _enter(database, job.study, state, now, problem)

    def settle(self, now: float, arriving: Iterable[str]) -> list[Job]:
        """Make ready what is complete: the quiet time is over, and no association sends any of it; return which."""
        open_now = set(arriving)
        with self._transaction() as database:
            due = _studies(database, "state = ? AND due <= ?", State.RECEIVING, now)
            complete = [job for job in due if job.study not in open_now]
            for job in complete:
                _enter(database, job.study, State.READY, now)
        return complete

    def forget(self, job: Job) -> None:
        """Forget a study that is ready and of which nothing is there, unless something has begun to arrive."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM studies WHERE study = ? AND state = ? AND revision = ?",
                (job.study, State.READY, job.revision),
            )

    # --- runs ---

    def claim(self, now: float) -> Job | None:
        """Take the study that has been ready for longest to run it; None where there is none.

        What an earlier run has found is not to be sent any more: this one takes its place.
        """
        with self._transaction() as database:
            for job in _studies(database, "state = ? AND due <= ?", State.READY, now):
                database.execute("DELETE FROM deliveries WHERE study = ?", (job.study,))
                _enter(database, job.study, State.RUNNING, now)
                return job
        return None

    def took(self, job: Job, seconds: float, now: float) -> None:
        """Note that a run has ended, however it did, and how long it took."""
        with self._transaction() as database:
            database.execute("UPDATE studies SET ran = ?, seconds = ? WHERE study = ?", (now, seconds, job.study))

    def ran(self, job: Job, deliveries: Iterable[Delivery], now: float) -> bool:
        """Note that a run has ended with results, and what is to be sent; False if they are outdated already."""
        with self._transaction() as database:
            if _outdated(database, job, now):
                return False
            database.executemany(
                f"INSERT INTO deliveries ({_OF_DELIVERIES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                [astuple(each) for each in deliveries],
            )
            _enter(database, job.study, State.SENDING, now)
        return True

    def refused(self, job: Job, reason: str, now: float) -> None:
        """Note that the application refused a study."""
        with self._transaction() as database:
            if not _outdated(database, job, now):
                _enter(database, job.study, State.REFUSED, now, reason)

    def broke(self, job: Job, reason: str, now: float, most: int, pause: float) -> None:
        """Note that a run failed; it is repeated after a pause that doubles, unless it has failed ``most`` times."""
        with self._transaction() as database:
            if _outdated(database, job, now):
                return
            failures = job.failures + 1
            state = State.FAILED if failures >= most else State.READY
            _enter(database, job.study, state, now, reason, failures, now + pause * 2 ** (failures - 1))

    def resume(self, now: float) -> None:
        """Take up again what is called running when nothing runs: its process died, or its end could not be noted."""
        with self._transaction() as database:
            for job in _studies(database, "state = ?", State.RUNNING):
                _enter(database, job.study, State.RECEIVING, now, job.reason, job.failures, max(job.due, now))

    def recover(self, studies: Iterable[str], now: float, quiet: float) -> list[str]:
        """Begin where a process that is no more has left off.

        Parameters
        ----------
        studies : iterable of str
            Of which there are folders; they all get into the table.
        now, quiet : float
            The quiet time begins anew for what was arriving.

        Returns
        -------
        list of str
            Studies whose deletion has begun and is to be ended.
        """
        self.resume(now)
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO studies (study, state, revision, failures, due, since, caller, reason)"
                " VALUES (?, ?, 1, 0, ?, ?, '', '') ON CONFLICT DO NOTHING",
                [(study, State.RECEIVING, now, now) for study in studies],
            )
            database.execute("UPDATE studies SET due = ? WHERE state = ?", (now + quiet, State.RECEIVING))
            return [job.study for job in _studies(database, "state = ?", State.DROPPING)]

    # --- deliveries ---

    def outgoing(self, now: float) -> list[Job]:
        """Return the studies of which something is to be sent now, those that wait for longest first."""
        with self._transaction() as database:
            return _studies(database, "state = ? AND due <= ?", State.SENDING, now)

    def deliveries(self, study: str) -> list[Delivery]:
        """Return all objects of a study that are or were to be sent."""
        with self._transaction() as database:
            return deliveries_of(database, study)

    def stored(self, delivery: Delivery) -> None:
        """Note that a destination has accepted an object."""
        self._mark("stored = 1", delivery)

    def committed(self, delivery: Delivery) -> None:
        """Note that a destination has said that it keeps an object, or need not say so."""
        self._mark("stored = 1, committed = 1", delivery)

    def lost(self, delivery: Delivery) -> None:
        """Note that a destination does not keep an object: it is to be sent again."""
        self._mark("stored = 0, committed = 0", delivery)

    def delivered(self, job: Job, now: float) -> bool:
        """End a study all of whose objects are committed; say whether it is."""
        with self._transaction() as database:
            open_ones = database.execute(
                "SELECT count(*) FROM deliveries WHERE study = ? AND NOT committed", (job.study,)
            ).fetchone()[0]
            current = _studies(database, "study = ? AND state = ?", job.study, State.SENDING)
            if open_ones or not current or current[0].revision != job.revision:
                return False
            _enter(database, job.study, State.COMMITTED, now)
        return True

    def postpone(self, job: Job, reason: str, now: float, pause: float, longest: float, give_up: float) -> None:
        """Note why not all could be delivered; try again after a pause that doubles, or leave it to a person."""
        with self._transaction() as database:
            current = _studies(database, "study = ? AND state = ?", job.study, State.SENDING)
            if not current or current[0].revision != job.revision:
                return
            failures = current[0].failures + 1
            if now - current[0].since >= give_up:
                _enter(database, job.study, State.FAILED, now, reason, failures)
                return
            due = now + pause_after(failures, pause, longest)
            database.execute(
                "UPDATE studies SET failures = ?, due = ?, reason = ? WHERE study = ?",
                (failures, due, reason, job.study),
            )

    def promise(self, studies: Iterable[str]) -> set[str]:
        """Note which studies somebody is about to be told are kept; return those that are not just being deleted."""
        with self._transaction() as database:
            there = {
                study for study in studies if _studies(database, "study = ? AND state <> ?", study, State.DROPPING)
            }
            database.executemany("INSERT OR IGNORE INTO promises VALUES (?)", [(study,) for study in there])
        return there

    def ended(self, before: float) -> list[Job]:
        """Return the studies that were delivered before a time, and of which nobody was told that they are kept."""
        condition = "state = ? AND since < ? AND study NOT IN (SELECT study FROM promises)"
        with self._transaction() as database:
            return _studies(database, condition, State.COMMITTED, before)

    # --- people ---

    def all(self) -> list[Job]:
        """Return all studies, the latest change first."""
        with self._transaction() as database:
            return sorted(_studies(database, "1"), key=lambda job: -job.since)

    def retry(self, study: str, now: float, *, results: bool) -> bool:
        """Take up again what was given up or refused; False if it is neither.

        Where there are no results any more, it is run again.
        """
        with self._transaction() as database:
            ended = _studies(database, "study = ? AND state IN (?, ?)", study, State.FAILED, State.REFUSED)
            if not ended:
                return False
            to_send = database.execute("SELECT count(*) FROM deliveries WHERE study = ?", (study,)).fetchone()[0]
            _enter(database, study, State.SENDING if to_send and results else State.READY, now)
        return True

    def drop(self, study: str, now: float, revision: int | None = None) -> bool:
        """Begin to delete a study; False if it is arriving, running, not known, or not of the given revision any more.

        Until :meth:`dropped`, when its files are gone, nothing of it is taken in.
        """
        with self._transaction() as database:
            found = _studies(database, "study = ? AND state NOT IN (?, ?)", study, State.RECEIVING, State.RUNNING)
            if not found or revision not in (None, found[0].revision):
                return False
            _enter(database, study, State.DROPPING, now)
        return True

    def dropped(self, study: str) -> None:
        """Forget a study whose files are gone."""
        with self._transaction() as database:
            database.execute("DELETE FROM deliveries WHERE study = ?", (study,))
            database.execute("DELETE FROM promises WHERE study = ?", (study,))
            database.execute("DELETE FROM studies WHERE study = ? AND state = ?", (study, State.DROPPING))

    def _mark(self, what: str, delivery: Delivery) -> None:
        with self._transaction() as database:
            database.execute(
                f"UPDATE deliveries SET {what}"  # noqa: S608 - what is ours
                " WHERE study = ? AND ran = ? AND destination = ? AND sop_instance = ?",
                (delivery.study, delivery.ran, delivery.destination, delivery.sop_instance),
            )


def _upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the state of this version; what is in it stays."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(_UPGRADES):
        raise UsageError(f"a later version of the gateway has made {path}")
    for changes in _UPGRADES[version:]:
        for change in changes:
            database.execute(change)
    database.execute(f"PRAGMA user_version = {len(_UPGRADES)}")


def _studies(database: sqlite3.Connection, condition: str, *values: object) -> list[Job]:
    query = f"SELECT {COLUMNS} FROM studies WHERE {condition} ORDER BY due, since"  # noqa: S608 - conditions of ours
    with closing(database.execute(query, values)) as rows:
        return [job_of(row) for row in rows]


def job_of(row: tuple[Any, ...]) -> Job:
    """Return the job of a row of :data:`COLUMNS`."""
    study, state, *rest = row
    return Job(study, State(state), *rest)


def deliveries_of(database: sqlite3.Connection, study: str) -> list[Delivery]:
    """Return what of a study is or was to be sent."""
    query = f"SELECT {_OF_DELIVERIES} FROM deliveries WHERE study = ? ORDER BY destination, path"  # noqa: S608
    return [Delivery(*row[:6], *map(bool, row[6:])) for row in database.execute(query, (study,))]


def pause_after(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row (1 or more): twice as many each time."""
    return min(first * 2.0 ** min(failures - 1, 30), longest)


def _enter(
    database: sqlite3.Connection,
    study: str,
    state: State,
    now: float,
    reason: str = "",
    failures: int = 0,
    due: float | None = None,
) -> None:
    database.execute(
        "UPDATE studies SET state = ?, since = ?, due = ?, reason = ?, failures = ? WHERE study = ?",
        (state, now, now if due is None else due, reason, failures, study),
    )


def _outdated(database: sqlite3.Connection, job: Job, now: float) -> bool:
    """Send a study back to ``receiving`` if more of it has come since a run began; say whether it is so."""
    current = _studies(database, "study = ?", job.study)
    if not current:
        return True  # dropped meanwhile
    if current[0].revision == job.revision:
        return False
    if current[0].state == State.RUNNING:
        _enter(database, job.study, State.RECEIVING, now, due=current[0].due)
    return True
