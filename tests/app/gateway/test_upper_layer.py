"""What a peer may do with the items of P-DATA."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from app.gateway.header import file_head
from tests.app.gateway import raw
from tests.app.gateway.peers import wait_until
from tests.app.gateway.raw import COMMAND, DATA, LAST, STORE, Message, Pdv, RawPeer, pdu
from tests.app.gateway.site import Site


def _image(number: int = 1) -> Message:
    return raw.store("1.2.3", f"1.2.3.{number}", number)


def _pdu(*items: Pdv) -> bytes:
    return pdu(DATA, b"".join(item.encoded() for item in items))


@contextmanager
def _associated(site: Site) -> Iterator[RawPeer]:
    with closing(RawPeer(site.port)) as peer:
        assert peer.negotiate()
        yield peer


def _status(peer: RawPeer) -> int:
    """Return the status of the next C-STORE response."""
    answer = peer.answer()
    assert answer is not None
    return int(answer.Status)


def _kept(site: Site) -> dict[str, bytes]:
    """Return the data sets in the spool, by instance."""
    files = (site.folder / "spool" / "studies").rglob("in/*.dcm")
    return {path.stem: _without_head(path.stem, path.read_bytes()) for path in files}


def _without_head(instance: str, file: bytes) -> bytes:
    return file.removeprefix(file_head(CTImageStorage, instance, ExplicitVRLittleEndian))


def _cut(content: bytes, places: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(places), len(content)]
    return [content[first:last] for first, last in pairwise(ends)]


def test_command_and_data_set_may_come_in_one_pdu(site: Site) -> None:
    site.start()
    image = _image()
    with _associated(site) as peer:
        peer.send(_pdu(*image.fragments()))
        assert _status(peer) == 0
    assert _kept(site) == {"1.2.3.1": image.data}


@pytest.mark.parametrize("seed", range(4))
def test_both_may_come_in_any_pieces(site: Site, seed: int) -> None:
    site.start()
    rng = np.random.default_rng(seed)
    images = {f"1.2.3.{number}": _image(number) for number in (1, 2, 3)}
    with _associated(site) as peer:
        for image in images.values():
            items = []
            for whole in image.fragments():
                pieces = _cut(whole.data, [int(place) for place in rng.integers(len(whole.data), size=9)])
                items += [Pdv(STORE, whole.control & ~LAST, piece) for piece in pieces[:-1]]
                items.append(Pdv(STORE, whole.control, pieces[-1]))
            while items:
                size = int(rng.integers(1, 6))
                peer.send(_pdu(*items[:size]))
                del items[:size]
            assert _status(peer) == 0
    assert _kept(site) == {instance: image.data for instance, image in images.items()}


def test_requests_that_do_not_wait_for_the_response_are_all_answered(site: Site) -> None:
    site.start()
    images = {f"1.2.3.{number}": _image(number) for number in (1, 2, 3)}
    with _associated(site) as peer:
        for image in images.values():
            peer.send(_pdu(*image.fragments()))
        assert [_status(peer) for _ in images] == [0, 0, 0]
    assert _kept(site) == {instance: image.data for instance, image in images.items()}


def _begun(item: Pdv, size: int) -> Pdv:
    return replace(item, control=item.control & ~LAST, data=item.data[:size])


def _wrong_context(command: Pdv, data: Pdv) -> bytes:
    return _pdu(command, replace(data, context=raw.ECHO))


def _rejected_context(command: Pdv, data: Pdv) -> bytes:
    return _pdu(replace(command, context=99), replace(data, context=99))


def _command_within(command: Pdv, data: Pdv) -> bytes:
    return _pdu(command, _begun(data, 50), command)


def _item_longer_than_its_pdu(command: Pdv, data: Pdv) -> bytes:
    whole = bytearray(_pdu(command))
    whole[6:10] = struct.pack(">L", len(command.data) + 3)
    return bytes(whole)


def _item_without_header(command: Pdv, data: Pdv) -> bytes:
    return pdu(DATA, struct.pack(">LBB", 1, STORE, COMMAND | LAST))


def _data_before_the_command(command: Pdv, data: Pdv) -> bytes:
    return _pdu(_begun(data, 50), command, data)


def _data_within_the_command(command: Pdv, data: Pdv) -> bytes:
    return _pdu(_begun(command, 20), _begun(data, 50), replace(command, data=command.data[20:]), data)


def _command_without_end(command: Pdv, data: Pdv) -> bytes:
    return _pdu(*[Pdv(STORE, COMMAND, bytes(60_000))] * 20)


def _command_that_is_none(command: Pdv, data: Pdv) -> bytes:
    return _pdu(Pdv(STORE, COMMAND | LAST, b"\xff" * 50))


def _request_of_four_gigabytes(command: Pdv, data: Pdv) -> bytes:
    return struct.pack(">BBL", raw.REQUEST, 0, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "message",
    [
        _wrong_context,
        _rejected_context,
        _command_within,
        _data_before_the_command,
        _data_within_the_command,
        _item_longer_than_its_pdu,
        _item_without_header,
        _command_without_end,
        _command_that_is_none,
        _request_of_four_gigabytes,
    ],
)
def test_who_breaks_the_rules_is_aborted_and_nothing_is_kept(site: Site, message: Callable[[Pdv, Pdv], bytes]) -> None:
    site.start()
    with _associated(site) as peer:
        peer.send(message(*_image().fragments()))
        assert next(peer.pdus())[0] == raw.ABORT
    assert _kept(site) == {}
    image = _image(2)
    with _associated(site) as peer:  # the others are served
        peer.send(_pdu(*image.fragments()))
        assert _status(peer) == 0
    assert _kept(site) == {"1.2.3.2": image.data}


def test_a_scanner_that_vanishes_within_a_data_set_leaves_nothing(site: Site) -> None:
    site.start()
    command, data = _image().fragments()
    with _associated(site) as peer:
        peer.send(_pdu(command, _begun(data, 99)))
    site.stack.pop_all().close()  # waits for all associations
    assert not any((site.folder / "spool" / "arriving").iterdir())


def test_requests_in_one_pdu_are_all_answered(site: Site) -> None:
    site.start()
    images = [_image(number) for number in (1, 2)]
    with _associated(site) as peer:
        peer.send(_pdu(*(item for image in images for item in image.fragments())))
        assert [_status(peer) for _ in images] == [0, 0]
    assert _kept(site) == {f"1.2.3.{number}": image.data for number, image in enumerate(images, 1)}


def test_of_a_pdu_that_goes_wrong_later_nothing_is_kept(site: Site) -> None:
    """Where the length of an item is damaged, what it completes is a part of an image."""
    site.start()
    image = _image()
    command, whole = image.fragments()
    with _associated(site) as peer:
        peer.send(_pdu(command, replace(whole, data=image.data[:210]), Pdv(STORE, DATA, image.data[210:])))
        assert next(peer.pdus())[0] == raw.ABORT
    assert _kept(site) == {}


def test_a_pdu_of_very_many_requests_is_hung_up_on(site: Site) -> None:
    site.start()
    with _associated(site) as peer:
        peer.send(_pdu(*(item for number in range(1, 40) for item in _image(number).fragments())))
        assert next(peer.pdus())[0] == raw.ABORT
    assert _kept(site) == {}


def test_many_that_cancel_what_there_is_not_are_no_reason_to_stop(site: Site) -> None:
    site.start()
    with _associated(site) as peer:
        for number in range(1, 31):
            peer.send(raw.cancel(number).encoded())
        peer.send(raw.echo(31).encoded())
        answer = peer.answer()
        assert answer is not None
        assert answer.MessageIDBeingRespondedTo == 31
        peer.send(_image().encoded())
        assert _status(peer) == 0


def test_a_message_that_the_library_fails_on_ends_the_association(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Association, "_serve_request", fail)
    site.start(limits={"associations": 1})
    with _associated(site) as peer:
        peer.send(raw.echo().encoded())
        assert peer.answer() is None
    wait_until(lambda: _place_is_free(site))


def _place_is_free(site: Site) -> bool:
    with closing(RawPeer(site.port)) as peer:
        return peer.negotiate()


def test_an_image_in_the_context_of_another_service_is_refused(site: Site) -> None:
    site.start()
    image = _image()
    image.command.AffectedSOPClassUID = Verification
    with _associated(site) as peer:
        peer.send(replace(image, context=raw.ECHO).encoded())
        assert _status(peer) == 0xC000
    assert _kept(site) == {}
