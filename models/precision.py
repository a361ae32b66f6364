"""Arithmetic of inference: float32, or bfloat16 where the processor has matrix units for it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def resolve(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Return what ``auto`` means here: bfloat16 on processors with AMX, where it is several times faster."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16", False) else "float32"


def autocast(precision: Precision) -> torch.autocast:
    """Return the context in which networks run on the CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=resolve(precision) == "bfloat16")
