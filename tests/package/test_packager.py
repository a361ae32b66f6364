"""The packager of MONAI Deploy takes the package, and what it would hand to an engine runs.

The engine is left out: the packager wants ``docker buildx`` and base images of NVIDIA's registry. What it writes before
that is put where the COPY lines of its own Dockerfile put it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from holoscan_cli.__main__ import parse_args
from holoscan_cli.packager.arguments import PackagingArguments
from holoscan_cli.packager.container_builder import PythonAppBuilder
from holoscan_cli.packager.packager import _create_app_manifest, _create_package_manifest

from app.package.manifests import load_package_configuration, manifests
from tests.app.tiny_run import ROOT

_IMAGES = {"dgpu": "base", "igpu": "base", "cpu": "base"}
_SOURCE = {
    "4.2.0": {
        "holoscan": {
            "wheel-version": "4.2.0",
            "debian-version": "4.2.0",
            "base-images": _IMAGES,
            "build-images": _IMAGES,
        }
    }
}


def _command_line(tree: Path, folder: Path) -> list[str]:
    """That of docs/deployment.md, with a source of the test's own."""
    source = folder / "artifacts.json"
    source.write_text(json.dumps(_SOURCE), "utf-8")
    places = {name: f"{tree}/opt/holoscan/{name}" for name in ("app", "models", "docs")}
    return [
        *("package", places["app"], "--config", f"{ROOT}/app.yaml"),
        *("--models", places["models"], "--docs", places["docs"], "--timeout", "3600"),
        *("--platform", "x86_64", "--tag", "covid-ct-map:0.1.0", "--source", str(source)),
    ]


@pytest.fixture(scope="module")
def context(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the packager would send to the engine."""
    folder = tmp_path_factory.mktemp("context")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["monai-deploy"])  # the packager takes its SDK from the name of the command
        arguments = parse_args(["monai-deploy", *_command_line(tree, tmp_path_factory.mktemp("source"))])
        packaging = PackagingArguments(arguments, str(folder))
    _create_app_manifest(packaging.application_manifest, str(folder))
    _create_package_manifest(packaging.package_manifest, str(folder))
    builder = PythonAppBuilder(packaging.build_parameters, str(folder))
    builder._copy_supporting_files(packaging.platforms[0])
    builder._write_dockerfile(packaging.platforms[0])
    return folder


@pytest.fixture(scope="module")
def packed(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of its image, as far as it comes from us."""
    root = tmp_path_factory.mktemp("packed")
    for source, target in re.findall(r"^COPY \./(\S+)\s+(/\S+)$", (context / "Dockerfile").read_text(), re.MULTILINE):
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (context / source).is_dir() else shutil.copyfile
        copy(context / source, place)
    return root


def test_its_command_accepts_the_package_and_comes_as_far_as_the_engine(tree: Path, tmp_path: Path) -> None:
    """Here an engine that does nothing but say how it was called."""
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text('#!/bin/sh\necho "CALLED $*" >&2\nexit 1\n')
    engine.chmod(0o755)
    command = [str(Path(sys.executable).parent / "monai-deploy"), *_command_line(tree, tmp_path)]
    variables = os.environ | {"PATH": f"{engine.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    for step in ("Detected application type: Python Module", "Generating app.json...", "Generating pkg.json..."):
        assert step in said
    assert "CALLED buildx " in said, said
    assert done.returncode == 1


def test_the_dockerfile_installs_what_we_need(context: Path) -> None:
    wanted = (context / "pip" / "requirements.txt").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9-]+==[\w.]+", line) for line in wanted if line)
    assert {"torch==2.13.0", "monai-deploy-app-sdk==4.0.0", "holoscan-cu13==4.2.0"} <= set(wanted)
    labels = (context / "Dockerfile").read_text("utf-8")
    assert 'LABEL org.opencontainers.image.title="covid-ct-map"' in labels
    assert 'LABEL org.opencontainers.image.version="0.1.0"' in labels


def test_its_manifests_say_the_same_where_they_follow_the_specification(context: Path) -> None:
    ours = manifests(load_package_configuration(ROOT / "app.yaml"))
    theirs = {name: json.loads((context / "map" / name).read_text("utf-8")) for name in ours}
    for key in ("apiVersion", "sdk", "sdkVersion", "timeout", "version"):
        assert theirs["app.json"][key] == ours["app.json"][key], key
    assert theirs["app.json"]["input"] == ours["app.json"]["input"]
    assert theirs["app.json"]["output"]["formats"] == [ours["app.json"]["output"]["format"]]
    assert theirs["pkg.json"]["resources"] == ours["pkg.json"]["resources"]
    assert list(theirs["pkg.json"]["models"]) == sorted(model["name"] for model in ours["pkg.json"]["models"])


@pytest.mark.parametrize(("command", "says"), [("version", "covid-ct-map 0.1.0"), ("check", "model classifier: ")])
def test_what_it_packs_runs(command: str, says: str, packed: Path) -> None:
    stated = json.loads((packed / "etc" / "holoscan" / "app.json").read_text("utf-8"))
    places = {name: f"{packed}{value}" for name, value in stated["environment"].items() if value.startswith("/")}
    outer = {"HOLOSCAN_INPUT_PATH": str(packed), "HOLOSCAN_OUTPUT_PATH": str(packed), "PATH": os.environ["PATH"]}
    program, folder = json.loads(stated["command"])
    assert program == "python3"
    done = subprocess.run(
        [sys.executable, "-B", f"{packed}{folder}", command],
        env=places | outer,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
