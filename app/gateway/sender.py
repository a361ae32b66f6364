"""What the gateway asks of whatever brings results to a destination."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app.gateway.jobs import Delivery

_D_contra = TypeVar("_D_contra", contravariant=True)

Report = Callable[[str, list[str], list[str]], None]
"""Told the transaction, the SOP Instance UIDs that are kept, and those that are not."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an object, or all, could not be sent.

    Parameters
    ----------
    message : str
        One line without patient data.
    reachable : bool
        Whether it is worth while to send something else.
    """

    message: str
    reachable: bool = True


class Sender(Protocol[_D_contra]):
    """Calls destinations of one kind."""

    def store(
        self, destination: _D_contra, objects: Sequence[tuple[Delivery, Path]], stored: Callable[[Delivery], None]
    ) -> list[Failure]:
        """Send objects; ``stored`` is told of each that was accepted.

        What one object meets is no reason to hold back the others.
        """

    def ask_commitment(
        self, destination: _D_contra, objects: Sequence[Delivery], asked: Callable[[str], threading.Event]
    ) -> Failure | None:
        """Ask whether a destination keeps objects of one study.

        ``asked`` is told the transaction before the question is put; what it returns is set when the answer is there.
        """
