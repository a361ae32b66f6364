"""Progress of a run: which node works, what it found, how long it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Journal:
    """Times the nodes of one run and tells a person what each of them found.

    Parameters
    ----------
    tell : callable, optional
        Receives one line of text at a time. Lines hold no patient data. By default nothing is told.
    """

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of each finished node, in the order in which they finished."""
        with self._lock:
            return dict(self._seconds)

    @contextmanager
    def node(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time the block as node ``name``; the yielded callable takes what the node found.

        Nothing is recorded when the block raises: the error is told elsewhere, once.
        """
        found: list[str] = []
        start = time.perf_counter()
        self._tell(f"{name} ...")
        yield found.append
        seconds = time.perf_counter() - start
        with self._lock:
            self._seconds[name] = seconds
        self._tell(f"{name}: {', '.join(found) or 'done'} ({seconds:.1f} s)")
