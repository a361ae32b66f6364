"""The files of the package, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.package.tree import write_tree
from tests.app.tiny_run import ROOT


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the package as the Dockerfile lays it out."""
    root = tmp_path_factory.mktemp("package") / "root"
    write_tree(ROOT, root)
    return root
