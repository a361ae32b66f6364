"""A gateway in a process of its own, to be killed: ``python -m tests.app.gateway.run_gateway FILE``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from app.gateway import deliveries, runs, service
from app.gateway.configuration import load_gateway
from app.gateway.service import Gateway
from app.gateway.worker import How, Worker
from app.settings import load_settings
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.stand_ins import quick

if __name__ == "__main__":
    deliveries.SEND_PAUSE = runs.RUN_PAUSE = 0.2
    deliveries.COMMITMENT_PAUSE, service.TICK = 2.0, 0.05
    configuration = load_gateway(Path(sys.argv[1]))
    how = How(Path(), load_settings(), ANY_SERIES, None)
    with Gateway(configuration, Worker(how, 60.0, quick), lambda line: None):
        threading.Event().wait()
