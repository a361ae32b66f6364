"""Arithmetic of inference: float32, or bfloat16 where the processor has matrix units for it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(precision: Precision) -> torch.autocast:
    """Return the context in which networks run on the CPU.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        ``auto`` takes bfloat16 on processors with AMX, where it is several times faster, else float32.
    """
    fast = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16" or (precision == "auto" and fast))
