"""Networks converted for OpenVINO ahead of all runs, beside their weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.application import Models
from app.outcome import RunFailed, UsageError
from models.record import TASKS, ModelUnavailable, read_model
from models.runtime import CONVERTED, Runtime


def convert(models: Path) -> Path:
    """Convert the networks of a models folder; every run with them, of this version, then finds them converted.

    Parameters
    ----------
    models : Path
        Holds the model folders; :data:`~models.runtime.CONVERTED` is made in it.

    Returns
    -------
    Path
        Where they are.

    Raises
    ------
    UsageError
        If it cannot be written.
    RunFailed
        If a model is missing or altered, or there is no room for what is made of it.
    """
    folder = models / CONVERTED
    try:
        for task in TASKS:  # before anything is removed
            read_model(models / task)
    except ModelUnavailable as error:
        raise RunFailed(str(error)) from error
    try:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # whatever the umask: the uid of the runs is to read it
        for entry in folder.iterdir():  # of other versions or weights, or left by a conversion that died
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to the folder {folder}: {error.strerror}") from error
    loaded = Models.load(models, Runtime("openvino", cache=folder))
    networks = (loaded.lungs, loaded.lesions, loaded.involvement, loaded.classifier)
    if len(list(folder.iterdir())) < sum(len(network.heavy) for network in networks):
        raise RunFailed(f"the converted networks could not be written to {folder}")
    return folder
