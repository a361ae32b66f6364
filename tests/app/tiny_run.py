"""A whole run on a tiny series: true networks, with weights set by hand or at random."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.settings import load_settings
from app.study import Request, run_folder
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.store import save_weights
from operators.selection_rules import ANY_SERIES
from tests.builders import write_series

ROOT = Path(__file__).resolve().parents[2]
SPACING = (3.0, 6.0, 6.0)
NETWORK_SETTINGS = {
    "lungs": {"spacing": list(SPACING)},
    "lesions": {"spacing": list(SPACING)},
    "involvement": {"pixel_mm": SPACING[1], "patch": [32, 32]},
}
"""Coarser than the usual, with smaller patches: a run takes a third of the time."""
_SETTINGS = ["in_plane=32", "precision=float32"]


def threshold_network() -> DeepMedic:
    """DeepMedic whose weights hand the voxel itself through to the end: lung is what is below -380 HU."""
    network = DeepMedic()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv3d):
                for parameter in layer.parameters():
                    parameter.zero_()
        for layer in network.fine:
            if isinstance(layer, torch.nn.Conv3d):
                layer.weight[(0, 0, *(size // 2 for size in layer.kernel_size))] = 1.0
        first, second, last = (layer for layer in network.head if isinstance(layer, torch.nn.Conv3d))
        first.weight[0, 0] = second.weight[0, 0] = 1.0
        last.weight[0, 0], last.bias[0] = -40.0, 24.0  # type: ignore[index]
    return network


def write_models(folder: Path) -> None:
    """Write weights of all networks, those of the lungs by hand and the others at random."""
    torch.manual_seed(0)
    networks = {
        "lungs": threshold_network(),
        "lesions": LesionNetwork(),
        "involvement": InvolvementNetwork(),
        "classifier": Classifier(),
    }
    for task, network in networks.items():
        save_weights(folder / task, network, {"name": f"test {task}", "version": "0"}, NETWORK_SETTINGS.get(task))


def write_lungs(folder: Path) -> None:
    """Write a series: two lungs of 28 x 14 x 9 voxels of 108 cubic mm in soft tissue."""
    hu = np.full((36, 24, 30), 40.0)
    hu[4:32, 5:19, 4:13] = hu[4:32, 5:19, 17:26] = -850.0
    write_series(folder, hu, SPACING, PatientName="Doe^Jane", PatientID="4711")


def arguments(series: Path, output: Path, models: Path) -> list[str]:
    """Give the arguments of the command line for a run."""
    chosen = [part for assignment in _SETTINGS for part in ("--set", assignment)]
    return [*("-i", str(series)), *("-o", str(output)), *("-m", str(models)), *chosen]


def run(series: Path, output: Path, models: Path, *settings: str) -> Any:
    """Run in this process."""
    request = Request(series, output, models, load_settings([*_SETTINGS, *settings]), ANY_SERIES)
    return run_folder(request, lambda line: None)


def run_as_a_person(series: Path, output: Path, models: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run by the command line."""
    command = [sys.executable, "-m", "app", *arguments(series, output, models), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
