"""Fixtures that all tests share."""

from pathlib import Path

import pytest

_REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need the real CTs where these are absent."""
    if _REAL_DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason="the real CTs are not here"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real CTs; only for tests marked ``real_data``."""
    return _REAL_DATA
