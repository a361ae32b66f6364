"""Explaining 100 slices of 256 x 256 with the shipped classifier: seconds beside its forward pass, and memory.

The slices are those of the phantom. Forward pass and explanation run in turn, and the best of each counts; the
explanation includes a forward pass of its own. Memory is the growth of the peak while explaining, heatmaps included,
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

from app.application import Models
from app.phantom import make_phantom
from app.phantom.dicom import ct_headers
from models.relevance.explain import explain
from operators.classification import CHUNK, classifier_input
from operators.findings import Lesions, Lungs
from operators.volume import CTVolume
from tests.bench.loading import peak_kib
from tests.builders import axial_grid

SLICES = 100
REPEATS = 4
MODELS = Path("models")


def slices() -> np.ndarray:
    """Make the input of the classifier, (100, 2, 256, 256)."""
    phantom = make_phantom()
    grid = axial_grid(phantom.hu.shape, phantom.spacing)
    volume = CTVolume(phantom.hu, grid, ct_headers(phantom.hu.shape, phantom.spacing))
    inputs, _ = classifier_input(volume, Lungs(phantom.lungs, grid), Lesions(phantom.lesions, grid))
    return np.concatenate([inputs, inputs])[:SLICES]


def measure(file: Path) -> dict[str, float]:
    """Measure in this process, on the slices in ``file``."""
    network, inputs = Models.load(MODELS).classifier, torch.from_numpy(np.load(file))

    def forward() -> None:
        with torch.inference_mode():
            network.aggregate(network.describe(inputs, chunk=CHUNK))

    forward()
    before = peak_kib()
    explain(network, inputs)
    peak = peak_kib()
    times = [(_seconds(forward), _seconds(lambda: explain(network, inputs))) for _ in range(REPEATS)]
    passes, explanations = zip(*times, strict=True)
    return {"forward": min(passes), "explain": min(explanations), "mib": (peak - before) / 1024}


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
    measured["ratio"] = measured["explain"] / measured["forward"]
    print(f"Explaining {SLICES} slices of 256 x 256")
    print(
        f"forward pass {measured['forward']:.2f} s, explanation {measured['explain']:.2f} s: {measured['ratio']:.2f} x"
    )
    print(f"memory of the explanation {measured['mib']:.0f} MiB")
    return measured


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
