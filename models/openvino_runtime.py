"""Networks in OpenVINO: converted once, kept in a cache under the hash of their weights.

OpenVINO reports its use to its maker when models are converted. It is not allowed to: without the package that does so,
nothing is sent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.record import ModelRecord, code_digest

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # "not there", for whoever imports it

import openvino as ov  # type: ignore[import-untyped]  # noqa: E402

LARGE = 2**18
"""Values of an input above which what it needed is given back, which costs a little time."""
_MODEL, _TENSORS, _SUM = "model.xml", "model.bin", "sha256"


class _Method(nn.Module):
    """A method of a network as a module, which is what can be converted."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the method as its class has it."""
        return torch.as_tensor(getattr(type(self.network), self.method)(self.network, *inputs))


def in_openvino(
    network: nn.Module,
    method: str,
    shapes: tuple[tuple[int, ...], ...],
    record: ModelRecord,
    precision: str,
    beside: Path,
    cache: Path | None,
) -> Callable[..., Tensor]:
    """Return a method of a network as a function that OpenVINO computes on the CPU, in as many threads as PyTorch has.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode, on the CPU.
    method : str
        From tensors of float32 to a tensor.
    shapes : tuple of tuple of int
        Of inputs with which it can be traced. It takes others, too, of as many axes. Where they are a single item,
        those of a batch are computed one by one: networks normalise one item in a way that would mix those of a batch.
    record : ModelRecord
        Identity of the weights.
    precision : {"float32", "bfloat16"}
        Arithmetic.
    beside : Path
        Folder where the converted network may be; nothing is written there.
    cache : Path, optional
        Where it is looked for before, and kept where it is in neither; without it, or where it cannot be written, it is
        converted each time.

    Raises
    ------
    RuntimeError
        If OpenVINO cannot convert or compile it.
    """
    core = _core()
    key = _key(record, method)
    model = None if cache is None else _read(core, cache / key)
    model = _read(core, beside / key) if model is None else model
    if model is None:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is the same for all sizes and one item
            examples = tuple(torch.rand(shape) for shape in shapes)
            # OpenVINO would trace it itself, and then compute it three times to check what tests check.
            traced = torch.jit.trace(_Method(network, method), examples, check_trace=False)  # type: ignore[no-untyped-call]
            model = ov.convert_model(traced, example_input=examples)
        if cache is not None:
            _keep(core, model, cache / key)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
    }
    single = shapes[0][0] == 1
    model.reshape({i: [1 if single else -1, shape[1], *[-1] * len(shape[2:])] for i, shape in enumerate(shapes)})
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def compute(*inputs: Tensor) -> Tensor:
        arrays = [each.float().contiguous().numpy() for each in inputs]
        (result,) = request.infer(arrays, share_inputs=True, share_outputs=False).values()
        if max(each.size for each in arrays) > LARGE:
            compiled.release_memory()  # it would be kept for the next one
        return torch.from_numpy(result)

    def one_by_one(*inputs: Tensor) -> Tensor:
        items = zip(*(torch.split(each, 1) for each in inputs), strict=True)
        return torch.cat([compute(*item) for item in items])

    return one_by_one if single else compute


@cache
def _core() -> Any:
    """Return the only core of this process, which is never given up.

    With each the CPU plugin takes over the signal stack of the thread, and in the end gives back the one before. Given
    up in another order, they leave a stack that is no more: the next signal, even a child's end, kills the process.
    """
    return ov.Core()


def _key(record: ModelRecord, method: str) -> str:
    """Name what the conversion depends on: weights, settings, method, our code and the versions of both libraries."""
    digest = hashlib.sha256()
    for part in (record.sha256, record.settings, method, ov.__version__, torch.__version__):
        digest.update(part.encode() + b"\0")
    digest.update(code_digest("models").encode())
    return digest.hexdigest()


def _read(core: Any, entry: Path) -> Any | None:
    """Read a converted network; None where there is none, it is damaged, or others may have written it."""
    try:
        if any(_of_another(path) for path in (entry, *(entry / name for name in (_MODEL, _TENSORS, _SUM)))):
            return None
        if (entry / _SUM).read_text("ascii") != _sum(entry):
            return None
        return core.read_model(entry / _MODEL)
    except (OSError, ValueError, RuntimeError):
        return None


def _of_another(path: Path) -> bool:
    status = path.stat()
    return status.st_uid not in (0, os.getuid()) or bool(status.st_mode & 0o022)


def _keep(core: Any, model: Any, entry: Path) -> None:
    """Write a converted network, whole or not at all: other processes may do the same. Where that fails, go on."""
    with suppress(OSError, RuntimeError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, ignore_cleanup_errors=True) as temporary:
            made = Path(temporary, entry.name)
            made.mkdir()
            ov.save_model(model, made / _MODEL, compress_to_fp16=False)
            (made / _SUM).write_text(_sum(made), "ascii")
            for path in (made, *made.iterdir()):  # whatever the umask: others may read it, not write
                path.chmod(0o755 if path is made else 0o644)
            if _read(core, made) is None:
                return
            if entry.exists() and _read(core, entry) is None:
                shutil.rmtree(entry, ignore_errors=True)
            made.rename(entry)


def _sum(entry: Path) -> str:
    digest = hashlib.sha256()
    for name in (_MODEL, _TENSORS):
        digest.update((entry / name).read_bytes())
    return digest.hexdigest()
