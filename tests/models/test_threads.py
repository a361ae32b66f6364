"""Threads are as many as a container may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.threads import granted_cores
from tests.app.tiny_run import ROOT

_CORES = len(os.sched_getaffinity(0))


def _second_version(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


def _first_version(folder: Path, quota: str, period: str = "100000\n") -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu" / "cpu.cfs_period_us").write_text(period)
    return folder


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", _CORES),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("150000 100000\n", min(2, _CORES)),
        ("9900000 100000\n", _CORES),
        ("", _CORES),
        ("many 100000\n", _CORES),
        ("100000 0\n", _CORES),
    ],
)
def test_quota_of_the_second_version(content: str, cores: int, tmp_path: Path) -> None:
    assert granted_cores(_second_version(tmp_path, content)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", _CORES), ("100000\n", 1), ("25000\n", 1)])
def test_quota_of_the_first_version(quota: str, cores: int, tmp_path: Path) -> None:
    assert granted_cores(_first_version(tmp_path, quota)) == cores


def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert granted_cores(tmp_path) == _CORES


def test_affinity_and_the_user_are_heeded() -> None:
    code = (
        "import os, torch; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from models.threads import granted_cores, use_granted_cores; use_granted_cores();"
        "print(granted_cores(), torch.get_num_threads())"
    )
    for variable, threads in (("", 1), ("2", min(2, _CORES))):
        environment = os.environ | {"OMP_NUM_THREADS": variable}
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1", str(threads)]
