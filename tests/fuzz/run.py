"""``python -m tests.fuzz.run``: load many spoilt folders; every one must become a volume or be refused."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock

from tests.fuzz.corpus import Corpus, corpus
from tests.fuzz.mutations import make_case
from tests.fuzz.worker import FAILURES, Options, Outcome, work

LOADER = "tests.fuzz.loaders:load"
MEMORY = 2 << 30
TIMEOUT = 60.0
"""Seconds after which a case counts as one that never ends; slow machines with other work need more than 20."""
_START = 300.0
"""Seconds that a worker may take for its imports."""
_LAST_WORDS = 2.0
"""Seconds that a hanging worker has to say where it hangs."""
_WORN_OUT = ("crash", "hang", "memory")
"""After these a worker is replaced: it is no more, or its greatest memory would hide what later cases take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Parameters
    ----------
    cases : int
        How many cases.
    seed : int
        Seed of the first case; each of the others has the next one.
    jobs : int
        How many workers.
    seconds : float
        After so long no further case is begun.
    loader, memory
        As in :class:`tests.fuzz.worker.Options`.
    timeout : float
        Seconds that a case may take.
    """

    cases: int
    seed: int = 0
    jobs: int = 1
    seconds: float = float("inf")
    loader: str = LOADER
    memory: int = MEMORY
    timeout: float = TIMEOUT


@dataclass(slots=True)
class Summary:
    """What became of all cases."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one case."""
        self.counts[outcome.kind] += 1
        if outcome.kind == "refused":
            self.reasons[outcome.detail] += 1
        if outcome.kind in FAILURES:
            self.failures.append(outcome)

    def __str__(self) -> str:
        """Say everything in one line."""
        total = self.counts.total()
        reasons = ", ".join(f"{code} {cases}" for code, cases in self.reasons.most_common())
        failed = ", ".join(f"{kind} {self.counts[kind]}" for kind in FAILURES)
        return (
            f"{total} cases in {self.seconds:.0f} s ({total / max(self.seconds, 1e-9):.1f}/s):"
            f" accepted {self.counts['accepted']}, refused {self.counts['refused']} ({reasons}),"
            f" skipped {self.counts['skipped']}; {failed}"
        )


def fuzz(plan: Plan) -> Summary:
    """Run all cases."""
    begun = time.monotonic()
    summary, seeds = Summary(), _Seeds(plan, begun)
    memory_disk = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    place = memory_disk if os.access(memory_disk, os.W_OK) else None
    folders = corpus()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder, ThreadPoolExecutor(plan.jobs) as threads:
        crew = _Crew(plan, Path(folder), folders)
        for outcomes in [threads.submit(crew.serve, seeds, summary) for _ in range(min(plan.jobs, plan.cases))]:
            outcomes.result()
    summary.seconds = time.monotonic() - begun
    summary.failures.sort(key=lambda outcome: outcome.seed)
    return summary


class _Seeds:
    """The seeds that are left, for all threads."""

    def __init__(self, plan: Plan, begun: float) -> None:
        self._left = iter(range(plan.seed, plan.seed + plan.cases))
        self._end = begun + plan.seconds
        self._lock = Lock()

    def next(self) -> int | None:
        with self._lock:
            return next(self._left, None) if time.monotonic() < self._end else None


class _Crew:
    """Starts workers."""

    def __init__(self, plan: Plan, folder: Path, folders: Corpus) -> None:
        self._plan = plan
        self._folder = folder
        self._corpus = folders
        self._numbers = count()

    def serve(self, seeds: _Seeds, summary: Summary) -> None:
        """Load cases until none is left, by one worker after the other."""
        seed = seeds.next()
        while seed is not None:
            with self._worker() as worker:
                kind = ""
                while seed is not None and kind not in _WORN_OUT:
                    outcome = worker.load(seed)
                    summary.add(outcome)
                    kind, seed = outcome.kind, seeds.next()

    def _worker(self) -> _Worker:
        plan = self._plan
        options = Options(plan.loader, self._folder / str(next(self._numbers)), plan.memory)
        return _Worker(options, plan.timeout, self._corpus)


class _Worker:
    """A worker process, seen from outside; ends with its context."""

    def __init__(self, options: Options, timeout: float, folders: Corpus) -> None:
        context = multiprocessing.get_context("spawn")
        self._options = options
        self._timeout = timeout
        self._corpus = folders
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, options, folders), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        try:
            if not self._channel.poll(_START):
                raise RuntimeError("a worker does not start")
            self._channel.recv()
        except EOFError as error:
            raise RuntimeError(f"a worker cannot start: {self._last_words(4000)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.kill()
        self._process.join()

    def load(self, seed: int) -> Outcome:
        """Load a case; say what became of it even if that was the end of the process."""
        self._channel.send(seed)
        if not self._channel.poll(self._timeout):
            os.kill(self._process.pid, signal.SIGABRT)  # says where it is
            self._process.join(_LAST_WORDS)
            return self._failed(seed, "hang", f"no answer in {self._timeout:g} s")
        try:
            return self._channel.recv()
        except (EOFError, OSError):
            self._process.join()
            return self._failed(seed, "crash", _end_of(self._process.exitcode))

    def _failed(self, seed: int, kind: str, how: str) -> Outcome:
        return Outcome(seed, kind, f"{how}; {self._last_words(1500)}", make_case(self._corpus, seed).name)

    def _last_words(self, most: int) -> str:
        """Return the end of what the process wrote: messages of libraries, and where it was."""
        written = self._options.log.read_text(errors="replace") if self._options.log.exists() else ""
        told = written.partition("Extension modules")[0][-most:]
        return " | ".join(line.strip() for line in told.splitlines())


def _end_of(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many cases")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so many seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case; the next has the next one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--write", type=Path, help="only write the folder of the first case to this path")
    given = parser.parse_args(arguments)
    if given.write:
        make_case(corpus(), given.seed).write(given.write)
        return 0
    summary = fuzz(Plan(given.cases, given.seed, given.jobs, given.seconds))
    for failure in summary.failures:
        print(f"{failure.kind} {failure.name}: {failure.detail}")  # noqa: T201
    print(summary)  # noqa: T201
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
