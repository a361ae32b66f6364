"""The two manifests of a MONAI Application Package, made from ``app.yaml`` and this code.

Source: MONAI Deploy, *MONAI Application Package* 1.0.0, "Manifests".
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.outcome import UsageError
from app.settings import read_configuration
from models.record import TASKS
from operators.software import NAME, VERSION

SCHEMA_VERSION = "1.0.0"
MANIFESTS = Path("/etc/holoscan")
APPLICATION = Path("/opt/holoscan/app")
MODELS = Path("/opt/holoscan/models")
DOCS = Path("/opt/holoscan/docs")
WORKING_DIRECTORY = Path("/var/holoscan")
CONFIGURATION = WORKING_DIRECTORY / "app.yaml"
INPUT, OUTPUT = "input/", "output/"
COMMAND = f"python3 -u {APPLICATION}/"
ENVIRONMENT = {
    "HOLOSCAN_APPLICATION": f"{APPLICATION}/",
    "HOLOSCAN_INPUT_PATH": f"{WORKING_DIRECTORY}/{INPUT}",
    "HOLOSCAN_OUTPUT_PATH": f"{WORKING_DIRECTORY}/{OUTPUT}",
    "HOLOSCAN_WORKDIR": f"{WORKING_DIRECTORY}/",
    "HOLOSCAN_MODEL_PATH": f"{MODELS}/",
    "HOLOSCAN_CONFIG_PATH": f"{CONFIGURATION}",
    "HOLOSCAN_APP_MANIFEST_PATH": f"{MANIFESTS}/app.json",
    "HOLOSCAN_PKG_MANIFEST_PATH": f"{MANIFESTS}/pkg.json",
    "HOLOSCAN_DOCS": f"{DOCS}/",
    "HOLOSCAN_LOGS": f"{WORKING_DIRECTORY}/logs/",
}
"""What the process inside the package is told where nobody says otherwise."""

Manifest = dict[str, Any]
_Size = Field(pattern=r"^[0-9]+(\.[0-9])?(Mi|Gi)$")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Format(_Part):
    """What is read or written: ``type`` as the specification names it, and the media types."""

    type: str
    mediaTypes: list[str]  # noqa: N815 - as it is written


class ApplicationPart(_Part):
    """The key ``application`` of ``app.yaml``; its names are those of the MONAI Deploy packager."""

    title: str
    version: str
    timeout: int = Field(0, ge=0)
    input_formats: list[Format] = Field(alias="input-formats", min_length=1)
    output_formats: list[Format] = Field(alias="output-formats", min_length=1, max_length=1)


class ResourcesPart(_Part):
    """The key ``resources`` of ``app.yaml``."""

    cpu: int = Field(ge=1)
    gpu: int = Field(ge=0)
    memory: str = _Size
    sharedMemory: str = _Size  # noqa: N815 - as it is written


class PackageConfiguration(BaseModel):
    """What ``app.yaml`` says of the package; other keys are for other readers."""

    application: ApplicationPart
    resources: ResourcesPart


def load_package_configuration(path: Path) -> PackageConfiguration:
    """Read what a configuration says of the package.

    Raises
    ------
    UsageError
        If it cannot be read, lacks something, or names another software or version than this.
    """
    try:
        configuration = PackageConfiguration.model_validate(read_configuration(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"configuration {path}, {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    stated = configuration.application.title, configuration.application.version
    if stated != (NAME, VERSION):
        raise UsageError(f"configuration {path}: {' '.join(stated)} is not this software, {NAME} {VERSION}")
    return configuration


def manifests(configuration: PackageConfiguration) -> dict[str, Manifest]:
    """Make both manifests, by their file names."""
    return {"app.json": application_manifest(configuration), "pkg.json": package_manifest(configuration)}


def application_manifest(configuration: PackageConfiguration) -> Manifest:
    """Make ``app.json``: how the application is run, what it reads and writes."""
    application = configuration.application
    return {
        "apiVersion": SCHEMA_VERSION,
        "type": "application",
        "command": COMMAND,
        "environment": ENVIRONMENT,
        "input": {"path": INPUT, "formats": [each.model_dump() for each in application.input_formats]},
        "output": {"path": OUTPUT, "format": application.output_formats[0].model_dump()},
        "readiness": _probe("check"),
        "sdk": "monai-deploy",
        "sdkVersion": importlib.metadata.version("monai-deploy-app-sdk"),
        "timeout": application.timeout,
        "version": application.version,
        "workingDirectory": f"{WORKING_DIRECTORY}/",
    }


def package_manifest(configuration: PackageConfiguration) -> Manifest:
    """Make ``pkg.json``: what the package holds, and what it needs to run."""
    return {
        "apiVersion": SCHEMA_VERSION,
        "applicationRoot": f"{APPLICATION}/",
        "modelRoot": f"{MODELS}/",
        "models": [{"name": task, "path": task} for task in TASKS],
        "resources": configuration.resources.model_dump(),
        "version": configuration.application.version,
    }


def as_text(manifest: object) -> str:
    """Write a manifest as JSON that people can read."""
    return json.dumps(manifest, indent=2) + "\n"


def _probe(command: str) -> Manifest:
    return {
        "type": "command",
        "command": [*COMMAND.split(), command],
        "initialDelaySeconds": 1,
        "periodSeconds": 30,
        "timeoutSeconds": 10,
        "failureThreshold": 3,
    }
