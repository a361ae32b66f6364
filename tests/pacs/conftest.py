"""Of the fixtures of the gateway's tests, those that one of these needs."""

from tests.app.gateway.conftest import files, site

__all__ = ["files", "site"]
