"""The bill of materials is valid, complete, and the same each time."""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from datetime import UTC, datetime
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from app.outcome import RunFailed, UsageError
from app.package import bill
from app.package.bill import cyclonedx, spdx, write_bill
from app.package.parts import Part, installed_parts
from models.record import TASKS
from tests.app.tiny_run import ROOT

_MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bill")
    write_bill(ROOT / "models", folder)
    return folder


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_both_forms_are_valid(written: Path) -> None:
    text = (written / "sbom.cdx.json").read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert validate_full_spdx_document(parse_file(str(written / "sbom.spdx.json"))) == []


def test_every_part_is_in_every_form(written: Path) -> None:
    components = {(each["name"], each["version"]) for each in _json(written / "sbom.cdx.json")["components"]}
    packages = {(each["name"], each["versionInfo"]) for each in _json(written / "sbom.spdx.json")["packages"]}
    with (written / "licenses.csv").open(encoding="utf-8") as file:
        rows = {(row["name"], row["version"]) for row in csv.DictReader(file)}
    assert components == packages - {("covid-ct-map", "0.1.0")} == rows
    installed = {(found.metadata["Name"], found.version) for found in distributions()}
    assert installed - components == {("covid-ct-map", "0.1.0")}
    of_the_interpreter = distributions(path=[f"{sys.base_prefix}/lib/python3.{sys.version_info.minor}/site-packages"])
    assert {(found.metadata["Name"], found.version) for found in of_the_interpreter} <= components
    assert {f"covid-ct-{task}" for task in TASKS} <= {name for name, _ in components}


def test_models_have_the_hash_of_their_weights(written: Path) -> None:
    components = {each["name"]: each for each in _json(written / "sbom.cdx.json")["components"]}
    packages = {each["name"]: each for each in _json(written / "sbom.spdx.json")["packages"]}
    for task in TASKS:
        sha256 = _json(ROOT / "models" / task / "metadata.json")["weights_sha256"]
        assert components[f"covid-ct-{task}"]["type"] == "machine-learning-model"
        assert components[f"covid-ct-{task}"]["hashes"] == [{"alg": "SHA-256", "content": sha256}]
        assert packages[f"covid-ct-{task}"]["checksums"] == [{"algorithm": "SHA256", "checksumValue": sha256}]


def test_licences_and_their_texts(written: Path) -> None:
    with (written / "licenses.csv").open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["numpy"]["licence"].startswith("BSD-3-Clause AND ")
    texts = written / "licenses" / "python" / f"numpy-{rows['numpy']['version']}"
    assert len(list(texts.iterdir())) == int(rows["numpy"]["texts"]) > 1
    assert "NumPy Developers" in (texts / "LICENSE.txt").read_text("utf-8")


def _runtime() -> set[str]:
    """What our dependencies bring along, by canonical names."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    found: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            wanted += requires(name) or []
    return found


def test_no_runtime_dependency_is_gpl(written: Path) -> None:
    """The base system holds programs under the GPL, which are run, not linked."""
    with (written / "licenses.csv").open(encoding="utf-8") as file:
        stated = {canonicalize_name(row["name"]): row["licence"] for row in csv.DictReader(file)}
    runtime = _runtime()
    assert {"torch", "holoscan-cu13", "numpy"} <= runtime
    assert not {name: stated[name] for name in runtime if "GPL" in stated[name].upper()}


@pytest.mark.slow
def test_the_same_installation_has_the_same_bill() -> None:
    parts = installed_parts(ROOT / "models")
    assert cyclonedx(parts, _MOMENT) == cyclonedx(installed_parts(ROOT / "models"), _MOMENT)
    assert spdx(parts, _MOMENT) == spdx(parts, _MOMENT)
    first, second = (json.loads(cyclonedx(each, _MOMENT))["serialNumber"] for each in (parts, parts[1:]))
    assert first != second


def test_what_is_no_spdx_expression_is_kept_as_it_is_stated() -> None:
    purl = PackageURL("pypi", name="thing", version="1")
    parts = [Part("python", "thing", "1", "BSD License", purl=purl), Part("python", "bare", "2", "")]
    thing, bare = (json.loads(cyclonedx([part], _MOMENT))["components"][0] for part in parts)
    assert thing["licenses"] == [{"license": {"name": "BSD License"}}]
    assert thing["purl"] == "pkg:pypi/thing@1"
    assert "licenses" not in bare
    _, package = spdx(parts[:1], _MOMENT).packages
    assert package.license_comment == "stated as: BSD License"


def test_the_time_is_that_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767323045")
    monkeypatch.setattr(bill, "installed_parts", lambda _: [])
    assert write_bill(ROOT / "models", tmp_path) == 0
    assert _json(tmp_path / "sbom.cdx.json")["metadata"]["timestamp"] == "2026-01-02T03:04:05+00:00"
    assert _json(tmp_path / "sbom.spdx.json")["creationInfo"]["created"] == "2026-01-02T03:04:05Z"


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="model lungs: cannot read"):
        write_bill(tmp_path, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the bill of materials"):
        write_bill(ROOT / "models", tmp_path / "file")
