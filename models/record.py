"""Model folders on disk, without their tensors: metadata, and weights as bytes with a checked hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent
"""Models folder of this installation."""
WEIGHTS = "weights.safetensors"
METADATA = "metadata.json"
TASKS = ("lungs", "lesions", "involvement", "classifier")
"""The models of the application; each has a folder of this name."""


class ModelUnavailable(Exception):
    """A model folder is missing, incomplete or altered. The message is one clear line."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Identity of the weights in use.

    Parameters
    ----------
    name : str
        Name of the model, as in ``metadata.json``.
    version : str
        Version of the weights.
    sha256 : str
        SHA-256 of the weight file, hexadecimal.
    settings : str
        What the network is built with, such as its working resolution: a JSON object with sorted keys. Other settings,
        other results, hence part of the identity.
    """

    name: str
    version: str
    sha256: str
    settings: str = "{}"


def read_model(folder: Path) -> tuple[ModelRecord, bytes]:
    """Read a model folder.

    Parameters
    ----------
    folder : Path
        Holds ``weights.safetensors`` and ``metadata.json``.

    Returns
    -------
    ModelRecord
        What the metadata say.
    bytes
        The weight file, whose hash is the one that the metadata state.

    Raises
    ------
    ModelUnavailable
        If a file is missing or damaged, or the hash differs.
    """
    try:
        metadata = json.loads((folder / METADATA).read_text("utf-8"))
        identity = metadata["name"], metadata["version"], metadata["weights_sha256"]
        record = ModelRecord(*identity, json.dumps(dict(metadata.get("network_settings", {})), sort_keys=True))
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"model {folder.name}: cannot read {error.filename}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"model {folder.name}: {METADATA} is damaged") from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ModelUnavailable(f"model {folder.name}: {WEIGHTS} is not the file that {METADATA} describes")
    return record, content


@cache
def code_digest(*packages: str) -> str:
    """Hash the code of packages, given by their folders: what they have made is to be made anew when it changes.

    Raises
    ------
    ValueError
        If there is no code in one of them.
    """
    digest = hashlib.sha256()
    for package in packages:
        sources = sorted((SHIPPED.parent / package).rglob("*.py"))
        if not sources:
            raise ValueError(f"there is no code in {package}")
        for source in sources:
            digest.update(source.read_bytes())
    return digest.hexdigest()
