"""The package as it lies in the image: complete, runnable, and nothing else; show, extract and check in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from app.outcome import UsageError
from app.package.export import extract, show
from app.package.manifests import ENVIRONMENT
from app.package.tree import write_tree
from models.record import TASKS
from tests.app.tiny_run import ROOT, arguments, write_lungs, write_models
from tests.package import specification

pytestmark = pytest.mark.whole

_MODELS = "opt/holoscan/models"


def _environment(tree: Path) -> dict[str, str]:
    """What the image sets, with ``tree`` as its root."""
    stated = {name: f"{tree}{value}" for name, value in ENVIRONMENT.items()}
    return {"PATH": os.environ["PATH"], "USER": "covid-ct", "PYTHONDONTWRITEBYTECODE": "1", **stated}


def _run(tree: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Do what the entry point of the image does, from a folder that holds no code."""
    command = [sys.executable, "-W", "ignore", "-u", f"{tree}/opt/holoscan/app/", *argv]
    variables = _environment(tree) | environment
    folder = tree / "var" / "holoscan"
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_code_weights_and_documents_have_their_places(tree: Path) -> None:
    application = tree / "opt" / "holoscan" / "app"
    assert {path.name for path in application.iterdir()} == {
        *("__main__.py", "requirements.txt"),
        *("app", "operators", "models"),
    }
    for package in ("app", "operators", "models"):
        mine = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert {path.relative_to(application) for path in (application / package).rglob("*") if path.is_file()} == mine
    assert {path.relative_to(tree / _MODELS).as_posix() for path in (tree / _MODELS).rglob("*") if path.is_file()} == {
        f"{task}/{name}" for task in TASKS for name in ("weights.safetensors", "metadata.json", "README.md")
    }
    documents = tree / "opt" / "holoscan" / "docs"
    assert all((documents / name).is_file() for name in ("README.md", "LICENSE", "docs/deployment.md"))
    assert not (tree / "etc" / "monai").exists(), "mercure would take the image for one that needs root"


def test_the_packages_run_from_there_and_from_nowhere_else(tree: Path) -> None:
    assert _run(tree, "version").stdout == "covid-ct-map 0.1.0\n"
    code = "import app.cli, operators, models; print(app.cli.__file__, operators.__file__, models.__file__)"
    command = [sys.executable, "-I", "-B", "-c", f"import sys; sys.path[0:0] = ['{tree}/opt/holoscan/app']; {code}"]
    places = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert all(place.startswith(f"{tree}/opt/holoscan/app/") for place in places)


def test_a_run_of_the_package_with_other_weights_mounted_over_ours(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(tree, root, ignore=shutil.ignore_patterns("weights.safetensors"))
    shutil.rmtree(root / _MODELS)
    write_models(root / _MODELS)
    write_lungs(root / "var" / "holoscan" / "input")
    settings = arguments(root, root, root)[6:]
    done = _run(root, *settings, "--set", "runtime=torch")
    assert done.returncode == 0, done.stderr
    result = json.loads((root / "var" / "holoscan" / "output" / "result.json").read_text("utf-8"))
    assert result["models"]["lungs"]["name"] == "test lungs"
    assert done.stdout == f"{root}/var/holoscan/output\n"


def test_an_empty_input_is_refused_with_the_status_of_the_application(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folders = {"HOLOSCAN_INPUT_PATH": str(tmp_path / "in"), "HOLOSCAN_OUTPUT_PATH": str(tmp_path / "out")}
    done = _run(tree, **folders)
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1].startswith("refused: NO_DICOM: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metadata.json", "result.json"]


def test_show_prints_the_files_as_json(tree: Path) -> None:
    files = {
        name: json.loads((tree / "etc" / "holoscan" / name).read_text("utf-8")) for name in ("app.json", "pkg.json")
    }
    jsonschema.validate(files["app.json"], specification.APPLICATION)
    assert json.loads(_run(tree, "show").stdout) == files
    assert json.loads(_run(tree, "show", "app").stdout) == files["app.json"]
    assert json.loads(_run(tree, "show", "pkg").stdout) == files["pkg.json"]


def test_show_outside_a_package_makes_what_the_package_would_hold(tree: Path) -> None:
    assert json.loads(show(None, ROOT / "app.yaml", {})) == json.loads(_run(tree, "show").stdout)
    with pytest.raises(UsageError, match="give -c FILE"):
        show(None, None, {})


def test_show_never_prints_a_damaged_manifest(tmp_path: Path) -> None:
    for name in ("app.json", "pkg.json"):
        (tmp_path / name).write_text("{", "utf-8")
    variables = {f"HOLOSCAN_{name.upper()}_MANIFEST_PATH": str(tmp_path / f"{name}.json") for name in ("app", "pkg")}
    with pytest.raises(UsageError, match="cannot read the manifest"):
        show(None, ROOT / "app.yaml", variables)


def _exported(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_extract_fills_an_empty_folder_with_everything(tree: Path, tmp_path: Path) -> None:
    assert extract(tmp_path, _environment(tree)) == [tmp_path / name for name in ("app", "config", "models", "docs")]
    assert {path.split("/")[0] for path in _exported(tmp_path)} == {"app", "config", "models", "docs"}
    assert _exported(tmp_path / "config") == {"app.yaml", "app.json", "pkg.json"}
    for part, place in (("app", "opt/holoscan/app"), ("models", _MODELS), ("docs", "opt/holoscan/docs")):
        assert _exported(tmp_path / part) == _exported(tree / place)
        for name in _exported(tmp_path / part):
            assert (tmp_path / part / name).read_bytes() == (tree / place / name).read_bytes()


def test_extract_fills_only_what_is_mounted(tree: Path, tmp_path: Path) -> None:
    for name in ("models", "config"):
        (tmp_path / name).mkdir()
    extract(tmp_path, _environment(tree))
    assert {path.split("/")[0] for path in _exported(tmp_path)} == {"models", "config"}


def test_extracted_code_runs(tree: Path, tmp_path: Path) -> None:
    extract(tmp_path, _environment(tree))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "app"), "version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "covid-ct-map 0.1.0\n")


def test_extract_says_what_is_missing(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder is mounted"):
        extract(tmp_path / "absent", _environment(tree))
    with pytest.raises(UsageError, match="only a package can be extracted"):
        extract(tmp_path, {})
    unwritable = Path("/proc/self") if os.geteuid() == 0 else Path("/")
    with pytest.raises(UsageError, match="cannot extract to"):
        extract(unwritable, _environment(tree))


def test_check_is_right_and_names_the_weights(tree: Path) -> None:
    done = _run(tree, "check")
    assert (done.returncode, done.stderr) == (0, "")
    for task in TASKS:
        about = json.loads((tree / _MODELS / task / "metadata.json").read_text("utf-8"))
        said = f"model {task}: covid-ct-{task} {about['version']}, SHA-256 {about['weights_sha256'][:12]}\n"
        assert said in done.stdout


def test_check_of_folders(tree: Path, tmp_path: Path) -> None:
    done = _run(tree, "check", "-i", str(tmp_path), "-o", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"input folder: {tmp_path} can be read\noutput folder: {tmp_path} can be written\n")
    for option in ("-i", "-o"):
        done = _run(tree, "check", option, "/absent")
        assert (done.returncode, done.stderr.count("\n")) == (64, 1)
        assert "put folder /absent does not exist" in done.stderr


@pytest.mark.parametrize(
    ("variables", "status", "says"),
    [
        ({"HOLOSCAN_MODEL_PATH": "/absent"}, 70, "model lungs: cannot read /absent/lungs/metadata.json"),
        ({"HOLOSCAN_CONFIG_PATH": "/absent"}, 64, "cannot read the configuration /absent"),
        ({"COVID_CT_THRESHOLD": "2"}, 64, "setting threshold"),
    ],
)
def test_check_says_in_one_line_what_is_wrong(tree: Path, variables: dict[str, str], status: int, says: str) -> None:
    done = _run(tree, "check", **variables)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_altered_weights_are_found(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / _MODELS, tmp_path / "models")
    weights = tmp_path / "models" / "lungs" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    done = _run(tree, "check", HOLOSCAN_MODEL_PATH=str(tmp_path / "models"))
    assert done.returncode == 70
    assert "is not the file that metadata.json describes" in done.stderr


@pytest.mark.slow
def test_networks_are_converted_ahead_of_all_runs(tree: Path, tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    write_lungs(tmp_path / "ct")
    done = _run(tree, "convert", "-m", str(tmp_path / "models"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/models/converted\n"), done.stderr
    entries = sorted(path.name for path in (tmp_path / "models" / "converted").iterdir())
    assert len(entries) == 5
    (tmp_path / "home").mkdir()
    run = _run(tree, *arguments(tmp_path / "ct", tmp_path / "out", tmp_path / "models"), HOME=str(tmp_path / "home"))
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "home" / ".cache" / "covid-ct-map").exists(), "nothing was converted again"
    assert sorted(path.name for path in (tmp_path / "models" / "converted").iterdir()) == entries


def test_convert_says_in_one_line_what_is_wrong(tree: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(tree / "opt" / "holoscan" / "models", models, ignore=shutil.ignore_patterns("converted"))
    (models / "converted").write_text("not a folder")
    done = _run(tree, "convert", "-m", str(models))
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == f"error: cannot write to the folder {models}/converted: File exists\n"
    (models / "converted").unlink()
    (models / "converted" / "of an earlier version").mkdir(parents=True)
    shutil.rmtree(models / "lungs")
    done = _run(tree, "convert", "-m", str(models))
    assert done.returncode == 70
    assert done.stderr.startswith("error: model lungs: ")
    assert [path.name for path in (models / "converted").iterdir()] == ["of an earlier version"], "nothing is lost"


def test_a_package_is_made_of_a_checkout_into_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no checkout"):
        write_tree(tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        write_tree(ROOT, tmp_path)
    with pytest.raises(UsageError, match="cannot write the package"):
        write_tree(ROOT, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
