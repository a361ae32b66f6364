"""The manifests are those of the specification, and say what the Dockerfile does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from app.outcome import UsageError
from app.package.manifests import Manifest, load_package_configuration, manifests
from models.record import TASKS
from operators.identity import ModelSet
from operators.software import NAME, VERSION
from tests.app.tiny_run import ROOT
from tests.package import specification

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")


@pytest.fixture(scope="module")
def both() -> dict[str, Manifest]:
    return manifests(load_package_configuration(ROOT / "app.yaml"))


@pytest.mark.parametrize(
    ("name", "schema"), [("app.json", specification.APPLICATION), ("pkg.json", specification.PACKAGE)]
)
def test_both_are_valid(name: str, schema: dict[str, Any], both: dict[str, Manifest]) -> None:
    jsonschema.validate(both[name], schema)
    assert json.loads(json.dumps(both[name])) == both[name]


def test_the_schema_refuses_what_the_packager_of_monai_deploy_writes(both: dict[str, Manifest]) -> None:
    """It leaves out the type, and writes models as a mapping: the check of the above can fail."""
    without_type = {name: value for name, value in both["app.json"].items() if name != "type"}
    with pytest.raises(jsonschema.ValidationError, match="'type' is a required property"):
        jsonschema.validate(without_type, specification.APPLICATION)
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'array'"):
        jsonschema.validate(both["pkg.json"] | {"models": {"lungs": "/opt"}}, specification.PACKAGE)


def test_every_variable_has_its_default(both: dict[str, Manifest]) -> None:
    assert specification.ENVIRONMENT.items() <= both["app.json"]["environment"].items()


def test_the_dockerfile_sets_what_the_manifest_says(both: dict[str, Manifest]) -> None:
    stage = DOCKERFILE.rpartition("FROM ")[2]
    block = re.search(r"^ENV (.*)$", stage, re.MULTILINE)
    assert block is not None
    stated = dict(pair.split("=", 1) for pair in block[1].split())
    assert both["app.json"]["environment"].items() <= stated.items()
    entry = re.search(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
    assert entry is not None
    assert " ".join(json.loads(entry[1])) == both["app.json"]["command"]
    health = re.search(r"^HEALTHCHECK .*CMD (.*)$", stage, re.MULTILINE)
    assert health is not None
    assert json.loads(health[1]) == both["app.json"]["readiness"]["command"]
    directory = re.findall(r"^WORKDIR (.*)$", stage, re.MULTILINE)[-1]
    assert f"{directory}/" == both["app.json"]["workingDirectory"]


def test_labels_versions_and_title_agree(both: dict[str, Manifest]) -> None:
    labels = dict(re.findall(r'([a-z.\-]+)="([^"]*)"', DOCKERFILE))
    assert labels["org.opencontainers.image.title"] == NAME
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.monai.deploy.app-sdk"] == both["app.json"]["sdkVersion"]
    assert both["app.json"]["version"] == both["pkg.json"]["version"] == VERSION
    assert f"holoscan-cu13=={labels['org.nvidia.holoscan']}" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_models_are_those_of_the_application(both: dict[str, Manifest]) -> None:
    assert tuple(field.name for field in fields(ModelSet)) == TASKS
    assert [model["name"] for model in both["pkg.json"]["models"]] == list(TASKS)


def _configuration(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load((ROOT / "app.yaml").read_text("utf-8"))
    for name, value in changes.items():
        part, key = name.split("__")
        content[part][key.replace("_", "-")] = value
    path = folder / "app.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def test_what_the_configuration_says_is_what_the_manifests_say(tmp_path: Path) -> None:
    path = _configuration(tmp_path, application__timeout=7, resources__memory="12.5Gi", resources__gpu=1)
    both = manifests(load_package_configuration(path))
    assert both["app.json"]["timeout"] == 7
    assert both["pkg.json"]["resources"] == {"cpu": 2, "gpu": 1, "memory": "12.5Gi", "sharedMemory": "64Mi"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"application__version": "0.0.9"}, "0.0.9 is not this software, covid-ct-map 0.1.0"),
        ({"application__version": 0.1}, "application.version"),
        ({"resources__memory": "8GB"}, "resources.memory"),
        ({"application__timeout": -1}, "application.timeout"),
        ({"application__inputFormats": []}, "application.inputFormats"),
    ],
)
def test_a_wrong_configuration_is_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        load_package_configuration(_configuration(tmp_path, **changes))
    assert "\n" not in str(error.value)
