"""What the package tells and hands out about itself.

Source: MONAI Deploy, *MONAI Application Package* 1.0.0, "Manifest Export".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from app.outcome import UsageError
from app.package.manifests import Manifest, as_text, load_package_configuration, manifests
from app.package.tree import copy_file

EXPORT = Path("/var/run/holoscan/export")
_VARIABLES = {"app.json": "HOLOSCAN_APP_MANIFEST_PATH", "pkg.json": "HOLOSCAN_PKG_MANIFEST_PATH"}


def show(which: str | None, configuration: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return one manifest, or both by their file names, as JSON.

    Parameters
    ----------
    which : str, optional
        ``app`` or ``pkg``; by default both.
    configuration : Path, optional
        ``app.yaml``, of which manifests are made outside a package.
    environment : mapping
        Inside a package, says where its manifests are.

    Raises
    ------
    UsageError
        If a manifest can neither be read nor made.
    """
    both = {name: _stated(environment.get(variable)) for name, variable in _VARIABLES.items()}
    if None in both.values():
        if configuration is None:
            raise UsageError("there are no manifests here, nor an app.yaml to make them of; give -c FILE")
        both = dict(manifests(load_package_configuration(configuration)))
    return as_text(both[f"{which}.json"] if which else both)


def _stated(path: str | None) -> Manifest | None:
    """Read a manifest, where there is one."""
    if path is None or not Path(path).is_file():
        return None
    try:
        manifest: Manifest = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the manifest {path}") from error
    return manifest


def extract(target: Path = EXPORT, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Copy application, configuration, models and documents out of the package.

    Parameters
    ----------
    target : Path
        A folder that was mounted. Those of ``app``, ``config``, ``models`` and ``docs`` that are in it are filled, all
        four where none of them is.
    environment : mapping
        Says where the parts of the package are.

    Returns
    -------
    list of Path
        The folders that were filled.

    Raises
    ------
    UsageError
        If nothing is mounted, this is no package, or the folder cannot be written.
    """
    if not target.is_dir():
        raise UsageError(f"no folder is mounted at {target}: docker run -v FOLDER:{target} IMAGE extract")
    try:
        mounted = [name for name in _PARTS if (target / name).is_dir()]
        for name in mounted or _PARTS:
            _PARTS[name](target / name, environment)
    except KeyError as missing:
        raise UsageError(f"{missing.args[0]} is not set: only a package can be extracted") from missing
    except OSError as error:
        raise UsageError(f"cannot extract to {target} as uid {os.getuid()}: {error.strerror}") from error
    return [target / name for name in mounted or _PARTS]


def _folder(variable: str) -> Callable[[Path, Mapping[str, str]], None]:
    def copy(target: Path, environment: Mapping[str, str]) -> None:
        source = Path(environment[variable])
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                copy_file(path, target / path.relative_to(source))

    return copy


def _configuration(target: Path, environment: Mapping[str, str]) -> None:
    for variable in ("HOLOSCAN_CONFIG_PATH", *_VARIABLES.values()):
        source = Path(environment[variable])
        copy_file(source, target / source.name)


_PARTS = {
    "app": _folder("HOLOSCAN_APPLICATION"),
    "config": _configuration,
    "models": _folder("HOLOSCAN_MODEL_PATH"),
    "docs": _folder("HOLOSCAN_DOCS"),
}
