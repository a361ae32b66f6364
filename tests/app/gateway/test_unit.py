"""The unit of systemd is one that systemd understands, and lets the service do what it must and little else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from operators.software import NAME

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "covid-ct-gateway.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")


def _unit() -> RawConfigParser:
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


@needs_systemd
def test_systemd_understands_all_of_it(tmp_path: Path) -> None:
    installed = Path(sys.executable).with_name("covid-ct")
    copy = tmp_path / UNIT.name
    text = (
        UNIT.read_text("utf-8").replace("/opt/covid-ct/venv/bin/covid-ct", str(installed)).replace("=file:", "=https:")
    )
    copy.write_text(text, "utf-8")
    done = subprocess.run([str(ANALYZE), "verify", str(copy)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    broken = tmp_path / "broken.service"
    broken.write_text(text.replace("UMask=0077", "UMask=private"))
    done = subprocess.run([str(ANALYZE), "verify", str(broken)], capture_output=True, text=True, check=False)
    assert "broken.service" in done.stderr  # it does look


@needs_systemd
def test_the_service_can_do_little_harm() -> None:
    command = [str(ANALYZE), "security", "--offline=yes", "--threshold=25", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


def test_a_low_port_can_be_had_by_what_the_comment_says() -> None:
    lines = [
        line.removeprefix("#") for line in UNIT.read_text("utf-8").splitlines() if "CapabilityBoundingSet=" in line
    ]
    assert lines == ["CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"]  # an empty one resets


def test_networks_are_cached_where_the_service_may_write() -> None:
    service = _unit()["Service"]
    assert service["Environment"] == "XDG_CACHE_HOME=%C"
    assert service["CacheDirectory"] == NAME
    assert service["StateDirectoryMode"] == service["CacheDirectoryMode"] == "0700"
    assert service["User"] == "covid-ct"
