"""``covid-ct gateway`` as a person uses it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from app.gateway.configuration import load_gateway
from app.gateway.jobs import Delivery, Job, Jobs, State
from app.gateway.service import TABLE
from app.gateway.spool import Spool
from app.outcome import ExitStatus, UsageError
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.spooled import keep

STUDY = "1.2.3"
STATED: dict[str, Any] = {
    "spool": "spool",
    "callers": [{"ae_title": "SCANNER", "address": "192.0.2.1"}],
    "destinations": [{"name": "pacs", "ae_title": "PACS", "host": "pacs.example", "port": 104}],
}


def configuration(folder: Path, **changes: Any) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(STATED | changes), "utf-8")
    return path


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    spool = Spool(tmp_path / "spool", 0)
    keep(spool, STUDY, "1.2.3.4", b"an image")
    return Jobs(tmp_path / "spool" / TABLE)


def test_what_is_stated_is_read_and_the_rest_has_defaults(tmp_path: Path) -> None:
    read = load_gateway(configuration(tmp_path, settings={"pdf": True}))
    assert read.spool == tmp_path / "spool"
    assert (read.ae_title, read.host, read.port, read.quiet_seconds) == ("COVIDCT", "127.0.0.1", 11112, 30.0)
    assert read.destinations[0].commitment
    assert read.settings == {"pdf": True}
    assert read.rules == ANY_SERIES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callers": []}, "callers: tuple should have at least 1 item"),
        ({"colour": "red"}, "colour: extra inputs are not permitted"),
        ({"ae_title": "A TITLE OF SEVENTEEN"}, "ae_title: string should match"),
        ({"ae_title": " SPACE"}, "ae_title: string should match"),
        ({"port": 0}, "port: input should be greater"),
        ({"destinations": STATED["destinations"] * 2}, "gateway: two destinations have the same name"),
        ({"limits": {"runs": 0}}, "limits.runs: input should be greater"),
        ({"series-selection": {"colour": 1}}, "series-selection.colour: extra inputs"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_gateway(configuration(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_jobs_are_listed_taken_up_again_and_dropped(
    tmp_path: Path, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(configuration(tmp_path))
    with closing(jobs):
        jobs.receive(STUDY, "SCANNER", 0.0)
        jobs.settle(0.0, [])
        job = jobs.claim(0.0)
        assert job is not None
        jobs.broke(job, "the worker died: signal 9", 0.0, most=1, pause=1.0)
    assert main(["gateway", "jobs", "-c", config]) == ExitStatus.OK
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == [STUDY, "failed"]
    assert line.endswith("the worker died: signal 9")
    assert main(["gateway", "retry", STUDY, "-c", config]) == ExitStatus.OK
    assert main(["gateway", "retry", STUDY, "-c", config]) == ExitStatus.USAGE
    assert main(["gateway", "jobs", "-c", config]) == ExitStatus.OK
    assert capsys.readouterr().out.split()[1] == "ready"
    assert main(["gateway", "drop", STUDY, "-c", config]) == ExitStatus.OK
    assert not list((tmp_path / "spool" / "studies").iterdir())
    assert main(["gateway", "drop", STUDY, "-c", config]) == ExitStatus.USAGE


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["retry"], "retry and drop take the UID of a study"),
        (["jobs", STUDY], "retry and drop take the UID of a study"),
        (["jobs"], "has never run"),
        (["drop", "../.."], "has never run"),
    ],
)
def test_wrong_usage_is_a_line(
    tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gateway", *arguments, "-c", str(configuration(tmp_path))]) == ExitStatus.USAGE
    assert line in capsys.readouterr().err


def test_what_is_running_cannot_be_dropped(jobs: Jobs) -> None:
    with closing(jobs):
        jobs.receive(STUDY, "SCANNER", 0.0)
        jobs.settle(0.0, [])
        jobs.claim(0.0)
        assert not jobs.drop(STUDY, 0.0)
        assert jobs.recover([STUDY, "1.2.4"], 1.0, 10.0) == []
        assert {job.study: job.state for job in jobs.all()} == dict.fromkeys([STUDY, "1.2.4"], State.RECEIVING)
        assert not jobs.drop(STUDY, 1.0)
        jobs.settle(11.0, [])
        assert jobs.drop(STUDY, 11.0)
        assert not jobs.receive(STUDY, "SCANNER", 12.0)
        assert not jobs.knows(STUDY)
        assert jobs.recover([], 13.0, 10.0) == [STUDY]
        jobs.dropped(STUDY)
        assert jobs.receive(STUDY, "SCANNER", 14.0)


SENT = Delivery(STUDY, 0.0, "pacs", "sr/report.dcm", "1.2", "1.3")


def _ran(jobs: Jobs) -> Job:
    """Have a study run that arrived, all at the time 0; its result is to be sent."""
    jobs.receive(STUDY, "SCANNER", 0.0)
    jobs.settle(0.0, [])
    job = jobs.claim(0.0)
    assert job is not None
    assert jobs.ran(job, [SENT], 0.0)
    return job


def test_what_an_earlier_run_found_is_sent_no_more_once_another_has_begun(jobs: Jobs) -> None:
    with closing(jobs):
        job = _ran(jobs)
        jobs.committed(replace(SENT, ran=-1.0))  # of a run before
        assert jobs.deliveries(STUDY) == [SENT]
        jobs.postpone(job, "down", 4.0, pause=5.0, longest=15.0, give_up=0.0)
        assert jobs.retry(STUDY, 5.0, results=False)  # they are gone, it is run again
        again = jobs.claim(6.0)
        assert again is not None
        jobs.broke(again, "the results are of another study", 7.0, most=1, pause=1.0)
        assert jobs.retry(STUDY, 8.0, results=True)  # of the run that failed
        assert (jobs.all()[0].state, jobs.deliveries(STUDY)) == (State.READY, [])


def test_whoever_is_retried_has_all_the_time_again(jobs: Jobs) -> None:
    """Also where an answer to a question from before comes, which knows the study as it was."""
    with closing(jobs):
        _ran(jobs)
        (before,) = jobs.outgoing(0.0)
        jobs.postpone(before, "down", 100.0, pause=5.0, longest=15.0, give_up=100.0)
        assert jobs.all()[0].state == State.FAILED
        assert jobs.retry(STUDY, 200.0, results=True)
        jobs.postpone(before, "lost", 210.0, pause=5.0, longest=15.0, give_up=100.0)
        assert jobs.all()[0].state == State.SENDING


def test_pauses_double_and_end_with_a_person(jobs: Jobs) -> None:
    with closing(jobs):
        _ran(jobs)
        due = []
        for _ in range(4):
            (waiting,) = jobs.outgoing(1e9)
            jobs.postpone(waiting, "down", 0.0, pause=5.0, longest=15.0, give_up=100.0)
            due.append(jobs.all()[0].due)
        assert due == [5.0, 10.0, 15.0, 15.0]
        assert jobs.outgoing(14.0) == []
        jobs.postpone(waiting, "down", 100.0, pause=5.0, longest=15.0, give_up=100.0)
        assert jobs.all()[0].state == State.FAILED
        assert jobs.retry(STUDY, 200.0, results=True)
        assert [each.state for each in jobs.outgoing(200.0)] == [State.SENDING]


def test_what_came_during_a_run_makes_its_result_void(jobs: Jobs) -> None:
    with closing(jobs):
        jobs.receive(STUDY, "SCANNER", 0.0)
        jobs.received(STUDY, 0.0, 30.0)
        assert jobs.settle(29.0, []) == []
        assert jobs.settle(30.0, [STUDY]) == []
        assert [each.study for each in jobs.settle(30.0, [])] == [STUDY]
        job = jobs.claim(30.0)
        assert job is not None
        jobs.receive(STUDY, "SCANNER", 31.0)
        assert jobs.all()[0].state == State.RUNNING
        jobs.received(STUDY, 31.0, 30.0)
        assert not jobs.ran(job, [], 32.0)
        assert (jobs.all()[0].state, jobs.all()[0].due) == (State.RECEIVING, 61.0)
