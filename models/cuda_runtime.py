"""CUDA's runtime library, without which Holoscan cannot be imported, on machines without a GPU either."""

from __future__ import annotations

import contextlib
import ctypes


def load_cuda_runtime() -> None:
    """Load the library from the package that pip installed, where the system has none.

    Holoscan is linked against it but does not look for it there. MONAI imports Holoscan, so this must come before both.
    """
    try:
        ctypes.CDLL("libcudart.so.13")
    except OSError:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

        with contextlib.suppress(DynamicLibNotFoundError):  # Holoscan says what is missing if it is imported
            load_nvidia_dynamic_lib("cudart")
