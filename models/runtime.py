"""Where the networks run: in PyTorch, on a GPU where there is one, or in OpenVINO on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from models.precision import Device, Precision, fast_in_bfloat16, resolve
from models.record import ModelRecord, ModelUnavailable
from models.store import load_network

Engine = Literal["auto", "torch", "openvino"]
TensorFunction = Callable[..., Tensor]


class Heavy(Protocol):
    """A network that says which of its methods are the work."""

    heavy: ClassVar[Mapping[str, tuple[tuple[int, ...], ...]]]
    """Methods from tensors to a tensor, with a shape of every input with which each can be traced. One that would treat
    a batch otherwise than its items is traced with a single item."""
    exact: ClassVar[bool]
    """Computes in float32 always."""


HeavyNetwork = TypeVar("HeavyNetwork", bound=Heavy)


CONVERTED = "converted"
"""Folder beside those of the models, for networks that were converted for OpenVINO ahead of all runs."""


class RuntimeUnavailable(Exception):
    """What was asked for cannot be had on this machine. The message is one clear line."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What computes the heavy methods of networks, in which arithmetic.

    Parameters
    ----------
    engine : {"torch", "openvino"}
        OpenVINO runs on the CPU alone.
    device : {"cpu", "cuda"}
        Where.
    precision : {"float32", "bfloat16"}
        Arithmetic of both lesion networks; the others compute in float32.
    cache : Path, optional
        Where what OpenVINO makes of networks is kept, unless it lies in :data:`CONVERTED` beside them; see
        :mod:`models.openvino_runtime`.
    """

    engine: Literal["torch", "openvino"]
    device: Device = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    cache: Path | None = None

    @property
    def name(self) -> str:
        """Say what computes: ``torch``, ``torch-cuda`` or ``openvino``."""
        return self.engine if self.device == "cpu" else f"{self.engine}-{self.device}"

    def load(self, folder: Path, build: Callable[..., HeavyNetwork]) -> tuple[HeavyNetwork, ModelRecord]:
        """Load a network, as :func:`models.store.load_network` does, to run here.

        Parameters
        ----------
        folder, build
            As there.

        Raises
        ------
        ModelUnavailable
            As there, or if OpenVINO cannot convert it.
        """
        loaded, record = load_network(folder, cast(Callable[..., nn.Module], build))
        network: Any = loaded.to(self.device)
        chosen = "float32" if network.exact else self.precision
        beside = folder.parent / CONVERTED
        if self.device == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        for method, shapes in network.heavy.items():
            if self.engine == "torch":
                function = _in_torch(getattr(network, method), self.device, chosen)
            else:
                from models.openvino_runtime import in_openvino  # only where it is used: PyTorch needs none of it

                try:
                    function = in_openvino(network, method, shapes, record, chosen, beside, self.cache)
                except RuntimeError as error:
                    raise ModelUnavailable(f"model {folder.name}: OpenVINO cannot run it; try runtime=torch") from error
            setattr(network, method, function)
        return network, record


def choose(engine: Engine = "auto", precision: Precision = "auto", cache: Path | None = None) -> Runtime:
    """Return what is fastest here of what is asked for.

    A GPU before the CPU, and on it PyTorch; on the CPU OpenVINO, bfloat16 where the processor is fast in it.

    Parameters
    ----------
    engine : {"auto", "torch", "openvino"}
    precision : {"auto", "float32", "bfloat16"}
    cache : Path, optional
        As of :class:`Runtime`.

    Raises
    ------
    RuntimeUnavailable
        If OpenVINO is to compute in bfloat16 on a processor that cannot.
    """
    if engine != "openvino" and torch.cuda.is_available():
        return Runtime("torch", "cuda", resolve(precision, "cuda"))
    arithmetic = resolve(precision)
    possible = arithmetic == "float32" or fast_in_bfloat16()
    if engine == "openvino" and not possible:
        raise RuntimeUnavailable("OpenVINO has no bfloat16 on this processor; leave precision or runtime on auto")
    return Runtime("openvino" if possible and engine != "torch" else "torch", "cpu", arithmetic, cache)


def _in_torch(function: TensorFunction, device: str, precision: str) -> TensorFunction:
    """Compute on a device in an arithmetic; what comes in and goes out stays where it was, in float32."""

    @torch.inference_mode()
    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            result = function(*(each.to(device) for each in inputs))
        return result.float().to(inputs[0].device)

    return run
