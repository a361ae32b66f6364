"""What is not accepted is rejected, and what stands beside it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from app.gateway.jobs import State
from tests.app.gateway import raw
from tests.app.gateway.peers import CALLER, TITLE, wait_until
from tests.app.gateway.raw import Message, RawPeer
from tests.app.gateway.site import Site

UNKNOWN_SYNTAX = "1.2.826.0.1.3680043.9999.1"


def test_what_is_unknown_is_rejected_and_the_rest_of_the_association_works(site: Site, files: list[Path]) -> None:
    site.start()
    entity = AE(CALLER)
    wanted = {
        (CTImageStorage, ExplicitVRLittleEndian): True,
        (CTImageStorage, ImplicitVRLittleEndian): True,
        (CTImageStorage, UNKNOWN_SYNTAX): False,
        (CTImageStorage, DeflatedExplicitVRLittleEndian): False,
        (MRImageStorage, ExplicitVRLittleEndian): False,
        (PatientRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian): False,
        ("1.2.826.0.1.3680043.9999.2", ImplicitVRLittleEndian): False,
        (Verification, ImplicitVRLittleEndian): True,
    }
    for sop_class, syntax in wanted:
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate("127.0.0.1", site.port, ae_title=TITLE)
    accepted = {(each.abstract_syntax, each.transfer_syntax[0]) for each in association.accepted_contexts}
    assert accepted == {each for each, good in wanted.items() if good}
    assert len(association.rejected_contexts) == len(wanted) - len(accepted)
    assert association.send_c_echo().Status == 0
    assert [association.send_c_store(pydicom.dcmread(file)).Status for file in files] == [0, 0, 0]
    association.release()
    wait_until(lambda: site.states() == [State.COMMITTED])


def test_an_association_of_which_nothing_is_accepted_harms_nobody(site: Site) -> None:
    site.start()
    entity = AE(CALLER)
    entity.add_requested_context(MRImageStorage)
    association = entity.associate("127.0.0.1", site.port, ae_title=TITLE)
    assert not association.accepted_contexts
    association.abort()
    peer = RawPeer(site.port)
    assert peer.negotiate()
    peer.close()


@contextmanager
def _sent_in_vain(site: Site, message: Message) -> Iterator[RawPeer]:
    """Send an image to a gateway that is to keep nothing of it."""
    site.start()
    with closing(RawPeer(site.port)) as peer:
        assert peer.negotiate()
        peer.send(message.encoded())
        yield peer
    assert site.jobs() == []
    assert not list((site.folder / "spool" / "studies").iterdir())


@pytest.mark.parametrize("context", [raw.ECHO, raw.REPORT])
def test_an_image_in_the_context_of_something_else_is_not_kept(site: Site, context: int) -> None:
    """The library goes by the class of the message alone."""
    message = raw.store("1.2.3", "1.2.3.1")
    message.context = context
    with _sent_in_vain(site, message) as peer:
        answer = peer.answer()
        assert answer is not None
        assert answer.Status == 0x0122


def test_another_class_in_the_context_of_a_ct_is_not_kept(site: Site) -> None:
    message = raw.store("1.2.3", "1.2.3.1")
    message.command.AffectedSOPClassUID = MRImageStorage
    with _sent_in_vain(site, message) as peer:
        answer = peer.answer()
        assert answer is not None
        assert answer.Status == 0x0122


def test_a_context_that_was_not_accepted_ends_the_association(site: Site) -> None:
    message = raw.store("1.2.3", "1.2.3.1")
    message.context = 7
    with _sent_in_vain(site, message) as peer:
        assert [kind for kind, _ in peer.pdus()] == [raw.ABORT]
