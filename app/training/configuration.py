"""Settings of a training: the recommended ones beside each model, a person's own file, and assignments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from app.outcome import UsageError
from models.training.settings import TrainingSettings

Kind = TypeVar("Kind", bound=TrainingSettings)


def load_training_settings(
    kind: type[Kind], recommended: Path, chosen: Path | None = None, assignments: Iterable[str] = ()
) -> Kind:
    """Read settings; later ones replace earlier ones.

    Parameters
    ----------
    kind : type
        Of the settings.
    recommended : Path
        YAML file with all of them.
    chosen : Path, optional
        YAML file with those that a person wants otherwise.
    assignments : iterable of str
        ``NAME=VALUE``; values as in YAML.

    Raises
    ------
    UsageError
        If a file cannot be read, a name is unknown or a value does not fit.
    """
    values = _read(recommended)
    if chosen is not None:
        values |= _read(chosen)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: write NAME=VALUE")
        values[name.strip()] = _parse(value, f"--set {assignment}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown setting {name}; known: {', '.join(kind.model_fields)}") from error
        raise UsageError(f"setting {name}: {first['msg'].lower().removeprefix('value error, ')}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings {path}") from error
    values = _parse(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UsageError(f"the settings {path} are no YAML mapping")
    return values


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is no YAML") from error
