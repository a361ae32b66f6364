"""The image runs as those start it who host it, with their own command lines and environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import docker as engine
import pytest
from docker.types import Mount

from tests.app.tiny_run import ROOT
from tests.image.docker import IMAGE, MODELS, TINY, docker, give, mount, names, writable

pytestmark = pytest.mark.image

_DEPLOY = ROOT / "deploy"


_IN, _OUT = "/tmp/data", "/tmp/output"  # noqa: S108 - where mercure mounts them
_TINY = {"COVID_CT_IN_PLANE": "32", "COVID_CT_PRECISION": "float32"}


def _mercure(source: Path, output: Path, environment: dict[str, str], **arguments: Any) -> tuple[int, str]:
    """Run a module as mercure does (its ``process_series.py``); return status and log."""
    folders = {
        **dict.fromkeys(("MERCURE_IN_DIR", "MONAI_INPUTPATH", "HOLOSCAN_INPUT_PATH"), _IN),
        **dict.fromkeys(("MERCURE_OUT_DIR", "MONAI_OUTPUTPATH", "HOLOSCAN_OUTPUT_PATH"), _OUT),
    }
    container = engine.from_env().containers.run(
        IMAGE,
        detach=True,
        mounts=[Mount(_IN, str(source), type="bind"), Mount(_OUT, str(output), type="bind")],
        environment=environment | folders,
        network_mode="none",
        cap_drop=["ALL"],
        user="1207:1207",
        group_add=[1207],
        **arguments,
    )
    try:
        status = container.wait()["StatusCode"]
        return int(status), container.logs().decode()
    finally:
        container.remove(force=True)


def test_mercure(series: Path, models: Path, open_path: Path) -> None:
    source, output = open_path / "in", writable(open_path / "out")
    shutil.copytree(series, source)
    for number, path in enumerate(sorted(source.rglob("*.dcm"))):  # named and accompanied as mercure leaves them
        path.rename(source / f"1.2.3#{number}.dcm")
        (source / f"1.2.3#{number}.tags").write_text("{}")
    (source / "task.json").write_text('{"process": {"settings": {}}}')
    source.chmod(0o777)
    for path in source.rglob("*"):
        path.chmod(0o666)
    module = json.loads((_DEPLOY / "mercure" / "mercure.json").read_text("utf-8"))["modules"]["covid-ct-map"]
    environment = _TINY | json.loads(module["environment"] or "{}")
    volumes = {str(models): {"bind": MODELS, "mode": "ro"}}
    docker_arguments = json.loads(module["docker_arguments"])
    status, log = _mercure(source, output, environment, volumes=volumes, **docker_arguments)
    assert status == 0, log
    sent = [path.name for path in output.glob("*.dcm")]  # it looks into no folder
    result = json.loads((output / "result.json").read_text("utf-8"))
    assert sorted(sent) == [file["path"] for file in result["files"]]
    assert {name.partition("-")[0] for name in sent} == {"sr", "seg", "sc", "pm"}
    assert not [path for path in output.iterdir() if path.is_dir()]
    notification = result["__mercure_notification"]
    assert notification["text"].startswith("COVID-19 ")
    assert isinstance(notification["requested"], bool)


def test_mercure_takes_a_refusal_for_an_error(open_path: Path) -> None:
    """It looks at the status, and where that is not 0 at nothing else; the log has the reason."""
    source, output = writable(open_path / "in"), writable(open_path / "out")
    (source / "task.json").write_text("{}")
    status, log = _mercure(source, output, {})
    assert status == 65
    assert "refused: NO_DICOM" in log


def _runtime() -> tuple[str, ...]:
    """The Workflow Manager always asks for NVIDIA's runtime."""
    known = json.loads(docker("info", "--format", "{{json .Runtimes}}").stdout)
    return ("--runtime", "nvidia") if "nvidia" in known else ()


def test_monai_deploy_express(series: Path, models: Path, open_path: Path) -> None:
    """As the Docker plug-in of the Workflow Manager starts the task of our workflow."""
    workflow = json.loads((_DEPLOY / "monai-deploy-express" / "covid-ct-map.json").read_text("utf-8"))
    (task,) = (task for task in workflow["tasks"] if task["type"] == "docker")
    arguments = task["args"]
    inputs, outputs = open_path / "inputs", writable(open_path / "outputs")
    shutil.copytree(series, inputs / "1.2.3" / "4.5.6")
    for path in inputs.rglob("*.dcm"):
        path.with_suffix(".dcm.json").write_text("{}")  # its gateway leaves the metadata beside
    give(open_path, "1000:1000")
    environment = [
        f"{name.removeprefix('env_')}={value}" for name, value in arguments.items() if name.startswith("env_")
    ]
    entry, *rest = arguments["entrypoint"].split(",")
    done = docker(
        *("run", "--rm", *_runtime(), "--user", arguments["user"]),
        *(part for line in environment for part in ("--env", line)),
        *mount(inputs, arguments["env_HOLOSCAN_INPUT_PATH"], readonly=True),
        *mount(outputs, arguments["env_HOLOSCAN_OUTPUT_PATH"]),
        *(*TINY, *mount(models, MODELS)),
        *("--network", "none", "--entrypoint", entry, IMAGE, *rest, *arguments["command"].split(",")),
    )
    assert done.returncode == 0, done.stderr
    assert names(outputs) == ["metadata.json", "pm", "result.json", "sc", "seg", "sr"]
    metadata = json.loads((outputs / "metadata.json").read_text("utf-8"))
    assert metadata["status"] == "completed"
    assert all(isinstance(value, str | int | float) for value in metadata.values())


def test_the_script_for_plain_docker(series: Path, open_path: Path) -> None:
    program = str(_DEPLOY / "docker" / "covid-ct")
    environment = os.environ | {"IMAGE": IMAGE}
    wrong = subprocess.run([program, "in"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (64, 1)
    absent = subprocess.run([program, "absent", "out"], capture_output=True, text=True, check=False)
    assert absent.returncode == 64
    (open_path / "empty").mkdir()
    command = [program, str(open_path / "empty"), str(open_path / "made" / "out"), "pdf=true", "threshold=0.6"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 65, done.stderr
    result = json.loads((open_path / "made" / "out" / "result.json").read_text("utf-8"))
    assert (result["settings"]["pdf"], result["settings"]["threshold"]) == (True, 0.6)


def test_the_restrictions_of_the_kubernetes_job(series: Path, models: Path, open_path: Path) -> None:
    """What its security context asks for, as flags of the engine; a cluster is not at hand."""
    output = writable(open_path / "out")
    output.chmod(0o775)
    give(output, "0:1000")
    done = docker(
        *(
            "run",
            "--rm",
            "--network",
            "none",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
        ),
        *("--user", "1000:1000", "--group-add", "1000", "--memory", "4g", "--cpus", "2"),
        *(*TINY, *mount(models, MODELS)),
        *(*mount(series, "/var/holoscan/input", readonly=True), *mount(output, "/var/holoscan/output"), IMAGE),
    )
    assert done.returncode == 0, done.stderr
    assert "result.json" in names(output)
