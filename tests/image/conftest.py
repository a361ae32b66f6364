"""A tiny series and tiny models that any uid can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.tiny_run import write_lungs, write_models
from tests.image.docker import IMAGE, docker


def _readable(folder: Path) -> Path:
    """Open a folder, and those above it up to that of the tests, to everybody."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in list(folder.parents)[:3]:
        if "pytest" in path.name:
            path.chmod(0o755)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _image() -> None:
    assert docker("image", "inspect", IMAGE).returncode == 0, f"{IMAGE} is not here: make map"


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "in"
    write_lungs(folder)
    return _readable(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "models"
    write_models(folder)
    return _readable(folder)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder for a test that any uid can enter."""
    return _readable(tmp_path)
