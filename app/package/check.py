"""Whether all that a run needs is in place, found out in a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from app.outcome import RunFailed, UsageError
from app.settings import load_rules, load_settings
from models.record import TASKS, ModelUnavailable, read_model


def check(models: Path, configuration: Path | None, source: Path | None, output: Path | None) -> Iterator[str]:
    """Check settings, configuration, models and folders; yield a line for each that is right.

    Parameters
    ----------
    models : Path
        Holds the model folders.
    configuration : Path, optional
        ``app.yaml``.
    source, output : Path, optional
        Folders of a run, where they are to be checked too.

    Raises
    ------
    UsageError
        If a setting, the configuration or a folder is wrong.
    RunFailed
        If a model is missing or altered.
    """
    load_settings()
    yield "settings: right"
    load_rules(configuration)
    yield f"configuration: {configuration or 'none, any CT series will do'}"
    for task in TASKS:
        yield f"model {task}: {_model(models / task)}"
    if source is not None:
        _usable(source, "input", os.R_OK | os.X_OK)
        yield f"input folder: {source} can be read"
    if output is not None:
        _usable(output, "output", os.R_OK | os.W_OK | os.X_OK)
        yield f"output folder: {output} can be written"


def _model(folder: Path) -> str:
    try:
        record, _ = read_model(folder)
    except ModelUnavailable as error:
        raise RunFailed(str(error)) from error
    return f"{record.name} {record.version}, SHA-256 {record.sha256[:12]}"


def _usable(folder: Path, what: str, mode: int) -> None:
    if not folder.is_dir():
        raise UsageError(f"the {what} folder {folder} does not exist")
    if not os.access(folder, mode):
        raise UsageError(f"no permission to use the {what} folder {folder} as uid {os.getuid()}")
