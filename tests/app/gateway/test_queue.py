"""The job table as it is read by those who watch, and as an earlier version has left it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.gateway.jobs import Delivery, Job, Jobs, State
from app.gateway.queue import Crowd, Queue
from app.outcome import UsageError

FIRST_VERSION = """
CREATE TABLE studies (
    study TEXT PRIMARY KEY, state TEXT NOT NULL, revision INTEGER NOT NULL, failures INTEGER NOT NULL,
    due REAL NOT NULL, since REAL NOT NULL, caller TEXT NOT NULL, reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX by_state ON studies (state, due);
CREATE TABLE deliveries (
    study TEXT NOT NULL, destination TEXT NOT NULL, path TEXT NOT NULL, sop_class TEXT NOT NULL,
    sop_instance TEXT NOT NULL, stored INTEGER NOT NULL, committed INTEGER NOT NULL,
    PRIMARY KEY (study, destination, sop_instance)
) STRICT, WITHOUT ROWID;
INSERT INTO studies VALUES ('1.1', 'failed', 3, 2, 5.0, 4.0, 'SCANNER', 'pacs: status A700');
INSERT INTO studies VALUES ('1.2', 'running', 1, 0, 6.0, 6.0, 'OTHER', '');
INSERT INTO deliveries VALUES ('1.1', 'pacs', 'sr/report.dcm', '1.3', '1.4', 1, 0);
"""


def _table(path: Path) -> None:
    """Make a table with studies that changed at the seconds 1, 2 and 3."""
    with closing(Jobs(path)) as jobs:
        for second, study in enumerate(("1.1", "1.2", "1.3"), start=1):
            jobs.receive(study, "SCANNER", float(second))
        jobs.settle(3.0, ["1.1", "1.2"])


def test_a_table_of_the_first_version_is_taken_over_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(FIRST_VERSION)
    old = [
        Job("1.2", State.RUNNING, 1, 0, 6.0, 6.0, "OTHER", ""),
        Job("1.1", State.FAILED, 3, 2, 5.0, 4.0, "SCANNER", "pacs: status A700"),
    ]
    for _ in range(2):  # the second time there is nothing to upgrade
        with closing(Jobs(path)) as jobs:
            assert jobs.all() == old
            assert jobs.deliveries("1.1") == [Delivery("1.1", 0.0, "pacs", "sr/report.dcm", "1.3", "1.4", True, False)]
    with closing(Jobs(path)) as jobs:
        jobs.took(old[0], 12.5, 20.0)
        jobs.refused(old[0], "NO_CT", 20.0)
        assert jobs.receive("1.3", "SCANNER", 30.0)
        new, ran, _ = jobs.all()
    assert (ran.state, ran.ran, ran.seconds, ran.arrived) == (State.REFUSED, 20.0, 12.5, None)
    assert (new.arrived, new.ran, new.seconds) == (30.0, None, None)


def test_a_table_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    _table(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1000")
    with pytest.raises(UsageError, match="a later version of the gateway"):
        Jobs(path)


def test_what_came_first_and_how_long_a_run_took_stay_known(tmp_path: Path) -> None:
    with closing(Jobs(tmp_path / "jobs")) as jobs:
        jobs.receive("1.1", "SCANNER", 1.0)
        jobs.settle(2.0, [])
        job = jobs.claim(3.0)
        assert job is not None
        jobs.took(job, 60.0, 63.0)
        jobs.ran(job, [], 64.0)
        jobs.receive("1.1", "OTHER", 70.0)
        (late,) = jobs.all()
    assert (late.state, late.arrived, late.ran, late.seconds) == (State.RECEIVING, 1.0, 63.0, 60.0)


def test_studies_are_counted_by_state(tmp_path: Path) -> None:
    _table(tmp_path / "jobs")
    crowds = Queue(tmp_path / "jobs").crowds()
    assert list(crowds) == list(State)
    assert crowds[State.RECEIVING] == Crowd(2, 1.0)
    assert crowds[State.READY] == Crowd(1, 3.0)
    assert crowds[State.FAILED] == Crowd(0, None)


def test_pages_hold_every_study_once_the_latest_change_first(tmp_path: Path) -> None:
    _table(tmp_path / "jobs")
    queue = Queue(tmp_path / "jobs")
    pages = [[job.study for job in queue.page(None, number, 2)] for number in (1, 2, 3)]
    assert pages == [["1.3", "1.2"], ["1.1"], []]
    assert [job.study for job in queue.page(State.RECEIVING, 1, 2)] == ["1.2", "1.1"]


def test_a_study_is_found_with_its_deliveries(tmp_path: Path) -> None:
    _table(tmp_path / "jobs")
    sent = Delivery("1.3", 5.0, "pacs", "sr/report.dcm", "1.4", "1.5")
    with closing(Jobs(tmp_path / "jobs")) as jobs:
        job = jobs.claim(4.0)
        assert job is not None
        jobs.ran(job, [sent], 5.0)
        jobs.committed(sent)
        found = Queue(tmp_path / "jobs").study("1.3")
        assert found == (jobs.all()[0], jobs.deliveries("1.3"))
    assert found is not None
    assert found[1][0].committed
    assert Queue(tmp_path / "jobs").study("1.4") is None


def test_looking_neither_waits_for_a_writer_nor_writes(tmp_path: Path) -> None:
    _table(tmp_path / "jobs")
    with closing(Jobs(tmp_path / "jobs")) as jobs, jobs._transaction() as database:
        database.execute("DELETE FROM studies")
        queue = Queue(tmp_path / "jobs")
        assert len(queue.page(None, 1, 9)) == 3
        with pytest.raises(sqlite3.OperationalError, match="readonly"), queue._look() as look:
            look.execute("DELETE FROM studies")


def test_a_table_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        Queue(tmp_path / "jobs").crowds()
    assert not (tmp_path / "jobs").exists()
