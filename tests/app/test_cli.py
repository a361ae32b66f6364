"""The command line: one clear line, the right exit status, nothing written where nothing was done."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import app.study
from app.cli import main
from app.outcome import RunFailed, UsageError
from app.study import Request
from operators.refusal import InputRefused, ReasonCode
from tests.builders import write_series

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command does to its own process."""
    for name in ("CONFIG_PATH", "INPUT_PATH", "OUTPUT_PATH", "MODEL_PATH", "WORKDIR"):
        monkeypatch.delenv(f"HOLOSCAN_{name}", raising=False)
    monkeypatch.setenv("HOLOSCAN_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(app.study, "run_folder", fail)


def _python(*arguments: str, cwd: Path = _ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_a_cache_that_cannot_be_made_is_said(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "cache"
    assert main(["run", "-i", str(study), "-o", str(tmp_path / "out"), "--cache", str(place)]) == 64
    assert capsys.readouterr().err == f"error: cannot make the cache folder {place}: Not a directory\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["phantom", "--help"]])
def test_help_ends_well(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(argv)
    assert ending.value.code == 0
    assert "usage: covid-ct" in capsys.readouterr().out


def test_nothing_heavy_is_imported_for_help() -> None:
    heavy = {"torch", "monai", "holoscan", "pydicom", "numpy", "pydantic", "highdicom", "SimpleITK"}
    done = _python("-c", f"import app.cli, sys; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.strip() == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == "covid-ct-map 0.1.0\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["unknown"], "invalid choice: 'unknown'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["-i"], "argument -i/--input: expected one argument"),
        (["phantom"], "required: OUT"),
    ],
)
def test_wrong_arguments_are_usage(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(argv)
    assert ending.value.code == 64
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert says in line
    assert "--help" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no input folder"),
        (["-i", "{study}"], "no output folder"),
        (["-i", "{study}/absent", "-o", "{out}"], "does not exist"),
        (["-i", "{file}", "-o", "{out}"], "is not a folder"),
        (["-i", "{study}", "-o", "{file}"], "is a file"),
        (["-i", "{study}", "-o", "{file}/out"], "cannot make the output folder"),
        (["-i", "{study}", "-o", "{out}", "-w", "{study}/absent"], "the work folder"),
        (["-i", "{study}", "-o", "{out}", "--set", "treshold=1"], "unknown setting treshold"),
        (["-i", "{study}", "-o", "{out}", "--set", "threshold=1"], "setting threshold"),
        (["phantom", "{file}/phantom"], "cannot make the folder"),
        (["run", "-i", "{study}/absent", "-o", "{out}"], "does not exist"),
    ],
)
def test_what_cannot_be_used_is_usage_and_leaves_nothing(
    argv: list[str], says: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main([part.format(study=study, file=file, out=tmp_path / "out") for part in argv]) == 64
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert says in line
    assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_results_never_replace_their_own_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = tmp_path / "out" / "sc" / "inner"
    inner.mkdir(parents=True)
    assert main(["-i", str(inner), "-o", str(tmp_path / "out")]) == 64
    assert "would replace the input folder" in capsys.readouterr().err
    assert inner.is_dir()


def test_environment_stands_in_and_arguments_win(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[Request] = []

    def record(request: Request, _: object) -> None:
        requests.append(request)
        raise RunFailed("seen")

    monkeypatch.setattr(app.study, "run_folder", record)
    monkeypatch.setenv("HOLOSCAN_INPUT_PATH", str(study))
    monkeypatch.setenv("HOLOSCAN_OUTPUT_PATH", str(tmp_path / "out"))
    monkeypatch.setenv("HOLOSCAN_MODEL_PATH", str(tmp_path / "models"))
    monkeypatch.setenv("HOLOSCAN_WORKDIR", str(tmp_path))
    assert main([]) == 70
    assert tempfile.gettempdir() == str(tmp_path)
    assert main(["-o", str(tmp_path / "other"), "-m", str(tmp_path), "--set", "threshold=0.6"]) == 70
    first, second = requests
    assert (first.input, first.output, first.models) == (study, tmp_path / "out", tmp_path / "models")
    assert (second.input, second.output, second.models) == (study, tmp_path / "other", tmp_path)
    assert (first.settings.threshold, second.settings.threshold) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("the folder is wrong"), 64, "error: the folder is wrong\n"),
        (InputRefused(ReasonCode.NO_DICOM, "no DICOM object"), 65, "refused: NO_DICOM: no DICOM object\n"),
        (RunFailed("model lungs is missing"), 70, "error: model lungs is missing\n"),
        (MemoryError("Doe^Jane"), 70, "error: not enough memory\n"),
    ],
)
def test_each_ending_has_its_status_and_line(
    error: Exception, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert main(["-i", str(_ROOT), "-o", "unused"]) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("Doe^Jane"), OSError(28, "No space left on device", "/out/Doe^Jane")])
def test_the_unexpected_is_one_line_without_its_text(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert main(["-i", str(_ROOT), "-o", "unused"]) == 70
    line = capsys.readouterr().err
    assert "Doe" not in line
    assert "Traceback" not in line
    assert "app/cli.py:" in line
    assert str(_ROOT) not in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(("way", "cwd"), [(["-m", "app"], _ROOT), ([str(_ROOT / "app")], Path("/"))])
def test_module_and_folder_are_the_same_program(way: list[str], cwd: Path, tmp_path: Path) -> None:
    assert _python(*way, "version", cwd=cwd).stdout == "covid-ct-map 0.1.0\n"
    missing = _python(*way, "-i", str(tmp_path / "absent"), "-o", str(tmp_path / "out"), cwd=cwd)
    assert missing.returncode == 64
    assert missing.stderr.count("\n") == 1
    assert _python(*way, "--unknown", cwd=cwd).returncode == 64


def test_inspect_prints_a_table_and_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path / "in", np.zeros((40, 4, 4)), (3.0, 1.0, 1.0), PatientName="Doe^Jane")
    before = sorted(tmp_path.rglob("*"))
    done = _python("-m", "app", "inspect", str(tmp_path / "in"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Would be read: 40 slices 4 x 4" in done.stdout
    assert "Doe" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "status"), [("", 65), ("absent", 64)])
def test_inspect_of_nothing_is_one_line(
    name: str, status: int, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(study / name)]) == status
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert not output.out


def test_a_wrong_configuration_is_usage(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.yaml").write_text("series-selection: {selections: [{name: a, conditions: {Modalty: CT}}]}")
    assert main(["-i", str(study), "-o", str(tmp_path / "out"), "-c", str(tmp_path / "rules.yaml")]) == 64
    line = capsys.readouterr().err
    assert "Modalty is no DICOM keyword" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_libraries_are_silent_in_every_command(tmp_path: Path) -> None:
    """What they say quotes header values."""
    speak = "warnings.warn('a header'); logging.critical('a header')"
    code = f"import logging, sys, warnings; from app.cli import main; main(['cohort', sys.argv[1]]); {speak}"
    quiet, loud = ({**os.environ, "COVID_CT_DEBUG": debug} for debug in ("0", "1"))
    said = [
        subprocess.run(
            [sys.executable, "-W", "always", "-c", code, str(tmp_path)],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for environment in (quiet, loud)
    ]
    assert "a header" not in said[0]
    assert said[1].count("a header") >= 2
