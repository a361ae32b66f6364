"""The image is a MONAI Application Package: what it says of itself, and what it hands out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest

from models.record import TASKS
from models.runtime import CONVERTED
from tests.app.tiny_run import ROOT
from tests.image.docker import IMAGE, docker, inspect, names, run, writable
from tests.package import specification

pytestmark = pytest.mark.image


def test_labels_user_and_environment() -> None:
    configuration = inspect()["Config"]
    labels = configuration["Labels"]
    assert labels["org.opencontainers.image.title"] == "covid-ct-map"
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert "Research use only" in labels["org.opencontainers.image.description"]
    assert configuration["User"] == "1000:1000"
    assert configuration["WorkingDir"] == "/var/holoscan"
    stated = dict(line.split("=", 1) for line in configuration["Env"])
    assert specification.ENVIRONMENT.items() <= stated.items()
    assert configuration["Healthcheck"]["Test"][0] == "CMD"


def test_the_cpu_image_is_below_its_limit() -> None:
    assert inspect()["Size"] < 2.5e9


def test_manifests_are_valid_and_shown() -> None:
    shown = json.loads(run(command=("show",)).stdout)
    jsonschema.validate(shown["app.json"], specification.APPLICATION)
    jsonschema.validate(shown["pkg.json"], specification.PACKAGE)
    for name, manifest in shown.items():
        written = docker("run", "--rm", "--network", "none", "--entrypoint", "cat", IMAGE, f"/etc/holoscan/{name}")
        assert json.loads(written.stdout) == manifest
        assert json.loads(run(command=("show", name.removesuffix(".json"))).stdout) == manifest
    assert " ".join(inspect()["Config"]["Entrypoint"]) == shown["app.json"]["command"]


_FINDS_THEM = """
import sys
from pathlib import Path
sys.path.insert(0, "/opt/holoscan/app")
from models import openvino_runtime, runtime
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
openvino_runtime.ov.convert_model = lambda *_, **__: sys.exit("converted again")
networks = {"lungs": DeepMedic, "lesions": LesionNetwork, "involvement": InvolvementNetwork, "classifier": Classifier}
for task, network in networks.items():
    runtime.Runtime("openvino").load(Path("/opt/holoscan/models", task), network)
"""


def test_any_user_finds_the_networks_converted() -> None:
    looked = docker(
        *("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--env", "HOME=/tmp"),  # noqa: S108 - its own
        *("--user", "12345:12345", "--entrypoint", "python3", IMAGE),
        *("-W", "ignore", "-c", _FINDS_THEM),
    )
    assert looked.returncode == 0, looked.stderr


def test_mercure_does_not_take_it_for_an_image_that_needs_root() -> None:
    looked = docker("run", "--rm", "--network", "none", "--entrypoint", "", IMAGE, "cat", "/etc/monai/app.json")
    assert looked.returncode != 0


def test_everything_is_extracted(open_path: Path) -> None:
    export = writable(open_path / "export")
    done = run("--volume", f"{export}:/var/run/holoscan/export", command=("extract",))
    assert done.returncode == 0, done.stderr
    assert names(export) == ["app", "config", "docs", "models"]
    assert names(export / "config") == ["app.json", "app.yaml", "pkg.json"]
    assert names(export / "models") == sorted((*TASKS, CONVERTED))
    assert {"README.md", "LICENSE", "sbom.cdx.json", "sbom.spdx.json", "licenses.csv"} <= set(names(export / "docs"))
    for task in TASKS:
        ours = (ROOT / "models" / task / "weights.safetensors").read_bytes()
        assert (export / "models" / task / "weights.safetensors").read_bytes() == ours
    version = subprocess.run(["python3", str(export / "app"), "version"], capture_output=True, text=True, check=False)
    assert version.stdout == "covid-ct-map 0.1.0\n"


def test_only_what_is_mounted_is_extracted(open_path: Path) -> None:
    models = writable(open_path / "models")
    done = run("--volume", f"{models}:/var/run/holoscan/export/models", command=("extract",))
    assert done.returncode == 0, done.stderr
    assert names(models) == sorted((*TASKS, CONVERTED))


def test_extract_without_a_mount_is_one_line() -> None:
    done = run(command=("extract",))
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    assert "no folder is mounted at /var/run/holoscan/export" in done.stderr


def test_the_bill_names_what_is_installed(open_path: Path) -> None:
    export = writable(open_path / "docs")
    run("--volume", f"{export}:/var/run/holoscan/export/docs", command=("extract",))
    bill = json.loads((export / "sbom.cdx.json").read_text("utf-8"))
    named = {(part["name"].lower(), part["version"]) for part in bill["components"]}
    code = (
        "from importlib.metadata import distributions as d; print(*(x.name + ' ' + x.version for x in d()), sep='\\n')"
    )
    listed = docker("run", "--rm", "--network", "none", "--entrypoint", "python3", IMAGE, "-c", code).stdout
    installed = {tuple(line.lower().split()) for line in listed.splitlines()}
    packages = docker(
        *("run", "--rm", "--network", "none", "--entrypoint", "dpkg-query", IMAGE, "-W"),
        "-f=${Package} ${Version}\n",
    ).stdout
    system = {tuple(line.split()) for line in packages.splitlines()}
    assert installed
    assert system
    assert installed | system <= named
    assert not {"pytest", "mypy", "cyclonedx-python-lib"} & {name for name, _ in installed}
    for kind, name in (("python", "torch"), ("debian", "bash")):
        assert any((export / "licenses" / kind).glob(f"{name}-*/*"))


def test_the_health_check(open_path: Path) -> None:
    output = writable(open_path / "out")
    done = run(command=("check",))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("model ") == len(TASKS)
    folders = ("check", "-i", "/var/holoscan/input", "-o", "/var/holoscan/output")
    assert run("--volume", f"{output}:/var/holoscan/output", command=folders).returncode == 0
    assert run(command=folders).returncode == 64, "nothing is mounted that could be written"
