"""A run killed at any moment leaves complete results or none."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.app.tiny_run import ROOT, arguments, run_as_a_person, write_lungs, write_models

pytestmark = pytest.mark.slow

KILLS = 50
_LAST_NODE = "Relevance writer:"


def _state(output: Path) -> str:
    """Tell what a program finds that waits for ``result.json``."""
    if not (output / "result.json").exists():
        return "none"
    result = json.loads((output / "result.json").read_text("utf-8"))
    files = {str(path.relative_to(output)): path for path in output.glob("[!.]*/*.dcm")}
    listed = {file["path"]: file["sha256"] for file in result["files"]}
    same = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == listed
    return "complete" if same and result["status"] == "completed" else "broken"


def _run_and_kill(command: list[str], seconds: float, *, after_last_node: bool) -> None:
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if after_last_node:
            next((line for line in process.stderr if line.startswith(_LAST_NODE)), None)
        time.sleep(seconds)
        process.kill()


def test_a_killed_run_leaves_all_or_nothing(tmp_path: Path) -> None:
    """Half of the kills fall anywhere, half near the end, where results are published; some replace earlier results."""
    series, models = tmp_path / "series", tmp_path / "models"
    write_lungs(series)
    write_models(models)
    start = time.monotonic()
    assert run_as_a_person(series, tmp_path / "whole", models).returncode == 0
    whole = time.monotonic() - start
    chance = random.Random(0)  # noqa: S311 - chooses moments only
    states = []
    for number in range(KILLS):
        output = tmp_path / f"out{number % 10}"  # the later ones find what earlier ones left
        command = [sys.executable, "-m", "app", *arguments(series, output, models)]
        near_end = number % 2 == 1
        _run_and_kill(command, chance.uniform(0, 0.25 if near_end else whole), after_last_node=near_end)
        states.append(_state(output))
    assert set(states) <= {"none", "complete"}
    assert {"none", "complete"} <= set(states), "the moments were not spread"
    for number in range(10):
        output = tmp_path / f"out{number}"
        assert run_as_a_person(series, output, models).returncode == 0
        assert _state(output) == "complete"
        assert sorted(path.name for path in output.iterdir()) == [
            "metadata.json",
            "pm",
            "result.json",
            "sc",
            "seg",
            "sr",
        ]
