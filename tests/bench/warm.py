"""A process that goes on: what a study takes when everything is loaded, and whether memory grows from study to study.

The many studies are tiny, with networks of random weights, so that what each leaves behind is not lost in what a large
one needs; the few are a phantom of usual size, with the networks that ship.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.job import HEIGHT_MM, PIXEL_MM, RESULT, result_of

STUDIES, FEW = 200, 4
EACH = 20
"""Studies between two looks at the memory."""


def _resident_mb() -> float:
    """Return what of this process is in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _look() -> dict[str, float]:
    """Say what the process holds."""
    return {
        "resident_mb": _resident_mb(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def run_many(studies: int) -> list[dict[str, float]]:
    """Run tiny studies in this process; return what it holds after every few of them."""
    from tests.app.tiny_run import run, write_lungs, write_models

    looks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder / "models")
        write_lungs(folder / "ct")
        for study in range(studies + 1):
            run(folder / "ct", folder / "out", folder / "models")
            if study % EACH == 0:
                looks.append({"studies": study} | _look())
    return looks


def run_few(studies: int) -> list[dict[str, float]]:
    """Run a phantom of usual size several times in this process; return the seconds of each, and what it then holds."""
    from app.phantom import write_phantom
    from app.settings import load_settings
    from app.study import Request, run_folder
    from models.record import SHIPPED
    from operators.selection_rules import ANY_SERIES

    looks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        series = write_phantom(folder / "ct", spacing=(HEIGHT_MM / 150, PIXEL_MM, PIXEL_MM))
        request = Request(series, folder / "out", SHIPPED, load_settings([]), ANY_SERIES, folder / "cache")
        for study in range(1, studies + 1):
            start = time.perf_counter()
            run_folder(request, lambda line: None)
            looks.append({"study": study, "seconds": time.perf_counter() - start} | _look())
    return looks


def run() -> dict[str, Any]:
    """Measure, each in a process of its own, print the tables, and return all figures."""
    many, few = result_of("tests.bench.warm", "many", str(STUDIES)), result_of("tests.bench.warm", "few", str(FEW))
    print(f"One process, {STUDIES} tiny studies")
    print(f"{'studies':>8}{'resident MB':>13}{'threads':>9}{'files':>7}")
    for row in many:
        print(f"{row['studies']:8.0f}{row['resident_mb']:13.0f}{row['threads']:9.0f}{row['open_files']:7.0f}")
    print("One process, a phantom of 150 slices again and again (the first time without a cache of networks)")
    print(f"{'study':>8}{'seconds':>9}{'resident MB':>13}")
    for row in few:
        print(f"{row['study']:8.0f}{row['seconds']:9.1f}{row['resident_mb']:13.0f}")
    return {"many": many, "few": few}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from models.cuda_runtime import load_cuda_runtime

        load_cuda_runtime()
        print(RESULT + json.dumps({"many": run_many, "few": run_few}[sys.argv[1]](int(sys.argv[2]))))
    else:
        run()
