"""What each model costs on this machine: parameters, floating point operations, memory, seconds.

Source of the comparison: Berenguer et al. 2020, arXiv:2011.11719, table of computational requirements.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from app.application import Models
from models.runtime import Runtime
from operators.classification import classify
from operators.explanation import explain_classification
from operators.involvement import segment_involvement
from operators.lesion_segmentation import segment_lesions
from operators.lung_segmentation import segment_lungs
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import CTVolume

PAPER = {"parameters": 17.34e6, "gflop": 5407.7, "memory_gb": 6.46, "seconds": 78.0}
"""The paper's totals, on a TITAN Xp."""
_SAMPLING = 0.01
"""Seconds between two looks at the memory of the process."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage costs.

    Parameters
    ----------
    stage : str
        Lungs, lesions, involvement, classifier, explanation.
    parameters : int
        Of its network; 0 where it uses that of another stage.
    gflop : float
        10^9 floating point operations of convolutions and matrix products; a multiplication and an addition are two.
    memory_gb : float
        By how much the memory of the process grew at most, in 10^9 bytes.
    seconds : float
        Wall clock, without counting operations.
    """

    stage: str
    parameters: int
    gflop: float
    memory_gb: float
    seconds: float


def measure_costs(
    volume: CTVolume, models: Models, plain: Models, tell: Callable[[str], None] = lambda line: None
) -> list[Cost]:
    """Run each stage on a CT twice: once for time and memory, once in PyTorch to count operations.

    Parameters
    ----------
    volume : CTVolume
        A chest CT.
    models : Models
        Networks with their weights, as they are to be judged.
    plain : Models
        The same in PyTorch on the CPU, which counts its operations.
    tell : callable
        Receives a line for each stage.

    Raises
    ------
    InputRefused
        If no lungs are found.
    """
    costs: list[Cost] = []

    def stage(name: str, network: nn.Module | None, work: Callable[[Models], Result]) -> Result:
        with _peak_memory() as peak:
            start = time.perf_counter()
            result = work(models)
            seconds = time.perf_counter() - start
        with FlopCounterMode(display=False) as counter:
            work(plain)
        parameters = 0 if network is None else sum(each.numel() for each in network.parameters())
        costs.append(Cost(name, parameters, counter.get_total_flops() / 1e9, peak() / 1e9, seconds))
        tell(f"{name}: {costs[-1].gflop:.0f} GFLOP in {seconds:.1f} s")
        return result

    lungs = stage("lungs", models.lungs, lambda by: segment_lungs(volume, by.lungs))
    lesions = stage("lesions", models.lesions, lambda by: segment_lesions(volume, lungs, by.lesions))
    stage("involvement", models.involvement, lambda by: segment_involvement(volume, lungs, by.involvement))
    found = stage("classifier", models.classifier, lambda by: classify(volume, lungs, lesions, by.classifier, 0.5))
    stage("explanation", None, lambda by: explain_classification(found, by.classifier, 1))
    return costs


@contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """Watch the memory of this process; what is yielded tells by how many bytes it grew at most."""
    process, stop = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not stop.wait(_SAMPLING):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: highest - before
    finally:
        stop.set()
        watcher.join()


def write_costs(costs: list[Cost], volume: CTVolume, runtime: Runtime, folder: Path) -> None:
    """Write ``compute.json`` and ``compute.md``: the table beside the paper's totals, and what it was measured on."""
    spacing = " x ".join(f"{step:.2f}" for step in volume.grid.spacing)
    size = " x ".join(map(str, volume.grid.shape))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "runtime": runtime.name,
        "precision": runtime.precision,
        "ct": f"{size} voxels of {spacing} mm (z, y, x)",
    }
    total = _total(costs)
    content = {
        "software": {"name": NAME, "version": VERSION},
        "notice": RESEARCH_NOTICE,
        "machine": machine,
        "stages": [asdict(cost) for cost in costs],
        "total": asdict(total),
        "paper": PAPER,
    }
    (folder / "compute.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    rows = [_row(cost) for cost in (*costs, total)]
    paper = (PAPER["parameters"] / 1e6, PAPER["gflop"], PAPER["memory_gb"], PAPER["seconds"])
    lines = [
        "# What it costs",
        "",
        f"{NAME} {VERSION}, {'; '.join(f'{name} {value}' for name, value in machine.items())}.",
        "",
        "| stage | parameters, 10^6 | GFLOP | memory, GB | seconds |",
        "|---|---|---|---|---|",
        *rows,
        f"| paper, on a TITAN Xp | {paper[0]:.2f} | {paper[1]:.1f} | {paper[2]:.2f} | {paper[3]:.0f} |",
        "",
        "Memory is the greatest growth of the process in a stage; in the total, that of the stage that grew most.",
        "The operations of the explanation are those that PyTorch counts: convolutions and matrix products.",
    ]
    (folder / "compute.md").write_text("\n".join(lines) + "\n", "utf-8")


def _total(costs: list[Cost]) -> Cost:
    return Cost(
        "total",
        sum(cost.parameters for cost in costs),
        sum(cost.gflop for cost in costs),
        max(cost.memory_gb for cost in costs),
        sum(cost.seconds for cost in costs),
    )


def _row(cost: Cost) -> str:
    values = f"{cost.parameters / 1e6:.2f} | {cost.gflop:.1f} | {cost.memory_gb:.2f} | {cost.seconds:.1f}"
    return f"| {cost.stage} | {values} |"
