"""A study of thousands of instances is one study."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
from app.gateway.jobs import State
from tests.app.gateway import raw
from tests.app.gateway.peers import Pacs, listening, wait_until
from tests.app.gateway.process import GatewayProcess
from tests.app.gateway.raw import RawPeer

STUDY = "1.2.3"
GROWTH_MB = 64
TABLE_MB = 8
"""Of the job table with its log, which is cut back at 4 MB: what a study costs does not depend on its instances."""


@pytest.mark.parametrize("instances", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_large_study_is_one_job_and_sent_again_changes_nothing(
    instances: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(Pacs()) as pacs:
        gateway = GatewayProcess(tmp_path, pacs, limits={"free_disk_mb": 0})
        try:
            gateway.wait()
            before = gateway.process.memory_info().rss
            took = [_seconds(lambda: _send(gateway, instances))]
            wait_until(lambda: gateway.states() == {STUDY: State.COMMITTED})
            (job,) = gateway.jobs()
            took.append(_seconds(lambda: _send(gateway, instances)))
            assert gateway.jobs() == [job]
            grown = gateway.process.memory_info().rss - before
            took.append(_seconds(lambda: main(["gateway", "jobs", "-c", str(tmp_path / "gateway.yaml")])))
            assert len(capsys.readouterr().out.splitlines()) == 1
        finally:
            gateway.kill()
    print(f"{instances} instances, again, jobs: {took} s; grown by {grown / 1e6:.0f} MB")  # noqa: T201
    assert [str(each.SeriesDescription) for each in pacs.objects.values()] == [f"{instances} instances"]
    assert len(pacs.received) == 1
    for number in range(instances):
        kept = gateway.studies / STUDY / "in" / f"{_instance(number)}.dcm"
        assert raw.data_set(kept.read_bytes()) == raw.image(STUDY, _instance(number))
    assert grown < GROWTH_MB * 10**6
    assert sum(path.stat().st_size for path in (tmp_path / "spool").glob("jobs*")) < TABLE_MB * 10**6


def _instance(number: int) -> str:
    return f"{STUDY}.1.{number + 1}"


def _send(gateway: GatewayProcess, instances: int) -> None:
    peer = RawPeer(gateway.port)
    assert peer.negotiate()
    for number in range(instances):
        peer.send(raw.store(STUDY, _instance(number)).encoded())
        answer = peer.answer()
        assert answer is not None
        assert answer.Status == 0
    peer.close()


def _seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return round(time.monotonic() - start, 2)
