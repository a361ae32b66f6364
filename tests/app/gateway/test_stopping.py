"""Who asks the gateway, or a fetch, to end need not kill it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml

from tests.app.gateway.archive import Archive, searchable
from tests.app.gateway.peers import CALLER, PACS_TITLE, free_port
from tests.app.gateway.site import Site
from tests.app.tiny_run import ROOT

_PATIENCE = 60.0
"""Seconds; who has not ended by then waits for ever."""


def _configuration(folder: Path, **more: Any) -> Path:
    stated = {
        "port": free_port(),
        "spool": str(folder / "spool"),
        "callers": [{"ae_title": CALLER}],
        "destinations": [{"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": free_port()}],
        **more,
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(stated), "utf-8")
    return path


@contextmanager
def _command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-m", "app", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_asked_to_end_ends_by_itself(tmp_path: Path, number: signal.Signals) -> None:
    with _command("gateway", "-c", str(_configuration(tmp_path))) as process:
        assert process.stderr is not None
        assert any("listening as COVIDCT" in line for line in process.stderr)
        process.send_signal(number)
        _, rest = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0
    assert rest.splitlines()[-1].endswith("stopped")
    assert "Application Stop" in (tmp_path / "spool" / "audit.log").read_text("utf-8")


def test_a_fetch_that_waits_for_its_source_can_be_interrupted(site: Site, files: list[Path]) -> None:
    moving, ended = threading.Event(), threading.Event()

    class Slow(Archive):
        def move(self, event: Any) -> Iterator[Any]:
            moving.set()
            ended.wait()
            yield None, None

    site.start()
    with searchable(Slow(CALLER, [*map(pydicom.dcmread, files)])) as archive:
        source = {"name": "archive", "ae_title": CALLER, "host": "127.0.0.1", "port": archive.port}
        path = _configuration(site.folder, sources=[source])
        study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
        try:
            with _command("fetch", study, "--from", "archive", "-c", str(path)) as process:
                moving.wait()
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=_PATIENCE)
        finally:
            ended.set()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
