"""Fuzzing of the series loader, and whether the fuzzer would notice what must not happen."""

from __future__ import annotations

import os

import pytest

from operators.refusal import ReasonCode
from tests.fuzz.corpus import SYNTHETIC, corpus
from tests.fuzz.elements import ELEMENT_MUTATORS
from tests.fuzz.images import CODESTREAM_MUTATORS, IMAGE_MUTATORS, bomb
from tests.fuzz.mutations import BYTES_MUTATORS, FOLDER_MUTATORS, Case, make_case
from tests.fuzz.parts import taken_apart
from tests.fuzz.run import Plan, Summary, fuzz, main

JOBS = min(4, os.cpu_count() or 1)
MEMORY = 256 << 20


SECONDS = 60.0
"""After so long no further case is begun; ``make fuzz`` runs all."""


@pytest.mark.parametrize("cases", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_folder_is_loaded_or_refused(cases: int) -> None:
    summary = fuzz(Plan(cases, 1_000_000, JOBS, SECONDS))
    print(summary)  # noqa: T201 - how far it came
    assert [(failure.kind, failure.name, failure.detail) for failure in summary.failures] == []
    assert summary.counts["accepted"] > 0
    assert len(summary.reasons) > 3


# --- the harness ---


def run(loader: str, cases: int = 1, timeout: float = 20.0) -> Summary:
    """Run cases that have files for sure: seeds of synthetic folders."""
    return fuzz(Plan(cases, seed=_SEED, loader=f"tests.fuzz.faulty:{loader}", memory=MEMORY, timeout=timeout))


_SEED = 8


@pytest.mark.parametrize(
    ("loader", "kind", "detail"),
    [
        ("segfault", "crash", "SIGSEGV"),
        ("abort", "crash", "SIGABRT"),
        ("leave", "crash", "exit 0"),
        ("raise_value_error", "unexpected", "ValueError: 'not foreseen'"),
        ("raise_system_exit", "unexpected", "SystemExit"),
        ("recurse", "unexpected", "RecursionError"),
        ("write_into_the_folder", "escape", "result"),
        ("change_a_file", "escape", "changed"),
        ("write_and_remove", "escape", "fleeting"),
        ("write_where_it_works", "escape", "work/here"),
        ("write_at_home", "escape", "home/here"),
        ("start_a_program", "escape", "os.system"),
        ("allocate", "memory", "MemoryError"),
        ("allocate_and_refuse", "memory", "InputRefused"),
        ("allocate_in_silence", "memory", "touched 2"),
        ("ask_in_silence", "memory", "asked for 2"),
    ],
)
def test_failure_is_noticed(loader: str, kind: str, detail: str) -> None:
    summary = run(loader)
    (failure,) = summary.failures
    assert failure.kind == kind
    assert detail in failure.detail
    assert failure.name.startswith(f"--seed {_SEED} --cases 1: ")
    assert f"{kind} 1" in str(summary)


def test_hang_is_noticed_with_the_place() -> None:
    (failure,) = run("hang", timeout=2.0).failures
    assert failure.kind == "hang"
    assert "faulty.py" in failure.detail


def test_workers_that_die_are_replaced() -> None:
    summary = run("abort", cases=3)
    assert [failure.seed for failure in summary.failures] == [_SEED, _SEED + 1, _SEED + 2]


@pytest.mark.parametrize(("loader", "kind"), [("accept", "accepted"), ("refuse", "refused")])
def test_what_is_right_is_no_failure(loader: str, kind: str) -> None:
    summary = run(loader)
    assert summary.failures == []
    assert summary.counts == {kind: 1}
    assert summary.reasons.keys() <= {ReasonCode.NO_DICOM}


def test_time_may_end_before_the_cases() -> None:
    assert fuzz(Plan(10, loader="tests.fuzz.faulty:accept", seconds=0.0)).counts.total() == 0


def test_worker_that_cannot_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no_such_loader"):
        run("no_such_loader")


# --- the cases ---


def _case(seed: int) -> Case:
    return make_case(corpus(), seed)


def test_synthetic_folders_are_the_same_each_time() -> None:
    first = {name: {path: image.to_bytes() for path, image in corpus()[name].items()} for name in SYNTHETIC}
    corpus.cache_clear()
    assert first == {name: {path: image.to_bytes() for path, image in corpus()[name].items()} for name in SYNTHETIC}


def test_synthetic_folders_are_taken_apart_and_put_together_unchanged() -> None:
    for name in SYNTHETIC:
        for image in corpus()[name].values():
            assert len(image.data) > 40
            assert taken_apart(image.to_bytes(), image.coding).to_bytes() == image.to_bytes()


def test_same_seed_same_case() -> None:
    for seed in range(100):
        assert _case(seed) == _case(seed)
    assert len({_case(seed).name.partition(":")[2] for seed in range(100)}) > 90


def test_every_mutation_and_folder_comes_up() -> None:
    cases = [_case(seed) for seed in range(2500)]
    mutators = (*ELEMENT_MUTATORS, *IMAGE_MUTATORS, *CODESTREAM_MUTATORS, *BYTES_MUTATORS, *FOLDER_MUTATORS, bomb)
    assert {mutator.__name__ for mutator in mutators} == {name for case in cases for name in case.mutations}
    assert {case.base for case in cases} >= set(SYNTHETIC)
    assert {len(case.mutations) for case in cases} == {1, 2, 3, 4}


def test_case_can_be_written_for_a_person(tmp_path: object) -> None:
    folder = tmp_path / "case"
    assert main(["--seed", str(_SEED), "--write", str(folder)]) == 0
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written >= {name for name, entry in _case(_SEED).folder.items() if isinstance(entry, bytes)}
