"""Arithmetic of inference: float32, or bfloat16 where the processor has instructions for it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
FAST_IN_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Capabilities of processors, by PyTorch's names, with which the networks run several times, or twice, as fast."""


def resolve(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return what ``auto`` means here: bfloat16 on processors that are fast in it."""
    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if any(capabilities.get(name, False) for name in FAST_IN_BFLOAT16) else "float32"


def autocast(precision: Precision) -> torch.autocast:
    """Return the context in which networks run on the CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=resolve(precision) == "bfloat16")
