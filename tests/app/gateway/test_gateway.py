"""From what a scanner sends to what a PACS keeps, over real associations on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from app.gateway import deliveries, receiver
from app.gateway.events import Event, Kind
from app.gateway.jobs import State
from app.gateway.service import delete
from app.outcome import RunFailed
from tests.app.gateway import stand_ins
from tests.app.gateway.browsing import look
from tests.app.gateway.peers import CALLER, PACS_TITLE, accepts, free_port, listening, send, sending, wait_until
from tests.app.gateway.site import Site
from tests.app.tiny_run import write_lungs, write_models


def test_a_study_comes_in_and_its_results_are_kept_by_the_pacs(site: Site, files: list[Path]) -> None:
    site.start()
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    assert [job.study for job in site.jobs()] == [study]
    kept = sorted((site.folder / "spool" / "studies" / study / "in").iterdir())
    assert len(kept) == 3
    for path in kept:
        sent = next(file for file in map(pydicom.dcmread, files) if file.SOPInstanceUID == path.stem)
        assert pydicom.dcmread(path) == sent


@pytest.mark.whole
def test_the_application_itself_reports_on_what_came(site: Site, tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "lungs")
    port = free_port()
    site.start(stand_ins.application, tmp_path / "models", web={"port": port})
    send(site.port, sorted((tmp_path / "lungs").iterdir()))
    wait_until(lambda: site.states() == [State.COMMITTED])
    modalities = {str(kept.Modality) for kept in site.pacs.objects.values()}
    assert modalities >= {"SR", "SEG", "OT"}
    studies = {str(kept.StudyInstanceUID) for kept in site.pacs.objects.values()}
    assert studies == {job.study for job in site.jobs()}
    assert any("Lung segmentation" in line for line in site.lines)
    assert not any("Doe" in line or "4711" in line for line in site.lines)
    page, picture = (look(port, f"/studies/{site.jobs()[0].study}{each}") for each in ("", "/picture.png"))
    assert Image.open(BytesIO(picture.body)).size[0] == 1400  # that of the summary page
    assert "Doe" not in page.text
    assert "4711" not in page.text


def test_echo_is_answered_and_strangers_are_rejected(site: Site, files: list[Path]) -> None:
    site.start(callers=[{"ae_title": CALLER}, {"ae_title": "ELSEWHERE", "address": "192.0.2.1"}])
    with sending(site.port) as association:
        assert association.send_c_echo().Status == 0
    for title, called in (("STRANGER", "COVIDCT"), (CALLER, "OTHER"), ("ELSEWHERE", "COVIDCT")):
        with sending(site.port, files, title, called) as association:
            assert association.is_rejected
    with sending(site.port, files, PACS_TITLE) as association:  # it may report, not send
        assert association.send_c_store(pydicom.dcmread(files[0])).Status == 0xC000
    assert site.jobs() == []


def test_what_cannot_be_kept_is_not_acknowledged(site: Site, files: list[Path]) -> None:
    site.start(limits={"instance_mb": 1, "free_disk_mb": 0})
    image = pydicom.dcmread(files[0])
    with sending(site.port, files) as association:
        image.StudyInstanceUID = "../../escaped"
        assert association.send_c_store(image).Status == 0xC000
        changed = pydicom.dcmread(files[1])
        assert association.send_c_store(changed).Status == 0
        changed.SeriesDescription = "another"
        assert association.send_c_store(changed).Status == 0x0111
    assert [path.name for path in (site.folder / "spool" / "studies").rglob("*.dcm")] == [
        f"{changed.SOPInstanceUID}.dcm"
    ]


def test_who_sends_more_than_an_instance_may_have_is_hung_up_on(site: Site, files: list[Path]) -> None:
    site.start(limits={"instance_mb": 1})
    with sending(site.port, files) as association:
        large = pydicom.dcmread(files[0])
        large.Rows, large.Columns, large.PixelData = 2048, 1024, bytes(4 << 20)
        assert "Status" not in association.send_c_store(large)
    assert any("larger than the limit" in line for line in site.lines)
    assert site.jobs() == []


def test_a_full_disk_is_said_and_it_goes_on_when_there_is_room(site: Site, files: list[Path]) -> None:
    gateway = site.start(limits={"free_disk_mb": 10**9})
    assert send(site.port, files) == [0xA700] * 3
    wait_until(lambda: site.jobs() == [])
    assert not list((site.folder / "spool" / "studies").rglob("*.dcm"))
    gateway._spool._free = 0
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_a_disk_that_fills_up_takes_nothing_of_a_study_that_is_there(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start()
    send(site.port, files[:2])
    wait_until(lambda: site.states() == [State.COMMITTED])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        other = pydicom.dcmread(files[0])
        other.StudyInstanceUID = "1.2.3"
        with sending(site.port, files) as association:
            assert association.send_c_store(pydicom.dcmread(files[2])).Status == 0xA700
            assert association.send_c_store(other).Status == 0xA700
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "2 instances"
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED] and site.summary() == "3 instances")


def test_a_late_image_for_which_there_is_no_room_takes_nothing_from_what_is_to_be_sent(
    site: Site, files: list[Path]
) -> None:
    site.pacs.silent = 1000
    gateway = site.start()
    send(site.port, files[:2])
    wait_until(lambda: len(gateway._deliveries._asked) == 1)
    (job,) = site.jobs()
    open_ones = gateway._jobs.deliveries(job.study)
    gateway._spool._free = 1 << 62
    assert send(site.port, files[2:]) == [0xA700]
    assert (site.states(), gateway._jobs.deliveries(job.study)) == ([State.SENDING], open_ones)


def test_a_study_that_is_dropped_while_it_is_sent_again_is_not_kept_in_part(site: Site, files: list[Path]) -> None:
    gateway = site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    dropped = Event(Kind.DROPPED, "dropped", site.jobs()[0].study)
    with sending(site.port, files) as association:
        assert association.send_c_store(pydicom.dcmread(files[0])).Status == 0
        assert delete(gateway._jobs, gateway._spool, dropped, site.hear)
        assert [association.send_c_store(pydicom.dcmread(file)).Status for file in files[1:]] == [0xA700] * 2
    assert site.jobs() == []
    assert not list((site.folder / "spool" / "studies").iterdir())
    assert send(site.port, files) == [0, 0, 0]
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


def test_sending_again_changes_nothing(site: Site, files: list[Path]) -> None:
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    (job,) = site.jobs()
    assert send(site.port, files) == [0, 0, 0]
    assert site.jobs() == [job]


def test_a_late_image_opens_the_study_again(site: Site, files: list[Path]) -> None:
    site.start()
    send(site.port, files[:2])
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "2 instances"
    send(site.port, files[2:])
    wait_until(lambda: site.states() == [State.COMMITTED] and site.summary() == "3 instances")


def test_an_image_that_comes_during_the_run_is_not_left_out(site: Site, files: list[Path]) -> None:
    site.start(stand_ins.slow)
    send(site.port, files[:2])
    wait_until(lambda: site.states() == [State.RUNNING])
    send(site.port, files[2:])
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"
    assert any("more of it has come" in line for line in site.lines)


def test_no_run_begins_while_an_association_sends(site: Site, files: list[Path]) -> None:
    site.start()
    with sending(site.port, files) as association:
        for file in files[:2]:
            association.send_c_store(pydicom.dcmread(file))
        second = [pydicom.dcmread(file) for file in files]
        for image in second:
            image.StudyInstanceUID, image.SOPInstanceUID = "1.2.3", generate_uid()
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        with sending(site.port, files) as other:
            assert [other.send_c_store(image).Status for image in second] == [0, 0, 0]
        wait_until(lambda: State.COMMITTED in site.states())
        assert sorted(site.states()) == [State.COMMITTED, State.RECEIVING]
        association.send_c_store(pydicom.dcmread(files[2]))
    wait_until(lambda: site.states() == [State.COMMITTED] * 2)


@pytest.mark.parametrize(
    ("serve", "seconds", "reason"),
    [
        (stand_ins.dying, 300.0, "the worker died: exit status 9"),
        (stand_ins.hanging, 1.0, "the run took longer than 1 s"),
    ],
)
def test_a_study_that_kills_the_worker_is_given_up_and_the_others_are_not(
    site: Site, files: list[Path], serve: Callable[..., None], seconds: float, reason: str
) -> None:
    gateway = site.start(serve, limits={"run_seconds": seconds, "runs": 2})
    send(site.port, files)
    wait_until(lambda: site.states() == [State.FAILED])
    assert site.jobs()[0].reason == reason
    assert sum(reason in line for line in site.lines) == 2
    gateway._worker._serve, gateway._worker._limit = stand_ins.quick, 300.0
    assert gateway._jobs.retry(site.jobs()[0].study, 0.0, results=True)
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_what_the_application_refuses_is_not_tried_again(site: Site, files: list[Path]) -> None:
    site.start(stand_ins.refusing)
    send(site.port, files)
    wait_until(lambda: site.states() == [State.REFUSED])
    assert site.jobs()[0].reason == "NOT_CHEST_CT: this is a foot"
    assert not site.pacs.objects


def test_a_pacs_that_is_down_gets_its_results_when_it_is_back(site: Site, files: list[Path]) -> None:
    nowhere = free_port()
    site.start(destination={"port": nowhere})
    send(site.port, files)
    wait_until(lambda: any("cannot be reached" in line for line in site.lines))
    site.pacs.port = nowhere
    with listening(site.pacs):
        wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


def test_what_a_pacs_will_not_take_waits_for_a_person(site: Site, files: list[Path]) -> None:
    site.pacs.status = 0xA700
    site.start(limits={"send_hours": 0.0})
    send(site.port, files)
    wait_until(lambda: site.states() == [State.FAILED])
    assert site.jobs()[0].reason == "pacs: sc/summary.dcm: status A700"


def test_of_what_a_pacs_says_to_have_already_it_is_asked_whether_it_keeps_it(site: Site, files: list[Path]) -> None:
    site.pacs.status = 0x0111
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.SENDING] and bool(site.jobs()[0].reason))
    assert site.jobs()[0].reason == "pacs: it does not keep 1 of the results"
    site.pacs.status = 0x0000
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_what_a_pacs_does_not_keep_is_sent_again(site: Site, files: list[Path]) -> None:
    site.pacs.loses = 2
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(site.pacs.received) == 3


def test_a_pacs_that_does_not_answer_is_asked_again(site: Site, files: list[Path]) -> None:
    site.pacs.silent = 1
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(site.pacs.received) == 1


def test_a_report_that_nobody_asked_for_is_not_believed(site: Site, files: list[Path]) -> None:
    site.pacs.silent = 1000
    gateway = site.start()
    send(site.port, files)
    wait_until(lambda: len(site.pacs.received) == 1)
    gateway._deliveries.reported("1.2.3", list(site.pacs.objects), [])
    assert site.states() == [State.SENDING]


def test_results_of_another_study_are_not_sent(site: Site, files: list[Path]) -> None:
    site.start(stand_ins.straying, limits={"runs": 1})
    send(site.port, files)
    wait_until(lambda: site.states() == [State.FAILED])
    assert site.jobs()[0].reason == "the results are of another study: the images name two"
    assert site.pacs.received == []


def test_what_is_said_of_earlier_results_is_not_said_of_those_of_the_same_uid(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "COMMITMENT_PAUSE", 600.0)
    site.pacs.silent = 1000
    gateway = site.start()
    send(site.port, files[:1])
    wait_until(lambda: len(gateway._deliveries._asked) == 1)
    (earlier,) = gateway._deliveries._asked
    site.pacs.status = 0xA700
    send(site.port, files[1:])
    wait_until(lambda: [(job.state, job.revision) for job in site.jobs()] == [(State.SENDING, 2)])
    gateway._deliveries.reported(earlier, list(site.pacs.objects), [])
    (left,) = gateway._jobs.deliveries(site.jobs()[0].study)
    assert left.sop_instance in site.pacs.objects
    assert (left.stored, left.committed) == (False, False)


def test_later_results_are_asked_about_though_the_earlier_are_not_answered(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "COMMITMENT_PAUSE", 600.0)
    site.pacs.silent = 1000
    gateway = site.start()
    for number, part in enumerate((files[:1], files[1:]), start=1):
        send(site.port, part)
        wait_until(lambda number=number: len(gateway._deliveries._asked) == number)
    assert len(site.pacs.objects) == 1, "they have the same UID"


def test_without_commitment_the_answer_to_the_store_is_enough(site: Site, files: list[Path]) -> None:
    site.pacs.silent = 1000
    site.start(destination={"commitment": False})
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_a_gateway_that_is_stopped_goes_on_where_it_was(site: Site, files: list[Path]) -> None:
    with ExitStack() as first:
        site.stack, whole = first, site.stack
        site.start(stand_ins.hanging)
        send(site.port, files)
        wait_until(lambda: site.states() == [State.RUNNING])
    site.stack = whole
    site.start()
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "3 instances"


def test_a_scanner_that_stalls_within_a_message_is_hung_up_on(
    site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "SILENCE", 1.0)
    site.start(limits={"associations": 1})
    with socket.create_connection(("127.0.0.1", site.port)) as stalled:
        stalled.sendall(b"\x01\x00\x00")  # the first bytes of an association request
        wait_until(lambda: _hung_up(stalled))
    wait_until(lambda: accepts(site.port, files[0]))
    wait_until(lambda: site.states() == [State.COMMITTED])


def _hung_up(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_a_study_whose_scanner_vanishes_is_run_with_what_came(site: Site, files: list[Path]) -> None:
    site.start()
    with sending(site.port, files) as association:
        association.send_c_store(pydicom.dcmread(files[0]))
        association.abort()
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert site.summary() == "1 instances"


def test_a_destination_whose_name_is_wrong_does_not_hold_back_the_others(site: Site, files: list[Path]) -> None:
    wrong = {"name": "wrong", "ae_title": "WRONG", "host": "no-such-host.invalid", "port": 104}
    good = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": site.pacs.port}
    site.start(destinations=[wrong, good])
    send(site.port, files)
    wait_until(lambda: len(site.pacs.received) == 1 and site.jobs()[0].reason != "")
    assert site.jobs()[0].reason == "wrong: its name cannot be resolved"
    assert site.states() == [State.SENDING]


def test_an_answer_that_comes_late_is_believed(site: Site, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "COMMITMENT_PAUSE", 0.2)
    site.pacs.seconds = 1.5
    site.start()
    send(site.port, files)
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(site.pacs.received) == 1


def test_two_gateways_do_not_share_a_spool_and_one_that_ends_hangs_up(site: Site, files: list[Path]) -> None:
    with ExitStack() as first:
        site.stack, whole = first, site.stack
        site.start()
        with pytest.raises(RunFailed, match="another gateway uses the spool"):
            site.start(port=free_port())
        association = first.enter_context(sending(site.port, files))
        association.send_c_store(pydicom.dcmread(files[0]))
        first.pop_all().close()
        wait_until(lambda: not association.is_established)
    site.stack = whole
    site.start()
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_who_turns_commitment_off_need_not_send_again(site: Site, files: list[Path]) -> None:
    site.pacs.silent = 1000
    with ExitStack() as first:
        site.stack, whole = first, site.stack
        site.start()
        send(site.port, files)
        wait_until(lambda: len(site.pacs.received) == 1)
    site.stack = whole
    site.start(destination={"commitment": False})
    wait_until(lambda: site.states() == [State.COMMITTED])
    assert len(site.pacs.received) == 1
