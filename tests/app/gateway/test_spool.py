"""What is kept is kept whole, and no UID leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.gateway.spool import DUPLICATE, NOT_UNDERSTOOD, OUT_OF_RESOURCES, Refused, Spool, checked_uid
from app.outcome import UsageError
from tests.app.gateway.spooled import arriving, keep


@pytest.mark.parametrize("uid", ["1.2.840.10008", "2.25.1", "0.0", "1." + "1" * 62])
def test_uids_name_files(uid: str) -> None:
    assert checked_uid(uid) == uid


@pytest.mark.parametrize("uid", ["", "1", "1..2", ".1.2", "1.2.", "1.02", "../1.2", "1.2/3", "1.2\n", "1." + "1" * 63])
def test_what_is_no_uid_names_nothing(uid: str) -> None:
    with pytest.raises(Refused) as refused:
        checked_uid(uid)
    assert refused.value.status == NOT_UNDERSTOOD


def _keep(spool: Spool, instance: str, content: bytes) -> None:
    keep(spool, "1.2", instance, content)


def _holds(spool: Spool, instance: str, content: bytes) -> bool:
    with arriving(spool, content) as arrival:
        return spool.holds("1.2", instance, arrival)


def test_what_is_kept_is_there_and_another_of_its_name_is_not_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    assert not _holds(spool, "1.3", b"image")
    _keep(spool, "1.3", b"image")
    assert _holds(spool, "1.3", b"image")
    assert (spool.incoming("1.2") / "1.3.dcm").read_bytes() == b"image"
    for attempt in (_holds, _keep):
        with pytest.raises(Refused) as refused:
            attempt(spool, "1.3", b"other")
        assert refused.value.status == DUPLICATE
    assert (spool.incoming("1.2") / "1.3.dcm").read_bytes() == b"image"
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    spool.drop("1.2")
    assert not spool.incoming("1.2").exists()


def test_what_another_process_has_dropped_can_come_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    _keep(spool, "1.3", b"image")
    Spool(tmp_path, 0).drop("1.2")
    _keep(spool, "1.3", b"image")
    assert _holds(spool, "1.3", b"image")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    _keep(spool, "1.1", b"first")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="No space left") as refused:
        _keep(spool, "1.3", b"image")
    assert refused.value.status == OUT_OF_RESOURCES
    assert [path.name for path in spool.incoming("1.2").iterdir()] == ["1.1.dcm"]
    assert _files(tmp_path) == {"1.1.dcm"}


def test_an_arrival_that_is_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    arrival = spool.begin()
    arrival.close()
    with (tmp_path / "other").open("wb") as other:  # gets the number that the descriptor had
        arrival.close()
        other.write(b"still open")
    assert (tmp_path / "other").read_bytes() == b"still open"


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    _keep(spool, "1.3", b"image")
    spool.begin().write(b"ima")
    after = Spool(tmp_path, 0)
    after.tidy()
    assert _files(tmp_path) == {"1.3.dcm"}
    after.begin().close()


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_spool_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(UsageError, match="cannot make the spool folder"):
        Spool(tmp_path / "spool", 0)
