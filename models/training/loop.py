"""The training loop that the segmentation recipes share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from models.training.source import SeededStream

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Settings of a training run.

    Parameters
    ----------
    steps : int
        Number of optimiser steps.
    learning_rate : float
        Peak of the one-cycle schedule of Adam.
    weight_decay : float
        Decoupled weight decay.
    averaging : float
        Decay of the exponential moving average of the weights, which is what is kept.
    seed : int
        Seeds weights and data.
    workers : int
        Processes that prepare batches; 0 prepares them in this one.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    averaging: float = 0.99
    seed: int = 0
    workers: int = 1


def fit(
    network: Network,
    stream: SeededStream,
    loss_of: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    settings: LoopSettings,
    tell: Callable[[str], None],
    checkpoint: Path | None = None,
) -> Network:
    """Train ``network`` on endless batches in bfloat16 autocast and return the averaged network.

    Parameters
    ----------
    loss_of : callable
        Maps the network and one batch to a scalar.
    tell : callable
        Receives a line of progress now and then.
    checkpoint : Path, optional
        The averaged weights are written here (safetensors, float32) every 100 steps.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))  # type: ignore[no-untyped-call]
    ahead = 4 if settings.workers else None
    loader = iter(DataLoader(stream, batch_size=None, num_workers=settings.workers, prefetch_factor=ahead))
    network.train()
    start, recent = time.perf_counter(), 0.0
    for step in range(1, settings.steps + 1):
        batch = next(loader)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(network, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % 25 == 0 or step == settings.steps:
            tell(
                f"step {step}/{settings.steps}: loss {recent:.4f} ({(time.perf_counter() - start) / step:.2f} s a step)"
            )
        if checkpoint is not None and (step % 100 == 0 or step == settings.steps):
            save_file({k: v.contiguous() for k, v in average.module.state_dict().items()}, checkpoint)
    return cast(Network, average.module)
