"""Costs are those of the networks: operations against a count by hand, parameters against the design."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.application import Models
from app.cli import main
from app.cohort.images import bare_volume
from app.evaluation.compute import Cost, _peak_memory, measure_costs
from models.runtime import Runtime
from operators.volume import CTVolume
from tests.app.test_application import models  # noqa: F401 - a fixture
from tests.app.tiny_run import SPACING, write_lungs


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    hu = np.full((36, 24, 30), 40.0, dtype=np.float32)
    hu[4:32, 5:19, 4:13] = hu[4:32, 5:19, 17:26] = -850.0
    return bare_volume(hu, SPACING)


@contextmanager
def _counted(*networks: nn.Module) -> Iterator[list[float]]:
    """Count two operations for each weight and each place where a convolution puts it."""
    total = [0.0]

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        places = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
        total[0] += 2.0 * weight.numel() * places[0, 0].numel() * len(places)

    hooks = [
        layer.register_forward_hook(count)
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d)
    ]
    yield total
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def measured(
    models: Path,  # noqa: F811
    volume: CTVolume,
) -> tuple[dict[str, Cost], float]:
    """Costs by stage, and the operations of the segmentation networks counted by hand."""
    loaded = Models.load(models, Runtime("torch"))
    with _counted(loaded.lungs, loaded.lesions, loaded.involvement) as total:
        costs = measure_costs(volume, loaded, loaded)
    return {cost.stage: cost for cost in costs}, total[0]


@pytest.mark.slow
def test_operations_are_those_of_a_count_by_hand(measured: tuple[dict[str, Cost], float]) -> None:
    costs, by_hand = measured
    segmenting = sum(costs[name].gflop for name in ("lungs", "lesions", "involvement"))
    assert segmenting == pytest.approx(by_hand / 2 / 1e9), "each stage runs twice"
    assert all(cost.seconds > 0 and cost.gflop > 0 for cost in costs.values())


@pytest.mark.slow
def test_parameters_are_those_of_the_design(measured: tuple[dict[str, Cost], float]) -> None:
    parameters = {name: cost.parameters for name, cost in measured[0].items()}
    assert parameters["classifier"] == 1_423_938
    assert parameters["explanation"] == 0
    assert parameters["lesions"] == pytest.approx(16.3e6, rel=0.01)
    assert parameters["lungs"] == pytest.approx(0.69e6, rel=0.03)


def test_growth_of_memory_is_seen() -> None:
    with _peak_memory() as peak:
        held = torch.ones(64, 1024, 1024)  # 256 MiB
        for _ in range(20):
            held.add_(1.0)
        del held
    assert peak() > 200e6


@pytest.mark.slow
def test_the_command_writes_the_table(
    models: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_lungs(tmp_path / "in")
    output = tmp_path / "out"
    assert main(["evaluate", "compute", "-i", str(tmp_path / "in"), "-m", str(models), "-o", str(output)]) == 0
    table = (output / "compute.md").read_text("utf-8")
    assert capsys.readouterr().out == table
    assert "| paper, on a TITAN Xp | 17.34 | 5407.7 | 6.46 | 78 |" in table
    content = json.loads((output / "compute.json").read_text("utf-8"))
    costs = [Cost(**stage) for stage in content["stages"]]
    assert content["total"]["gflop"] == pytest.approx(sum(cost.gflop for cost in costs))
    assert content["total"]["memory_gb"] == max(cost.memory_gb for cost in costs)
    assert f"| total | {content['total']['parameters'] / 1e6:.2f} |" in table
    assert "Doe" not in table
