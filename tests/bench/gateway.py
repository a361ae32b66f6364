"""The gateway: how long 300 slices take to come in, beside dcmtk's ``storescp``, and how many studies an hour it does.

``dcmsend`` sends the same files to both in turn, everybody with TCP_NODELAY. ``storescp`` leaves it to the system when
files get on the disk; the gateway acknowledges nothing before. So a third row says what it takes to write the files so
that they are on the disk, without any network, and all is measured in memory, too, where that costs nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.job import HEIGHT_MM, PIXEL_MM
from tests.dcmtk import STORESCP

SLICES, ROUNDS = 300, 9
SENDERS, EACH = 8, 40
"""Senders at once, and slices of each."""
STUDIES = 3
"""Studies of 150 slices that the application runs on, one after the other."""
_DISK, _MEMORY = Path("/var/tmp"), Path("/dev/shm")  # noqa: S108 - a folder of its own is made in them
_NODELAY = os.environ | {"TCP_NODELAY": "1"}


def _write(folder: Path, slices: int, study: int) -> list[Path]:
    from tests.builders import write_series

    voxels = np.random.default_rng(study).integers(-1000, 1000, (slices, 512, 512), dtype=np.int16)
    return write_series(folder, voxels, study=str(study))


def _listening(port: int) -> None:
    """Wait until somebody listens."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


@contextmanager
def _process(port: int, *command: str) -> Iterator[int]:
    with subprocess.Popen(command, env=_NODELAY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _listening(port)
            yield port
        finally:
            process.kill()


@contextmanager
def _storescp(folder: Path) -> Iterator[int]:
    from tests.app.gateway.peers import free_port

    folder.mkdir()
    port = free_port()
    with _process(port, str(STORESCP), "-od", str(folder), str(port)):
        yield port


@contextmanager
def _gateway(folder: Path) -> Iterator[int]:
    """Run a gateway that does nothing with what comes."""
    import yaml

    from tests.app.gateway.peers import CALLER, free_port

    port = free_port()
    nowhere = {"name": "nowhere", "ae_title": "NOWHERE", "host": "127.0.0.1", "port": 1}
    stated = {
        "port": port,
        "spool": str(folder / "spool"),
        "callers": [{"ae_title": CALLER}],
        "destinations": [nowhere],
        "quiet_seconds": 86400,
        "limits": {"free_disk_mb": 0},
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(stated))
    with _process(port, sys.executable, "-m", "tests.app.gateway.run_gateway", str(folder / "gateway.yaml"), "60"):
        yield port


def _send(port: int, folder: Path) -> None:
    from tests.app.gateway.peers import CALLER, TITLE

    command = ["dcmsend", "-aet", CALLER, "-aec", TITLE, "+sd", "127.0.0.1", str(port), str(folder)]
    subprocess.run(command, env=_NODELAY, check=True)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _write_through(files: Sequence[Path], folder: Path) -> None:
    """Copy files so that each is on the disk before the next begins."""
    folder.mkdir()
    place = os.open(folder, os.O_RDONLY)
    for file in files:
        with (folder / file.name).open("xb") as copy:
            copy.write(file.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        os.fsync(place)
    os.close(place)


def _kept(folder: Path) -> int:
    return sum(1 for _ in folder.glob("spool/studies/*/in/*.dcm"))


def run_receiving(folder: Path) -> dict[str, Any]:
    """Send 300 slices to either and copy them, in turn; return the seconds of each round."""
    files = _write(folder / "ct", SLICES, 0)
    seconds: dict[str, list[float]] = {"storescp": [], "gateway": [], "files alone": []}
    with _storescp(folder / "received") as theirs, _gateway(folder) as ours:
        for _ in range(ROUNDS):
            seconds["storescp"].append(_seconds(lambda: _send(theirs, folder / "ct")))
            seconds["gateway"].append(_seconds(lambda: _send(ours, folder / "ct")))
            seconds["files alone"].append(_seconds(lambda: _write_through(files, folder / "copies")))
            if _kept(folder) != SLICES:
                raise RuntimeError("slices are missing")
            for made in (folder / "copies", *(folder / "spool" / "studies").iterdir()):
                shutil.rmtree(made)
            for received in (folder / "received").iterdir():
                received.unlink()
    return {"megabytes": sum(file.stat().st_size for file in files) / 1e6, "seconds": seconds}


def run_senders(folder: Path) -> dict[str, float]:
    """Have several send at once; return how many slices were sent, how many are there, and the seconds."""
    for sender in range(SENDERS):
        _write(folder / f"ct{sender}", EACH, sender)
    with _gateway(folder) as port:
        threads = [threading.Thread(target=_send, args=(port, folder / f"ct{sender}")) for sender in range(SENDERS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"sent": SENDERS * EACH, "kept": _kept(folder), "seconds": time.perf_counter() - start}


def run_studies(folder: Path) -> dict[str, float]:
    """Have the application run on studies that come all at once, and send the results; return studies per hour."""
    from app.gateway.configuration import GatewayConfiguration
    from app.gateway.jobs import Jobs, State
    from app.gateway.service import TABLE, Gateway
    from app.gateway.worker import How, Worker
    from app.phantom import write_phantom
    from app.settings import load_settings
    from models.record import SHIPPED
    from operators.selection_rules import ANY_SERIES
    from tests.app.gateway.peers import CALLER, PACS_TITLE, Pacs, free_port, listening

    with ExitStack() as stack:
        pacs, port = stack.enter_context(listening(Pacs())), free_port()
        pacs.report_to = port
        destination = {"name": "pacs", "ae_title": PACS_TITLE, "host": "127.0.0.1", "port": pacs.port}
        stated = {
            "port": port,
            "spool": folder / "spool",
            "callers": [{"ae_title": CALLER}],
            "destinations": [destination],
            "quiet_seconds": 1.0,
        }
        worker = Worker(How(SHIPPED, load_settings([]), ANY_SERIES, folder / "cache"), 3600.0)
        stack.enter_context(Gateway(GatewayConfiguration.model_validate(stated), worker, lambda event: None))
        for study in range(STUDIES):
            _send(port, write_phantom(folder / str(study), study, (HEIGHT_MM / 150, PIXEL_MM, PIXEL_MM)))
        jobs = stack.enter_context(closing(Jobs(folder / "spool" / TABLE)))
        start = time.perf_counter()
        while (states := [job.state for job in jobs.all()]) != [State.COMMITTED] * STUDIES:
            if set(states) & {State.REFUSED, State.FAILED}:
                raise RuntimeError("a study has no result")
            time.sleep(0.1)
        seconds = time.perf_counter() - start
    return {"studies": STUDIES, "seconds": seconds, "per_hour": 3600.0 * STUDIES / seconds}


def _within(place: Path, part: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        return part(Path(temporary))


def _print_receiving(place: str, result: dict[str, Any]) -> None:
    seconds = result["seconds"]
    base = statistics.median(seconds["storescp"])
    print(f"{SLICES} slices, {result['megabytes']:.0f} MB, of {ROUNDS} rounds in turn, spool in the {place}")
    print(f"{'':>12}{'median s':>10}{'least s':>9}{'ratio':>7}")
    for name, each in seconds.items():
        print(f"{name:>12}{statistics.median(each):10.2f}{min(each):9.2f}{statistics.median(each) / base:7.2f}")


def run() -> dict[str, Any]:
    """Measure, print the table, and return all figures."""
    if not STORESCP.exists():
        print("The gateway was not measured: dcmtk is not installed")
        return {}
    results: dict[str, Any] = {}
    for name, part in (("receiving", run_receiving), ("senders", run_senders), ("studies", run_studies)):
        results[name] = _within(_DISK, part)
    _print_receiving("disk", results["receiving"])
    if _MEMORY.is_dir():
        results["receiving in memory"] = _within(_MEMORY, run_receiving)
        _print_receiving("memory", results["receiving in memory"])
    senders, studies = results["senders"], results["studies"]
    print(f"{SENDERS} senders at once: {senders['kept']} of {senders['sent']} slices kept, {senders['seconds']:.2f} s")
    print(f"{studies['studies']} studies of 150 slices one after the other: {studies['per_hour']:.0f} in an hour")
    return results


if __name__ == "__main__":
    run()
