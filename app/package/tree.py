"""The files of a MONAI Application Package, laid out as in its root.

All code lies below ``/opt/holoscan/app``, as the specification wants it, and the weights lie below
``/opt/holoscan/models``: who mounts weights of his own there hides no code.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from app.outcome import UsageError
from app.package import manifests
from app.package.manifests import as_text, load_package_configuration
from models.record import METADATA, TASKS, WEIGHTS

_CODE = ("app", "operators", "models")
_CARD = "README.md"
_DOCUMENTS = ("README.md", "LICENSE", "docs", "deploy", "models/README.md")


def write_tree(checkout: Path, root: Path, gpus: int | None = None) -> None:
    """Write the files of the package.

    Parameters
    ----------
    checkout : Path
        The repository of this software.
    root : Path
        Stands for ``/`` of the package; must be absent or empty.
    gpus : int, optional
        How many GPUs the package asks for; by default what ``app.yaml`` says.

    Raises
    ------
    UsageError
        If ``checkout`` is no checkout, its ``app.yaml`` is wrong, or ``root`` cannot be written.
    """
    project = checkout / "pyproject.toml"
    if not project.is_file():
        raise UsageError(f"{checkout} is no checkout of this software: packages are made from one")
    configuration = load_package_configuration(checkout / "app.yaml")
    if gpus is not None:
        resources = configuration.resources.model_copy(update={"gpu": gpus})
        configuration = configuration.model_copy(update={"resources": resources})
    try:
        if root.exists() and any(root.iterdir()):
            raise UsageError(f"the folder {root} is not empty; give another")
        for name, manifest in manifests.manifests(configuration).items():
            _write(_below(root, manifests.MANIFESTS) / name, as_text(manifest))
        _write_application(checkout, _below(root, manifests.APPLICATION), project)
        _write_models(checkout, _below(root, manifests.MODELS))
        _write_documents(checkout, _below(root, manifests.DOCS))
        work = _below(root, manifests.WORKING_DIRECTORY)
        copy_file(checkout / "app.yaml", work / "app.yaml")
        for name in (manifests.INPUT, manifests.OUTPUT):
            (work / name).mkdir()
    except OSError as error:
        raise UsageError(f"cannot write the package to {root}: {error.strerror}") from error


def _write_application(checkout: Path, folder: Path, project: Path) -> None:
    """Write the three packages, what starts them, and what the MONAI Deploy packager is to install for them."""
    for package in _CODE:
        for source in sorted((checkout / package).rglob("*.py")):
            copy_file(source, folder / source.relative_to(checkout))
    copy_file(checkout / "app" / "__main__.py", folder / "__main__.py")
    dependencies = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    pins = dict(_pin(line) for line in (checkout / "constraints.txt").read_text("utf-8").splitlines())
    pinned = [dependency if "==" in dependency else pins[dependency.lower()] for dependency in dependencies]
    _write(folder / "requirements.txt", "\n".join(pinned) + "\n")


def _pin(line: str) -> tuple[str, str]:
    return line.partition("==")[0].lower(), line


def _write_models(checkout: Path, folder: Path) -> None:
    for task in TASKS:
        for name in (WEIGHTS, METADATA, _CARD):
            copy_file(checkout / "models" / task / name, folder / task / name)


def _write_documents(checkout: Path, folder: Path) -> None:
    for name in _DOCUMENTS:
        source = checkout / name
        paths = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in paths:
            if path.is_file():
                copy_file(path, folder / path.relative_to(checkout))


def _below(root: Path, absolute: Path) -> Path:
    return root / absolute.relative_to("/")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, and whether it can be executed; the rest is as for whoever copies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    mode = target.stat().st_mode
    target.chmod(mode | (source.stat().st_mode & 0o100 and (mode & 0o444) >> 2))
