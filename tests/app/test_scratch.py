"""Libraries find a folder for what they write, also where there is no home."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.outcome import ExitStatus
from app.scratch import temporary_scratch

_ROOT = Path(__file__).resolve().parents[2]
_CACHES = ("MPLCONFIGDIR", "CUPY_CACHE_DIR")


def test_inspect_needs_no_home(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _CACHES}
    done = subprocess.run(
        [sys.executable, "-m", "app", "inspect", str(tmp_path)],
        cwd=_ROOT,
        env={**environment, "HOME": "/proc/nobody"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (ExitStatus.REFUSED, "")
    assert done.stderr.startswith("refused: NO_DICOM: ")


@pytest.mark.parametrize("anywhere", [True, False])
def test_the_folder_is_there_as_long_as_the_command_runs(monkeypatch: pytest.MonkeyPatch, anywhere: bool) -> None:
    def none_usable() -> str:
        raise FileNotFoundError

    monkeypatch.setenv("HOME", "/proc/nobody")
    for name in _CACHES:
        monkeypatch.delenv(name, raising=False)
    if not anywhere:
        monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    before = tempfile.tempdir
    with temporary_scratch():
        folders = {os.environ[name] for name in _CACHES}
        assert len(folders) == 1
        folder = Path(folders.pop())
        assert folder.is_dir()
        assert anywhere or tempfile.tempdir == str(folder)
    assert not folder.exists()
    assert tempfile.tempdir == before
    assert not any(name in os.environ for name in _CACHES)


def test_a_home_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in _CACHES:
        monkeypatch.delenv(name, raising=False)
    with temporary_scratch():
        assert not any(name in os.environ for name in _CACHES)
