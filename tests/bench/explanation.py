"""Explaining 100 slices of 256 x 256 with the shipped classifier: seconds beside its forward pass, and memory.

The slices are those of a phantom. Forward pass and explanation run in turn, and the best of each counts; the
explanation includes a forward pass of its own. The forward pass is measured as the application runs it, and in the
memory layout and chunk in which it is fastest. Memory is the growth of the peak while explaining, heatmaps included,
over that of the forward pass, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from app.evaluation.explanation_cases import phantom_cases
from models.classifier.network import Classifier
from models.relevance.explain import explain
from models.store import load_network
from operators.classification import CHUNK
from tests.bench.loading import peak_kib

SLICES = 100
REPEATS = 4
MODELS = Path("models")


def slices() -> np.ndarray:
    """Make the input of the classifier, (100, 2, 256, 256)."""
    inputs = next(phantom_cases(1, 256)).inputs
    return np.concatenate([inputs, inputs])[:SLICES]


def measure(file: Path) -> dict[str, float]:
    """Measure in this process, on the slices in ``file``."""
    network, _ = load_network(MODELS / "classifier", Classifier)
    inputs = torch.from_numpy(np.load(file))
    best = inputs.contiguous(memory_format=torch.channels_last)

    def forward(slices: torch.Tensor, chunk: int) -> None:
        with torch.inference_mode():
            network.aggregate(network.describe(slices, chunk=chunk))

    work: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(inputs, CHUNK),
        "channels_last": lambda: forward(best, 1),
        "explain": lambda: explain(network, inputs),
    }
    work["forward"]()
    before = peak_kib()
    work["explain"]()
    peak = peak_kib()
    times = [{name: _seconds(each) for name, each in work.items()} for _ in range(REPEATS)]
    return {name: min(row[name] for row in times) for name in work} | {"mib": (peak - before) / 1024}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run() -> dict[str, float]:
    """Measure in a process of its own and print it."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "slices.npy")
        np.save(file, slices())
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.explanation", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"Explaining {SLICES} slices of 256 x 256: {measured['explain']:.2f} s")
    for name, words in (("forward", "as the application runs it"), ("channels_last", "in its fastest layout")):
        ratio = measured[f"ratio_{name}"] = measured["explain"] / measured[name]
        print(f"{ratio:.2f} x the forward pass {words}, {measured[name]:.2f} s")
    print(f"memory of the explanation {measured['mib']:.0f} MiB")
    return measured


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
