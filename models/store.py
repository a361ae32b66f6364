"""Model folders on disk: safetensors weights with a checked hash, beside their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import nn

from models.record import METADATA, WEIGHTS, ModelRecord, ModelUnavailable, read_model

Network = TypeVar("Network", bound=nn.Module)


def load_network(folder: Path, build: Callable[..., Network]) -> tuple[Network, ModelRecord]:
    """Build a network as its metadata say, fill it with its weights in float32, and set it to evaluation.

    Parameters
    ----------
    folder : Path
        Holds ``weights.safetensors`` (float16 or float32) and ``metadata.json``.
    build : callable
        Class of the network; called with the settings of the metadata as keywords.

    Returns
    -------
    nn.Module
        Ready for inference, on the CPU.
    ModelRecord
        What was loaded.

    Raises
    ------
    ModelUnavailable
        If a file is missing, the hash differs from the metadata, or settings or tensors do not fit.
    """
    record, content = read_model(folder)
    try:
        network = build(**json.loads(record.settings))
        network.load_state_dict({name: tensor.float() for name, tensor in load(content).items()})
    except Exception as error:  # safetensors and torch raise their own kinds
        raise ModelUnavailable(f"model {folder.name}: the weights do not fit the network") from error
    return network.eval(), record


def save_weights(
    folder: Path,
    network: nn.Module,
    metadata: Mapping[str, object],
    settings: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float16,
) -> ModelRecord:
    """Write a model folder: weights and metadata with their hash.

    Parameters
    ----------
    folder : Path
        Made where absent.
    network : nn.Module
        Whose weights to write.
    metadata : mapping
        At least ``name`` and ``version``; ``network_settings`` and ``weights_sha256`` are filled in.
    settings : mapping, optional
        What the network was built with, where that is not the default.
    dtype : torch.dtype
        Of the weights on disk.

    Raises
    ------
    ValueError
        If a weight is not finite.
    """
    state = {name: tensor.to(dtype).detach().contiguous() for name, tensor in network.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError(f"weights are not finite as {dtype}")
    content = save(state)
    sha256 = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    filled = {**metadata, "network_settings": dict(settings or {}), "weights_sha256": sha256}
    (folder / METADATA).write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return read_model(folder)[0]
