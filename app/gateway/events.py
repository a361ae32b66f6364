"""What happens in a gateway: told once, and heard by the log, the audit trail and the metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """What has happened."""

    STARTED = "started"
    STOPPED = "stopped"
    REJECTED = "rejected"
    """Somebody was not let in or, with ``instances``, something that came was not kept."""
    ARRIVING = "arriving"
    RECEIVED = "received"
    """An association that sent instances of a study has ended; ``instances`` are the new ones."""
    COMPLETE = "complete"
    PROGRESS = "progress"
    RAN = "ran"
    REFUSED = "refused"
    FAILED = "failed"
    """A run failed; it is repeated or given up."""
    STORED = "stored"
    """A destination has taken ``instances``."""
    UNSENT = "unsent"
    """A destination has not taken, or does not keep, what it was sent."""
    DELIVERED = "delivered"
    COMMITTED = "committed"
    """A caller was told that the gateway keeps what it had sent."""
    FETCHED = "fetched"
    """A study was asked for."""
    RETRIED = "retried"
    DROPPED = "dropped"
    ERROR = "error"
    """Something in the gateway went wrong that it had not foreseen."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom something happened with.

    Parameters
    ----------
    name : str
        AE title, or the name of a destination.
    address : str
        Network address, or the name of a host.
    """

    name: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. It names UIDs, never patients.

    Parameters
    ----------
    kind : Kind
    message : str
        One line for people, without the study.
    study : str
        Study Instance UID; by it all that happens to a study is found in the log.
    peer : Peer, optional
    instances : mapping of str to int
        How many instances it is about, by SOP Class UID.
    seconds : float, optional
        That it took.
    """

    kind: Kind
    message: str
    study: str = ""
    peer: Peer | None = None
    instances: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None


Tell = Callable[[Event], None]


def to_all(*listeners: Tell) -> Tell:
    """Return a listener that passes on what it hears to all of these, in their order."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def as_text(event: Event, time: float) -> str:
    """Return an event as a line for people; ``time`` in seconds since 1970."""
    study = f"{event.study}: " if event.study else ""
    return f"{as_date(time)} {study}{event.message}"


def as_json(event: Event, time: float) -> str:
    """Return an event as a line for programs: an object of JSON."""
    told: dict[str, object] = {"time": as_date(time), "event": event.kind.value, "message": event.message}
    if event.study:
        told["study"] = event.study
    if event.peer is not None:
        told["peer"] = event.peer.name
    if event.instances:
        told["instances"] = sum(event.instances.values())
    if event.seconds is not None:
        told["seconds"] = round(event.seconds, 3)
    return json.dumps(told)


def as_date(time: float) -> str:
    """Return seconds since 1970 as local date and time with its offset (ISO 8601)."""
    return datetime.fromtimestamp(time).astimezone().isoformat(timespec="seconds")
