"""Model folders on disk: safetensors weights with a checked hash, beside their metadata."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from models.record import METADATA, WEIGHTS, ModelRecord, ModelUnavailable, read_model


def load_weights(folder: Path, network: nn.Module) -> ModelRecord:
    """Fill ``network`` with the weights of a model folder, in float32, and set it to evaluation.

    Parameters
    ----------
    folder : Path
        Holds ``weights.safetensors`` (float16 or float32) and ``metadata.json``.
    network : nn.Module
        Receives the weights; names and shapes must agree exactly.

    Returns
    -------
    ModelRecord
        What was loaded.

    Raises
    ------
    ModelUnavailable
        If a file is missing, the hash differs from the metadata, or the tensors do not fit.
    """
    record, content = read_model(folder)
    try:
        state = {name: tensor.float() for name, tensor in load(content).items()}
        network.load_state_dict(state)
    except Exception as error:  # safetensors and torch raise their own kinds
        raise ModelUnavailable(f"model {folder.name}: the weights do not fit the network") from error
    network.eval()
    return record


def save_weights(folder: Path, network: nn.Module, metadata: dict[str, object]) -> ModelRecord:
    """Write a model folder: float16 weights and metadata with their hash.

    Parameters
    ----------
    folder : Path
        Made where absent.
    network : nn.Module
        Whose weights to write.
    metadata : dict
        At least ``name`` and ``version``; ``weights_sha256`` is filled in.
    """
    content = save(
        {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    )
    sha256 = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    text = json.dumps({**metadata, "weights_sha256": sha256}, indent=2, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", "utf-8")
    return ModelRecord(str(metadata["name"]), str(metadata["version"]), sha256)
