"""A gateway in a process of its own: ``python -m tests.app.gateway.run_gateway FILE SILENCE``."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from app.gateway import deliveries, receiver, runs, service
from app.gateway.configuration import load_gateway
from app.gateway.service import Gateway
from app.gateway.worker import How, Worker
from app.settings import load_settings
from operators.selection_rules import ANY_SERIES
from tests.app.gateway.stand_ins import quick

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    deliveries.SEND_PAUSE = deliveries.DOWN_PAUSE = runs.RUN_PAUSE = 0.2
    deliveries.COMMITMENT_PAUSE, service.TICK = 2.0, 0.05
    receiver.SILENCE = float(sys.argv[2])
    configuration = load_gateway(Path(sys.argv[1]))
    how = How(Path(), load_settings(), ANY_SERIES, None)
    with Gateway(configuration, Worker(how, 60.0, quick), lambda event: None):
        threading.Event().wait()
