"""What stands in for the application in a worker process, where only the gateway is tested."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from app.gateway.worker import How, Outcome, work
from app.publish import RESULT

SLOW = 1.5
"""Seconds that :func:`slow` takes."""
RUN_SECONDS = "STAND_IN_SECONDS"
"""Environment variable: seconds that :func:`quick` takes, none where it is not set."""


def quick(channel: Connection, how: How, parent: int) -> None:
    """Write a secondary capture for each study that tells how many instances it had."""
    while True:
        try:
            source, target = channel.recv()
        except EOFError:
            return
        channel.send("working")
        time.sleep(float(os.environ.get(RUN_SECONDS, "0")))
        channel.send(_result(source, target))


def drawing(channel: Connection, how: How, parent: int) -> None:
    """Write a secondary capture with :func:`drawn` for each study."""
    _changing(channel, lambda capture: capture.set_pixel_data(drawn(), "RGB", 8))


def straying(channel: Connection, how: How, parent: int) -> None:
    """Write a secondary capture that belongs to another study."""
    _changing(channel, lambda capture: setattr(capture, "StudyInstanceUID", generate_uid()))


def _changing(channel: Connection, change: Callable[[pydicom.FileDataset], None]) -> None:
    while True:
        try:
            source, target = channel.recv()
        except EOFError:
            return
        outcome = _result(source, target)
        path = target / "sc" / "summary.dcm"
        capture = pydicom.dcmread(path)
        change(capture)
        capture.save_as(path)
        channel.send(outcome)


def drawn() -> npt.NDArray[np.uint8]:
    """A picture in which no two pixels are the same."""
    return np.arange(20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 30, 3)


def slow(channel: Connection, how: How, parent: int) -> None:
    """Take a while, and see what came until then."""
    source, target = channel.recv()
    instances = sorted(source.glob("*.dcm"))
    time.sleep(SLOW)
    channel.send(_result(source, target, instances))
    quick(channel, how, parent)


def dying(channel: Connection, how: How, parent: int) -> None:
    """Die without a word, as where memory runs out."""
    channel.recv()
    os._exit(9)


def hanging(channel: Connection, how: How, parent: int) -> None:
    """Never answer."""
    channel.recv()
    time.sleep(600)


def refusing(channel: Connection, how: How, parent: int) -> None:
    """Refuse, as the application does."""
    channel.recv()
    channel.send(Outcome("refused", "NOT_CHEST_CT: this is a foot"))
    channel.recv()


application = work
"""The application itself."""


def _result(source: Path, target: Path, instances: list[Path] | None = None) -> Outcome:
    instances = sorted(source.glob("*.dcm")) if instances is None else instances
    capture = pydicom.dcmread(instances[0], specific_tags=["StudyInstanceUID"])  # the rest may be damaged
    capture.SOPClassUID = capture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    capture.SOPInstanceUID = capture.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[str(capture.StudyInstanceUID)]
    )
    capture.SeriesInstanceUID = generate_uid(entropy_srcs=[str(capture.StudyInstanceUID), "results"])
    capture.Modality, capture.SeriesDescription = "OT", f"{len(instances)} instances"
    (target / "sc").mkdir(parents=True, exist_ok=True)
    capture.save_as(target / "sc" / "summary.dcm", enforce_file_format=True)
    (target / RESULT).write_text(json.dumps({}))
    return Outcome("done", f"{len(instances)} instances")
