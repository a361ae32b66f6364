"""What the tests of the gateway share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from socketserver import BaseServer

import numpy as np
import pytest

from app.gateway import deliveries, runs, service
from app.gateway.configuration import Tls
from tests.app.gateway.certificates import certified
from tests.app.gateway.site import Site
from tests.builders import write_series


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose gateway makes short pauses, and whose servers see at once that they are to end."""
    monkeypatch.setattr(BaseServer, "serve_forever", partialmethod(BaseServer.serve_forever, poll_interval=0.05))
    monkeypatch.setattr(service, "TICK", 0.05)
    monkeypatch.setattr(runs, "RUN_PAUSE", 0.2)
    monkeypatch.setattr(deliveries, "SEND_PAUSE", 0.2)
    monkeypatch.setattr(deliveries, "DOWN_PAUSE", 0.2)
    monkeypatch.setattr(deliveries, "COMMITMENT_PAUSE", 2.0)
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A study of three images."""
    return write_series(tmp_path / "ct", np.zeros((3, 8, 8)), study="1")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tls]:
    """Certificates for loopback by an authority, and by another one."""
    return {name: certified(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs")}
