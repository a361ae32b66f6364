"""What this installation is made of: Python distributions, Debian packages and models, with their licences."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

from packageurl import PackageURL

from models.record import METADATA, TASKS, read_model
from operators.software import NAME, VERSION

_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|eula|copyright)", re.IGNORECASE)
_DEBIAN_LICENCE = re.compile(r"^License: *(\S.*)$", re.MULTILINE)
_DEBIAN_DOCS = Path("/usr/share/doc")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an installation.

    Parameters
    ----------
    kind : str
        ``python``, ``debian`` or ``model``.
    name, version : str
        As their maker states them.
    licence : str
        As their maker states it, where possible an SPDX expression; empty where nothing is stated.
    texts : tuple of Path
        Files with the texts of the licence.
    text : str
        The text of the licence where it is in no file.
    purl : PackageURL, optional
        Identity in its package index.
    sha256 : str, optional
        Of the weights of a model.
    architecture : str
        Of a Debian package, of which several may be there.
    """

    kind: Literal["python", "debian", "model"]
    name: str
    version: str
    licence: str
    texts: tuple[Path, ...] = ()
    text: str = ""
    purl: PackageURL | None = None
    sha256: str | None = None
    architecture: str = ""


def installed_parts(models: Path) -> list[Part]:
    """List the parts of this installation, by kind and name.

    Parameters
    ----------
    models : Path
        Holds the model folders.

    Raises
    ------
    ModelUnavailable
        If a model is missing or altered.
    """
    parts = [_interpreter(), *_distributions(), *_debian_packages(), *_models(models)]
    return sorted(parts, key=lambda part: (part.kind, part.name.lower(), part.architecture))


def _interpreter() -> Part:
    version = platform.python_version()
    purl = PackageURL("generic", name="cpython", version=version)
    texts = tuple(Path(sysconfig.get_path("stdlib")).glob("LICENSE.txt"))
    return Part("python", "CPython", version, "Python-2.0.1", texts, purl=purl)


def _distributions() -> Iterator[Part]:
    here = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    of_the_interpreter = {sysconfig.get_path(kind, "posix_prefix", here) for kind in ("purelib", "platlib")}
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")} | of_the_interpreter
    seen = {(NAME, VERSION)}  # in development it is installed; it is the whole, not a part
    for found in distributions(path=sorted(folders)):
        name, version = found.metadata["Name"], found.version
        if (name, version) in seen:
            continue
        seen.add((name, version))
        field = _field(found, "License")
        yield Part(
            "python",
            name,
            version,
            _licence(found, field),
            tuple(_licence_files(found)),
            field if "\n" in field else "",
            PackageURL("pypi", name=re.sub(r"[-_.]+", "-", name).lower(), version=version),
        )


def _field(found: Distribution, name: str) -> str:
    return next(iter(found.metadata.get_all(name) or ()), "")


def _licence(found: Distribution, field: str) -> str:
    """Return the SPDX expression, else a licence field of one line, else the classifiers."""
    stated = _field(found, "License-Expression") or ("" if "\n" in field else field)
    classifiers = [line for line in found.metadata.get_all("Classifier") or () if line.startswith("License ::")]
    return stated or ", ".join(line.rpartition(" :: ")[2] for line in classifiers)


def _licence_files(found: Distribution) -> Iterator[Path]:
    for file in found.files or ():
        if file.parts[0].endswith(".dist-info") and _LICENCE_FILE.search(file.name):
            path = Path(str(found.locate_file(file)))
            if path.is_file():
                yield path


def _debian_packages() -> Iterator[Part]:
    query = shutil.which("dpkg-query")
    if query is None:
        return
    shape = "-f=${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n"
    listed = subprocess.run([query, "-W", shape], capture_output=True, text=True, check=True)  # noqa: S603
    for line in listed.stdout.splitlines():
        name, version, architecture, status = line.split("\t")
        if status != "installed":  # of others no more than their settings is left
            continue
        copyright_file = _DEBIAN_DOCS / name / "copyright"
        texts = (copyright_file,) if copyright_file.is_file() else ()
        licences = {found for text in texts for found in _DEBIAN_LICENCE.findall(text.read_text("utf-8", "replace"))}
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
        yield Part("debian", name, version, ", ".join(sorted(licences)), texts, purl=purl, architecture=architecture)


def _models(folder: Path) -> Iterator[Part]:
    for task in TASKS:
        record, _ = read_model(folder / task)
        licence = json.loads((folder / task / METADATA).read_text("utf-8")).get("license", "")
        yield Part("model", record.name, record.version, licence, sha256=record.sha256)
