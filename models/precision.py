"""Arithmetic: float32, or bfloat16 where the processor or the GPU has instructions for it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
FAST_IN_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Capabilities of processors, by PyTorch's names, with which the networks run several times, or twice, as fast."""


def fast_in_bfloat16(device: Device = "cpu") -> bool:
    """Say whether the processor, or the GPU, has instructions for bfloat16."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in FAST_IN_BFLOAT16)


def resolve(precision: Precision, device: Device = "cpu") -> Literal["float32", "bfloat16"]:
    """Return what ``auto`` means on a device: bfloat16 where it is fast in it."""
    if precision != "auto":
        return precision
    return "bfloat16" if fast_in_bfloat16(device) else "float32"
