"""What a person may set, checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.outcome import UsageError
from operators.selection_rules import ANY_SERIES, SelectionRules

PREFIX = "COVID_CT_"
_OF_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
"""Variables that Kubernetes sets for each service, one that is called as we are among them."""
DEBUG = f"{PREFIX}DEBUG"
"""Environment variable, not a setting: 1 shows tracebacks and the messages of libraries. These may quote headers."""


class Settings(BaseSettings):
    """Settings of one run; the environment variable of ``x`` is ``COVID_CT_X``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    studies: Literal["each", "one"] = "each"
    """Of a folder with several studies, process each into its own output folder, or refuse the folder."""
    max_gap_mm: float = Field(5.0, gt=0.0, le=20.0)
    """Where the gaps between slices are not uniform, the greatest one that is interpolated."""
    threshold: float = Field(0.5, gt=0.0, lt=1.0)
    """Probability of COVID-19 at and above which the study is called positive."""
    in_plane: int | None = Field(None, ge=32, le=1024)
    """Rows and columns of the slices that the classifier sees (paper, section 3: in-plane resolution); by default what
    it learned from."""
    target: Literal["positive", "negative", "decision"] = "positive"
    """Class whose logit is explained; ``decision`` is the class decided for."""
    gate_share: float = Field(1.0, ge=0.5, le=1.0)
    """Share of its relevance that the gate hands to each branch: 1 as the paper, 0.5 to split it."""
    residual_limit: float = Field(0.75, gt=0.0)
    """What a heatmap may lack or exceed, as a share of what it explains, before it is called unreliable."""
    layout: Literal["auto", "folders", "flat"] = "auto"
    """Put the objects into a folder for each kind, or all beside ``result.json``; ``auto`` is flat under mercure."""
    deflate: bool = False
    """Write segmentation and parametric maps in Deflated Explicit VR Little Endian."""
    pdf: bool = False
    """Write the summary page as an encapsulated PDF too."""
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    """What computes the networks; ``auto`` is PyTorch on a GPU, else OpenVINO on the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of both lesion networks; ``auto`` is bfloat16 where the GPU or the processor is fast in it."""

    @property
    def flat(self) -> bool:
        """Whether all objects go beside ``result.json``: mercure sends to the PACS only what lies there."""
        return self.layout == "flat" or (self.layout == "auto" and "MERCURE_OUT_DIR" in os.environ)

    @property
    def fingerprint(self) -> str:
        """All values that can change a result, in one line: other settings, other UIDs."""
        return self.model_dump_json(exclude={"studies", "layout", "deflate", "pdf"})


def load_settings(assignments: Iterable[str] = ()) -> Settings:
    """Read the settings from ``NAME=VALUE`` assignments, then the environment, then the defaults.

    Raises
    ------
    UsageError
        If a name is unknown, in the environment too, or a value does not fit.
    """
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: write NAME=VALUE")
        values[name.strip()] = value.strip()
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    stated = [name for name in os.environ if name.startswith(PREFIX) and not _OF_KUBERNETES.search(name)]
    unknown = [name for name in stated if name not in (*known, DEBUG)]
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]} in the environment; known: {', '.join(known)}")
    try:
        return Settings(**values)  # type: ignore[arg-type]  # pydantic converts and checks
    except ValidationError as error:
        raise UsageError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if name not in Settings.model_fields:
        return f"unknown setting {name}; known: {', '.join(Settings.model_fields)}"
    return f"setting {name}: {first['msg'].lower()}"


def read_configuration(path: Path) -> dict[str, Any]:
    """Read an application configuration (``app.yaml``).

    Raises
    ------
    UsageError
        If it cannot be read or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the configuration {path} is no YAML mapping") from error
    if not isinstance(content, dict):
        raise UsageError(f"the configuration {path} is no YAML mapping")
    return content


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return where in a configuration the first mistake is, empty for all of it, and what is wrong there."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def load_rules(path: Path | None) -> SelectionRules:
    """Read which series to take from the key ``series-selection`` of an application configuration (``app.yaml``).

    Without a configuration any series will do.

    Raises
    ------
    UsageError
        If the file cannot be read, or says something unknown.
    """
    if path is None:
        return ANY_SERIES
    content = read_configuration(path)
    try:
        return SelectionRules.model_validate(content.get("series-selection") or {})
    except ValidationError as error:
        place, message = first_problem(error)
        raise UsageError(f"configuration {path}, series-selection.{place}: {message}") from error
