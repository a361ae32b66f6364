"""The whole job on a phantom CT: each node in the runtime of this machine, in plain PyTorch, and the limit.

PyTorch computes in float32, once in our blocks and once in MONAI's sliding windows (:mod:`tests.bench.windows`).

Every run is a process of its own, from imports to published results. The networks are those that ship. What a network
costs in operations is counted for the shapes that it was called with; the limit is the rate of a large matrix product,
in the arithmetic of the run. The network time of the lungs is beside that of the shape of lungmask's R231 (a 2D U-Net
with 64 to 1024 features on 256 x 256 pixels, Hofmanninger et al. 2020) with random weights, on as many slices.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("lungs", "lesions", "involvement", "classifier")
HEIGHT_MM = 300.0
PIXEL_MM = 0.7
GROWTH = (150, 300, 600, 1200)
R231 = ((64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024))
RESULT = "RESULT "
BLOCKS, WINDOWS = "--run", "--run-in-windows"
PLAIN = ("runtime=torch", "precision=float32")


def run_here(series: Path, output: Path, cache: Path, *settings: str, windows: bool = False) -> dict[str, Any]:
    """Run the job in this process; say what each call of a network took and was called with."""
    from models.cuda_runtime import load_cuda_runtime

    load_cuda_runtime()
    from app.settings import load_settings
    from app.study import Request, _models, _runtime, run_folder
    from models.record import SHIPPED
    from operators.selection_rules import ANY_SERIES

    if windows:
        from tests.bench.windows import use_sliding_windows

        use_sliding_windows()
    chosen = load_settings(settings)
    runtime = _runtime(chosen, cache)
    models = _models(SHIPPED, runtime)
    calls: Counter[tuple[str, str, tuple[tuple[int, ...], ...]]] = Counter()
    seconds: Counter[str] = Counter()

    def watched(task: str, method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            start = time.perf_counter()
            result = function(*inputs)
            seconds[task] += time.perf_counter() - start
            calls[task, method, tuple(tuple(each.shape) for each in inputs)] += 1
            return result

        return call

    for task in NETWORKS:
        network = getattr(models, task)
        for method in network.heavy:
            setattr(network, method, watched(task, method, getattr(network, method)))
    run_folder(Request(series, output, SHIPPED, chosen, ANY_SERIES, cache), lambda line: None)
    found = json.loads((output / "result.json").read_text("utf-8"))
    return {
        "runtime": runtime.name,
        "precision": runtime.precision,
        "nodes": found["seconds"],
        "network_seconds": dict(seconds),
        "gflop": {task: _gflop(task, calls) for task in NETWORKS},
        "probability": found["probability"],
        "percent": found["measurements"]["total"],
        "peak_gb": peak_gb(),
    }


def peak_gb() -> float:
    """Return the peak memory of this process: what its parent is told holds that of the parent, too."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def _gflop(task: str, calls: Counter[tuple[str, str, tuple[tuple[int, ...], ...]]]) -> float:
    """Count the operations of all calls of a network, without computing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models.classifier.network import Classifier
    from models.involvement.network import InvolvementNetwork
    from models.lesions.network import LesionNetwork
    from models.lungs.network import DeepMedic

    classes = dict(zip(NETWORKS, (DeepMedic, LesionNetwork, InvolvementNetwork, Classifier), strict=True))
    total = 0.0
    with torch.device("meta"):
        network = classes[task]().eval()
        for (of, method, shapes), times in calls.items():
            if of == task:
                with FlopCounterMode(display=False) as counter:
                    getattr(network, method)(*map(torch.empty, shapes))
                total += times * counter.get_total_flops() / 1e9
    return total


def run_apart(series: Path, cache: Path, *settings: str, windows: bool = False) -> dict[str, Any]:
    """Run the job in a process of its own; adds its seconds."""
    how = WINDOWS if windows else BLOCKS
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        measured: dict[str, Any] = result_of("tests.bench.job", how, str(series), temporary, str(cache), *settings)
        return measured | {"seconds": time.perf_counter() - start}


def result_of(module: str, *arguments: str) -> Any:
    """Run a module in a process of its own; return what it prints after :data:`RESULT`."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith(RESULT))
    return json.loads(line.removeprefix(RESULT))


def matrix_gflops(precision: str, size: int = 3072, repeats: int = 5) -> float:
    """Return the rate of a large matrix product in PyTorch, 10^9 operations a second; the best of some."""
    import torch

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.rand(size, size).to(dtype) for _ in range(2))
    a @ b
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9


def r231_seconds(slices: int, measured: int = 4) -> float:
    """Return what the shape of R231 takes for so many slices in PyTorch in float32, from a few of them."""
    import torch

    from models.unet import UNet

    network = UNet(2, R231, classes=3, normalised=True).eval()
    x = torch.rand(1, 1, 256, 256)
    with torch.inference_mode():
        network(x)
        start = time.perf_counter()
        for _ in range(measured):
            network(x)
    return (time.perf_counter() - start) / measured * slices


def run(slices: int = 150, growth: Sequence[int] = GROWTH) -> dict[str, Any]:
    """Measure, print the tables, and return all figures."""
    from app.phantom import make_phantom
    from app.phantom.dicom import write_ct_series
    from models.hounsfield import whole
    from models.threads import use_granted_cores
    from operators.resampling import resample

    hu = make_phantom(0, (HEIGHT_MM / slices, PIXEL_MM, PIXEL_MM)).hu
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def series(count: int) -> Path:
            thinner = whole(resample(hu, (count, *hu.shape[1:]))).astype(np.float32)
            write_ct_series(folder / str(count), thinner, (HEIGHT_MM / count, PIXEL_MM, PIXEL_MM))
            return folder / str(count)

        cache = folder / "cache"
        first = series(slices)
        use_granted_cores()
        uncached = run_apart(first, cache)
        here = run_apart(first, cache)
        plain = run_apart(first, cache, *PLAIN)
        windows = run_apart(first, cache, *PLAIN, windows=True)
        rate = matrix_gflops(here["precision"])
        r231 = r231_seconds(slices)
        _print(slices, here, plain, windows, rate, r231)
        print(f"Without a cache of converted networks: {uncached['seconds'] - here['seconds']:+.1f} s")
        sizes = {count: here if count == slices else run_apart(series(count), cache) for count in growth}
        print(f"{'slices':>8}{'seconds':>9}{'peak GB':>9}")
        for count, row in sizes.items():
            print(f"{count:8}{row['seconds']:9.1f}{row['peak_gb']:9.2f}")
    return {
        "slices": slices,
        "here": here,
        "plain": plain,
        "windows": windows,
        "uncached": uncached,
        "matrix_gflops": rate,
        "r231_seconds": r231,
        "growth": sizes,
    }


def _print(
    slices: int, here: dict[str, Any], plain: dict[str, Any], windows: dict[str, Any], rate: float, r231: float
) -> None:
    def row(name: str, seconds: float, *others: float) -> None:
        ratios = "".join(f"{other:9.1f}{other / max(seconds, 1e-3):7.2f}" for other in others)
        print(f"{name:24}{seconds:9.1f}{ratios}")

    print(f"The whole job on {slices} slices, {here['runtime']} in {here['precision']} beside PyTorch in float32,")
    print(f"in our blocks and in MONAI's sliding windows; a matrix product runs at {rate:.0f} GFLOP/s here")
    print(f"{'':24}{'seconds':>9}{'PyTorch':>9}{'ratio':>7}{'windows':>9}{'ratio':>7}")
    for node, seconds in here["nodes"].items():
        row(node, seconds, plain["nodes"][node], windows["nodes"][node])
    row("process", here["seconds"], plain["seconds"], windows["seconds"])
    print(f"{'peak memory, GB':24}{here['peak_gb']:9.2f}{plain['peak_gb']:9.2f}{'':7}{windows['peak_gb']:9.2f}")
    print(f"{'networks alone':24}{'seconds':>9}{'GFLOP':>9}{'times the limit':>17}")
    for task in NETWORKS:
        seconds, gflop = here["network_seconds"][task], here["gflop"][task]
        print(f"{task:24}{seconds:9.1f}{gflop:9.0f}{seconds * rate / gflop:17.2f}")
    ratio = r231 / plain["network_seconds"]["lungs"]
    print(f"The shape of R231 takes {r231:.1f} s in PyTorch, {ratio:.1f} x that of DeepMedic there")


if __name__ == "__main__":
    if sys.argv[1:2] in ([BLOCKS], [WINDOWS]):
        given = [Path(each) for each in sys.argv[2:5]]
        found = run_here(given[0], given[1], given[2], *sys.argv[5:], windows=sys.argv[1] == WINDOWS)
        print(RESULT + json.dumps(found))
    else:
        counts = [int(each) for each in sys.argv[1:]] or list(GROWTH)
        target = Path("build", "bench-job.json")
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(run(counts[0], counts), indent=2))
        print(f"written to {target}")
