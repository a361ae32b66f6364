"""A port to listen at, and why it cannot be had."""

from __future__ import annotations

import errno

from app.outcome import RunFailed, UsageError

_PASSING = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
"""Somebody else has it still, or the network is not up yet: whoever starts the gateway is to try again."""


def not_had(place: str, error: OSError) -> RunFailed | UsageError:
    """Return the error to raise where nobody can listen: a wrong configuration, unless it may pass by itself."""
    kind = RunFailed if error.errno in _PASSING else UsageError
    return kind(f"cannot listen on {place}: {error.strerror}")
