"""What a gateway does with messages that are damaged, out of order or in the wrong state, behind a good association.

Every case is made from its seed alone. What must hold: the gateway goes on, what it has acknowledged is on the disk to
the byte, what it has refused is not, and nothing is left over of those who have hung up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from pydicom import Dataset

from app.gateway.jobs import State
from tests.app.gateway import raw
from tests.app.gateway.peers import Pacs, listening, wait_until
from tests.app.gateway.process import GatewayProcess
from tests.app.gateway.raw import COMMAND, DATA, LAST, Message, Pdv, RawPeer, data_set, pdu

PATIENCE = 0.1
"""Seconds that a peer waits for an answer that may never come."""
INSTANCE_MB = 1
GROWTH_MB = 96
"""By which the gateway may grow, however many cases: buffers of its threads, and the largest instances at a time."""

Mutator = Callable[[Generator, Any], None]


@dataclass
class Case:
    """What a peer sends, message after message, and how it ends."""

    seed: int
    how: list[str]
    messages: list[bytes]
    end: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {' + '.join(self.how) or 'nothing'}, then {self.end}"


# --- of a command ---


def lose_element(rng: Generator, command: Dataset) -> None:
    del command[list(command.keys())[int(rng.integers(len(command)))]]


def change_element(rng: Generator, command: Dataset) -> None:
    changes: list[tuple[str, Any]] = [
        ("CommandField", int(rng.choice([0, 0x10, 0x20, 0x21, 0x110, 0x120, 0x130, 0x140, 0x150, 0x0FFF, 0x8001]))),
        ("CommandField", int(rng.integers(1 << 16))),
        ("CommandDataSetType", int(rng.choice([0, 1, 0x0101, 0x0102, 0xFFFF]))),
        ("AffectedSOPClassUID", rng.choice(["1.2.840.10008.5.1.4.1.1.4", "1.2", "", "../..", "9" * 70])),
        ("AffectedSOPInstanceUID", rng.choice(["", "../../../x", "1.2.3", "1" * 65, "0.0", "\0", "x/y"])),
        ("MessageID", int(rng.integers(1 << 16))),
        ("EventTypeID", int(rng.integers(1 << 16))),
    ]
    keyword, value = changes[int(rng.integers(len(changes)))]
    setattr(command, keyword, value)


def add_element(rng: Generator, command: Dataset) -> None:
    extras: list[tuple[str, Any]] = [
        ("MessageIDBeingRespondedTo", 1),
        ("Status", 0),
        ("ErrorComment", "x" * 60),
        ("MoveOriginatorApplicationEntityTitle", "ELSEWHERE"),
        ("RequestedSOPInstanceUID", "1.2.3"),
        ("PatientName", "Doe^Jane"),
    ]
    keyword, value = extras[int(rng.integers(len(extras)))]
    setattr(command, keyword, value)


# --- of the fragments of a message ---


def _any(rng: Generator, things: list[Any]) -> int:
    return int(rng.integers(len(things)))


def wrong_context(rng: Generator, pdvs: list[Pdv]) -> None:
    chosen = pdvs if rng.random() < 0.5 else [pdvs[_any(rng, pdvs)]]
    context = int(rng.choice([0, 1, 2, 3, 5, 7, 255]))
    for each in chosen:
        each.context = context


def wrong_control(rng: Generator, pdvs: list[Pdv]) -> None:
    pdvs[_any(rng, pdvs)].control = int(rng.integers(256))


def never_last(rng: Generator, pdvs: list[Pdv]) -> None:
    for each in pdvs:
        if rng.random() < 0.7:
            each.control &= ~LAST


def lose_fragment(rng: Generator, pdvs: list[Pdv]) -> None:
    if len(pdvs) > 1:
        del pdvs[_any(rng, pdvs)]


def repeat_fragment(rng: Generator, pdvs: list[Pdv]) -> None:
    place = _any(rng, pdvs)
    pdvs[place:place] = [pdvs[place]] * int(rng.integers(1, 30))


def shuffle(rng: Generator, pdvs: list[Pdv]) -> None:
    rng.shuffle(pdvs)  # type: ignore[arg-type]


def data_first(rng: Generator, pdvs: list[Pdv]) -> None:
    pdvs.sort(key=lambda each: each.control & COMMAND)


def empty_fragment(rng: Generator, pdvs: list[Pdv]) -> None:
    pdvs.insert(_any(rng, pdvs), Pdv(5, int(rng.integers(4)), b""))


def long_command(rng: Generator, pdvs: list[Pdv]) -> None:
    pdvs[:0] = [Pdv(5, COMMAND, bytes(1 << 14))] * 20


def too_much(rng: Generator, pdvs: list[Pdv]) -> None:
    """More than an instance may have."""
    pdvs[-1:-1] = [Pdv(5, 0, bytes(1 << 17))] * (INSTANCE_MB * 9)


def spoil_data(rng: Generator, pdvs: list[Pdv]) -> None:
    chosen = pdvs[_any(rng, pdvs)]
    chosen.data = _flipped(rng, chosen.data)


# --- of the bytes of a message ---


def _flipped(rng: Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 3, 30]))):
        if changed:
            changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_bits(rng: Generator, pdus: list[bytes]) -> None:
    place = _any(rng, pdus)
    pdus[place] = _flipped(rng, pdus[place])


def flip_header(rng: Generator, pdus: list[bytes]) -> None:
    place = _any(rng, pdus)
    pdus[place] = _flipped(rng, pdus[place][:12]) + pdus[place][12:]


def truncate(rng: Generator, pdus: list[bytes]) -> None:
    place = _any(rng, pdus)
    pdus[place] = pdus[place][: int(rng.integers(len(pdus[place])))]
    if rng.random() < 0.5:
        del pdus[place + 1 :]


def wrong_length(rng: Generator, pdus: list[bytes]) -> None:
    """Of the PDU, or of its first PDV."""
    place = _any(rng, pdus)
    changed = bytearray(pdus[place])
    start = int(rng.choice([2, 6]))
    true_one = int.from_bytes(changed[start : start + 4], "big")
    lengths = [0, 1, 2, 5, true_one - 1, true_one + 1, true_one + 6, 0xFFFF, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]
    changed[start : start + 4] = struct.pack(">L", lengths[_any(rng, lengths)] % (1 << 32))
    pdus[place] = bytes(changed)


def pack_together(rng: Generator, pdus: list[bytes]) -> None:
    pdus[:] = [pdu(DATA, b"".join(each[6:] for each in pdus))]


def crumbs(rng: Generator, pdus: list[bytes]) -> None:
    """Put thousands of the smallest PDVs into one PDU."""
    pdus.insert(_any(rng, pdus), pdu(DATA, Pdv(5, int(rng.integers(2)), b"").encoded() * 5000))


def empty_pdu(rng: Generator, pdus: list[bytes]) -> None:
    pdus.insert(_any(rng, pdus), pdu(DATA, b""))


def wrong_state(rng: Generator, pdus: list[bytes]) -> None:
    """Say what does not belong here, or is the end."""
    strange = [
        raw.association_request_bytes(),
        pdu(raw.ACCEPTED, bytes(68)),
        pdu(raw.REJECTED, bytes(4)),
        pdu(raw.RELEASE, bytes(4)),
        pdu(raw.RELEASED, bytes(4)),
        pdu(raw.ABORT, bytes(4)),
        pdu(0x08, bytes(4)),
        pdu(0x00, b""),
    ]
    pdus.insert(_any(rng, pdus), strange[_any(rng, strange)])


def garbage(rng: Generator, pdus: list[bytes]) -> None:
    pdus.insert(_any(rng, pdus), rng.bytes(int(rng.integers(1, 300))))


def without_waiting(rng: Generator, pdus: list[bytes]) -> None:
    """Say it again and again without listening."""
    pdus *= int(rng.integers(2, 40))


OF_COMMAND: list[Mutator] = [lose_element, change_element, change_element, add_element]
OF_FRAGMENTS: list[Mutator] = [
    wrong_context,
    wrong_control,
    never_last,
    lose_fragment,
    repeat_fragment,
    shuffle,
    data_first,
    empty_fragment,
    spoil_data,
    spoil_data,
]
OF_BYTES: list[Mutator] = [
    flip_bits,
    flip_header,
    truncate,
    wrong_length,
    wrong_length,
    pack_together,
    crumbs,
    empty_pdu,
    wrong_state,
    wrong_state,
    garbage,
    without_waiting,
]
RARE: list[Mutator] = [long_command, too_much]
"""They cost time."""


def make_case(seed: int) -> Case:
    """Make a case: a few messages, one of which is changed in one to three ways, and an end."""
    rng = np.random.default_rng(seed)
    messages = [_message(rng, f"1.2.{seed // 10 + 1}", f"1.3.{seed + 1}.{number}", number) for number in (1, 2, 3)]
    chosen, how, sent = int(rng.integers(3)), [], []
    for number, message in enumerate(messages):
        mutators = _mutators(rng) if number == chosen else []
        how += [each.__name__ for each in mutators]
        sent.append(_spoilt(rng, message, mutators))
    return Case(seed, how, sent, str(rng.choice(["release", "close", "reset", "abort"])))


def _message(rng: Generator, study: str, instance: str, number: int) -> Message:
    kind = rng.random()
    if kind < 0.7:
        return raw.store(study, instance, number, int(rng.choice([8, 64])))
    return raw.echo(number) if kind < 0.85 else raw.report(number)


def _mutators(rng: Generator) -> list[Mutator]:
    if rng.random() < 0.03:
        return [RARE[_any(rng, RARE)]]
    pools = (OF_COMMAND, OF_FRAGMENTS, OF_BYTES)
    chosen = [pools[int(rng.integers(3))] for _ in range(int(rng.integers(1, 4)))]
    return [pool[_any(rng, pool)] for pool in chosen]


def _spoilt(rng: Generator, message: Message, mutators: list[Mutator]) -> bytes:
    for each in mutators:
        if each in OF_COMMAND and len(message.command):
            each(rng, message.command)
    pdvs = message.fragments(int(rng.choice([60, 1000, 1 << 14])))
    for each in mutators:
        if each in OF_FRAGMENTS or each in RARE:
            each(rng, pdvs)
    pdus = [pdu(DATA, each.encoded()) for each in pdvs]
    for each in mutators:
        if each in OF_BYTES:
            each(rng, pdus)
    return b"".join(pdus)


# --- what may come of it ---


def whole_data_sets(sent: bytes) -> Iterator[bytes]:
    """Return every data set that bytes may be said to transfer whole; rather too many than too few."""
    begun = {b""}
    for pdvs in _pdus(sent):
        for control, data in pdvs:
            if control & COMMAND:
                begun |= {b""} if control & LAST else set()
                continue
            begun = {each + data for each in begun}
            if control & LAST:
                yield from begun
                begun = {b""}


def _pdus(sent: bytes) -> Iterator[list[tuple[int, bytes]]]:
    """Return the fragments in each P-DATA-TF PDU, up to where it makes no sense."""
    while len(sent) >= 6:
        kind, _, length = struct.unpack(">BBL", sent[:6])
        content, sent = sent[6 : 6 + length], sent[6 + length :]
        if kind != DATA or len(content) < length:
            return
        pdvs = []
        while content:
            size = int.from_bytes(content[:4], "big")
            if size < 2 or len(content) < 4 + size:
                return
            pdvs.append((content[5], content[6 : 4 + size]))
            content = content[4 + size :]
        yield pdvs


class Fuzzer:
    """Plays cases, and remembers what was answered."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self.kept: set[str] = set()
        self.refused: dict[str, Case] = {}
        self.sent: set[bytes] = set()

    def play(self, case: Case) -> None:
        peer = RawPeer(self._gateway.port)
        assert peer.negotiate(), f"{case}: no association"
        peer.connection.settimeout(PATIENCE)
        self.sent |= set(whole_data_sets(b"".join(case.messages)))
        for message in case.messages:
            peer.send(message)
            self._hear(peer, case)
        match case.end:
            case "release":
                peer.send(pdu(raw.RELEASE, bytes(4)))
                self._hear(peer, case)
            case "abort":
                peer.send(pdu(raw.ABORT, bytes(4)))
        peer.vanish() if case.end == "reset" else peer.close()

    def _hear(self, peer: RawPeer, case: Case) -> None:
        """Hear one answer, if one comes."""
        answer = peer.answer()
        if answer is None or answer.get("CommandField") != 0x8001:
            return
        instance = str(answer.get("AffectedSOPInstanceUID", ""))
        if answer.Status == 0x0000:
            self.kept.add(instance)
        else:
            self.refused[instance] = case


@pytest.mark.parametrize("cases", [120, pytest.param(10_000, marks=pytest.mark.slow)])
def test_whatever_is_sent_the_gateway_goes_on(cases: int, tmp_path: Path) -> None:
    changes = {"destination": {"commitment": False}, "limits": {"instance_mb": INSTANCE_MB, "free_disk_mb": 0}}
    with listening(Pacs()) as pacs:
        gateway = GatewayProcess(tmp_path, pacs, **changes)
        try:
            gateway.wait()
            _send_study(gateway, "1.1.1")
            wait_until(lambda: [job.state for job in gateway.jobs()] == [State.COMMITTED])
            before = gateway.process
            threads, descriptors, memory = before.num_threads(), before.num_fds(), before.memory_info().rss
            fuzzer = Fuzzer(gateway)
            for seed in range(cases):
                fuzzer.play(make_case(seed))
            _send_study(gateway, "1.1.2")
            wait_until(lambda: {job.state for job in gateway.jobs()} <= {State.COMMITTED, State.FAILED})
            wait_until(lambda: gateway.process.num_threads() <= threads and gateway.process.num_fds() <= descriptors)
            grown = gateway.process.memory_info().rss - memory
            print(f"{cases} cases: {len(fuzzer.kept)} instances kept, grown by {grown / 1e6:.0f} MB")  # noqa: T201
            _check(gateway, fuzzer)
            assert gateway.said == ""
            assert grown < GROWTH_MB * 10**6
        finally:
            gateway.kill()


def _send_study(gateway: GatewayProcess, study: str) -> None:
    """Send a whole study, with an echo before."""
    peer = RawPeer(gateway.port)
    assert peer.negotiate()
    for message in (raw.echo(), *(raw.store(study, f"{study}.{number}", number) for number in (1, 2, 3))):
        peer.send(message.encoded())
        answer = peer.answer()
        assert answer is not None
        assert answer.Status == 0
    peer.close()


def _check(gateway: GatewayProcess, fuzzer: Fuzzer) -> None:
    files = {path.stem: path for path in gateway.studies.rglob("*") if path.is_file() and path.parent.name == "in"}
    ours = {name: path for name, path in files.items() if not name.startswith("1.1.")}
    assert all(path.suffix == ".dcm" for path in files.values())
    assert fuzzer.kept <= set(ours), "acknowledged, and not on the disk"
    assert len(fuzzer.kept) > 100, "too little went through for this to mean anything"
    for name, path in ours.items():
        assert data_set(path.read_bytes()) in fuzzer.sent, f"{name} was never sent so"
        assert name not in fuzzer.refused or name in fuzzer.kept, f"{name} was refused: {fuzzer.refused[name]}"
    assert {job.study for job in gateway.jobs()} == {path.parent.parent.name for path in files.values()}
