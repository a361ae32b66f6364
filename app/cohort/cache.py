"""Studies prepared for training and evaluation, kept on disk until what they were made from changes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from app.cohort.refusal import StudyRefused
from app.cohort.table import CohortStudy
from app.console import quieten
from app.outcome import RunFailed, UsageError
from app.supervision import STOPPING, die_with
from models.threads import granted_cores, use_granted_cores

Array = npt.NDArray[Any]
_HEADER = "prepared"
_LONGEST = 80
"""Characters of a study's name that its file is named after."""
_MOST_TOLD = 5
_PART = ".part-"
_QUIET = 5.0
"""Seconds between lines of progress."""


class Preparation(Protocol):
    """How studies are prepared; small, for it is sent to other processes."""

    @property
    def made_with(self) -> Mapping[str, object]:
        """What the result depends on beside the study: settings, and hashes of models."""
        ...

    @property
    def name(self) -> str:
        """Short name of a folder for the results."""
        ...

    def make(self, study: CohortStudy) -> tuple[dict[str, Array], dict[str, str]]:
        """Prepare a study: arrays, and what else there is to say of it.

        Raises
        ------
        StudyRefused
            If the system refuses it.
        UsageError
            If it cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a study cannot be used; ``reason`` is the reason code where the system refuses it."""

    study: CohortStudy
    said: str
    reason: str = ""


class StudiesUnusable(UsageError):
    """Some studies cannot be used; the others are prepared.

    Parameters
    ----------
    problems : sequence of Problem
        One for each of them; the first are told.
    studies : int
        How many were to be prepared.
    """

    def __init__(self, problems: Sequence[Problem], studies: int) -> None:
        lines = "; ".join(problem.said for problem in problems[:_MOST_TOLD])
        more = f"; and {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
        super().__init__(
            f"{len(problems)} of {studies} studies cannot be used, take them out of the table: {lines}{more}"
        )
        self.problems, self.studies = tuple(problems), studies


@dataclass(frozen=True, slots=True)
class _Job:
    study: CohortStudy
    target: Path
    key: str


def prepare(
    studies: Sequence[CohortStudy],
    preparation: Preparation,
    cache: Path,
    *,
    workers: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Prepare studies, unless the cache holds them made from the same.

    A study is made again where its files, its masks, the settings or the models have changed. Every file is written
    whole, so after an interruption the rest is made.

    Parameters
    ----------
    studies : sequence of CohortStudy
    preparation : Preparation
    cache : Path
        Folder, made where absent. Each preparation has a folder of its own in it, which may be deleted at any time.
    workers : int, optional
        Processes; by default one for each core.
    tell : callable
        Receives lines of progress.

    Returns
    -------
    list of Path
        A safetensors file for each study.

    Raises
    ------
    StudiesUnusable
        If studies cannot be used; the others are prepared before.
    RunFailed
        If the cache cannot be written, or a process died.
    """
    folder = cache / f"{preparation.name}-{_digest(preparation.made_with)[:8]}"
    jobs = [_Job(study, folder / f"{unique_name(study)}.safetensors", _key(study, preparation)) for study in studies]
    missing = [job for job in jobs if made_from(job.target) != job.key]
    if missing:
        there = len(jobs) - len(missing)
        tell(f"preparing {len(missing)} studies" + (f"; {there} are in the cache" if there else ""))
        _make(folder)
        _sweep(folder)
        _prepare(missing, there, preparation, min(workers or granted_cores(), len(missing)), tell)
    return [job.target for job in jobs]


def said_of(path: Path) -> dict[str, str]:
    """Read what a prepared study says beside its arrays."""
    said: dict[str, str] = _header(path)["said"]
    return said


def made_from(path: Path) -> str | None:
    """Read what a prepared study was made from; None where it does not say."""
    try:
        made: str = _header(path)["made_from"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # absent, or not one of ours
        return None
    return made


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as file:
        header: dict[str, Any] = json.loads(file.metadata()[_HEADER])
    return header


def fingerprint(path: Path) -> str:
    """Hash names, sizes and times of change of a file, or of all files below a folder."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    lines = []
    for each in paths:
        if each.is_file():
            status = each.stat()
            lines.append(f"{each.relative_to(path.parent)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def _key(study: CohortStudy, preparation: Preparation) -> str:
    made_from = {
        "with": dict(preparation.made_with),
        "study": fingerprint(study.path),
        "lungs": None if study.lungs is None else fingerprint(study.lungs),
        "lesions": None if study.lesions is None else fingerprint(study.lesions),
    }
    return json.dumps(made_from, sort_keys=True)


def _digest(part: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(dict(part), sort_keys=True).encode()).hexdigest()


def unique_name(study: CohortStudy) -> str:
    """Name a study: readable, and different for studies of one name in different places."""
    place = hashlib.sha256(os.fsencode(f"{study.patient}\n{study.path.absolute()}")).hexdigest()[:8]
    return f"{study.name[:_LONGEST]}-{place}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the cache {folder}: {error.strerror}") from error


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half-written."""
    for part in folder.glob(f"*{_PART}*"):
        process = part.name.rpartition(_PART)[2]
        if not (process.isdigit() and Path("/proc", process).exists()):
            part.unlink(missing_ok=True)


def _prepare(
    jobs: Sequence[_Job], there: int, preparation: Preparation, workers: int, tell: Callable[[str], None]
) -> None:
    start = told = time.monotonic()
    wrong: list[Problem] = []
    done = 0
    try:
        for number, problem in enumerate(_outcomes(jobs, preparation, workers), start=1):
            if problem is None:
                done += 1
            else:
                wrong.append(problem)
                tell(problem.said)
            now = time.monotonic()
            if now - told > _QUIET or number == len(jobs):
                told = now
                left = (now - start) / number * (len(jobs) - number) / 60.0
                tell(f"prepared {number} of {len(jobs)}, about {left:.0f} min left")
    except OSError as error:
        prepared = f"{there + done} of {there + len(jobs)} studies are prepared"
        raise RunFailed(
            f"cannot write to the cache: {error.strerror}; {prepared}: make room and run again to go on"
        ) from error
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process died, as happens where memory runs out: run again with fewer --prepare-workers"
        ) from error
    if wrong:
        raise StudiesUnusable(wrong, len(jobs))


def _outcomes(jobs: Sequence[_Job], preparation: Preparation, workers: int) -> Iterator[Problem | None]:
    """Do the jobs; for each that is done give None, or why its study cannot be used."""
    if workers == 1:
        use_granted_cores()
        yield from (_do(job, preparation) for job in jobs)
        return
    # Of an interrupted process there is more to clean up than to tell.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    threads = max(1, granted_cores() // workers)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(), threads)
    )
    try:
        with _processes_without_signals():
            futures = [pool.submit(_do, job, preparation) for job in jobs]
        for finished in as_completed(futures):
            yield finished.result()
    except Exception:
        pool.shutdown(cancel_futures=True)
        raise
    except BaseException:  # whoever is interrupted does not wait; the processes end with this one
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _processes_without_signals() -> Iterator[None]:
    """Start processes that are not to be interrupted, not even while they start.

    From a terminal signals come to all processes; the first one answers, and the others end with it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    resource_tracker.ensure_running()  # which lets signals through again
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(parent: int, threads: int) -> None:
    die_with(parent)
    quieten()
    torch.set_num_threads(threads)


def _do(job: _Job, preparation: Preparation) -> Problem | None:
    try:
        arrays, said = preparation.make(job.study)
    except StudyRefused as refusal:
        return Problem(job.study, str(refusal), refusal.code)
    except UsageError as error:
        return Problem(job.study, str(error))
    except OSError as error:
        return Problem(job.study, f"study {job.study.path.name} cannot be read: {error.strerror}")
    partial = job.target.with_suffix(f"{_PART}{os.getpid()}")
    try:
        header = json.dumps({"made_from": job.key, "said": said})  # one entry: safetensors writes several in any order
        contiguous = {
            name: np.ascontiguousarray(array) for name, array in arrays.items()
        }  # as safetensors takes for granted
        partial.write_bytes(save(contiguous, {_HEADER: header}))
        partial.replace(job.target)
    finally:
        partial.unlink(missing_ok=True)
    return None
