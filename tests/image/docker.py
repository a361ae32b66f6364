"""Runs the image as a hospital does, by the engine that ``DOCKER_HOST`` names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

IMAGE = os.environ.get("IMAGE", "covid-ct-map:latest")
HARDENED = (
    *("--network", "none", "--read-only", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges"),
)
TINY = ("--env", "COVID_CT_IN_PLANE=32", "--env", "COVID_CT_PRECISION=float32")
"""Settings for tiny series and models."""
INPUT, OUTPUT, MODELS = "/var/holoscan/input", "/var/holoscan/output", "/opt/holoscan/models"


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def mount(source: Path, target: str, *, readonly: bool = False) -> tuple[str, str]:
    return "--mount", f"type=bind,source={source},target={target}{',readonly' if readonly else ''}"


def run(*options: str, command: tuple[str, ...] = (), user: str = "10001:10001") -> subprocess.CompletedProcess[str]:
    """Run the image with all hardening, and with what ``options`` add."""
    return docker("run", "--rm", *HARDENED, "--user", user, *options, IMAGE, *command)


def inspect() -> dict[str, Any]:
    """What the engine knows of the image."""
    (image,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    return dict(image)


def writable(folder: Path) -> Path:
    """Make a folder that any uid can write."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return folder


def give(folder: Path, owner: str) -> None:
    """Change the owner of a folder and all that is in it, in a container: the tests need not be root."""
    options = ("--rm", "--network", "none", "--user", "0:0", "--entrypoint", "chown", *mount(folder, "/given"))
    done = docker("run", *options, IMAGE, "-R", owner, "/given")
    assert done.returncode == 0, done.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
