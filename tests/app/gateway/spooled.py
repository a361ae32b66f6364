"""Instances in a spool, without an association."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.gateway.spool import Arrival, Spool


@contextmanager
def arriving(spool: Spool, content: bytes) -> Iterator[Arrival]:
    """Have an instance come, in two parts."""
    arrival = spool.begin()
    try:
        arrival.write(content[:2])
        arrival.write(memoryview(content[2:]))
        yield arrival
    finally:
        arrival.close()


def keep(spool: Spool, study: str, instance: str, content: bytes) -> None:
    """Put an instance into a spool."""
    with arriving(spool, content) as arrival:
        spool.keep(study, instance, arrival)
