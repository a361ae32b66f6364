"""Loading a series: seconds and peak memory of our loader beside SimpleITK, the MONAI Deploy SDK's chain and pydicom.

Each reader runs in a process of its own, imports first, reads the folder once to have it in the cache, then several
times: the best counts, since fresh memory alone can cost a virtual machine more than the reading. Memory is the growth
of the process's peak over its state after the imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.series import SYNTAXES, write_coded_series

MIB = 1 << 20
REPEATS = 4
READERS = ("ours", "SimpleITK", "SDK", "pydicom")


def _ours() -> Callable[[Path], np.ndarray]:
    from operators.series_loader import load_ct_series

    return lambda folder: load_ct_series(folder).hu


def _simple_itk() -> Callable[[Path], np.ndarray]:
    import SimpleITK as sitk

    def read(folder: Path) -> np.ndarray:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return sitk.GetArrayViewFromImage(reader.Execute())

    return read


def _sdk() -> Callable[[Path], np.ndarray]:
    from monai.deploy.core import Fragment
    from monai.deploy.operators import (
        DICOMDataLoaderOperator,
        DICOMSeriesSelectorOperator,
        DICOMSeriesToVolumeOperator,
    )

    def read(folder: Path) -> np.ndarray:
        fragment = Fragment()
        studies = DICOMDataLoaderOperator(fragment, input_folder=folder, name="l").load_data_to_studies(folder)
        selector = DICOMSeriesSelectorOperator(fragment, name="s")
        selected = selector.filter(None, studies)
        images = DICOMSeriesToVolumeOperator(fragment, name="v").convert_to_image(selected)
        return images[0].selected_series[0].image.asnumpy() if isinstance(images, list) else images.asnumpy()

    return read


def _pydicom() -> Callable[[Path], np.ndarray]:
    import pydicom

    def read(folder: Path) -> np.ndarray:
        images = [pydicom.dcmread(path) for path in folder.iterdir()]
        images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
        hu = np.empty((len(images), images[0].Rows, images[0].Columns), np.float32)
        for image, plane in zip(images, hu, strict=True):
            plane[:] = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
        return hu

    return read


def peak_kib() -> int:
    """Peak resident memory of this process: unlike ``ru_maxrss`` not that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def measure(reader: str, folder: Path) -> dict[str, float]:
    """Measure one reader in this process."""
    make = {"ours": _ours, "SimpleITK": _simple_itk, "SDK": _sdk, "pydicom": _pydicom}[reader]
    read = make()
    before = peak_kib()
    shape = read(folder).shape
    peak = peak_kib()
    seconds = min(_seconds(read, folder) for _ in range(REPEATS))
    return {"seconds": seconds, "mib": (peak - before) / 1024, "voxels": float(np.prod(shape))}


def _seconds(read: Callable[[Path], np.ndarray], folder: Path) -> float:
    start = time.perf_counter()
    read(folder)
    return time.perf_counter() - start


def _in_own_process(reader: str, folder: Path) -> dict[str, float] | None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.loading", reader, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(slices: int = 300) -> list[dict[str, object]]:
    """Measure all readers on all transfer syntaxes and print a table."""
    rows: list[dict[str, object]] = []
    volume_mib = slices * 512 * 512 * 4 / MIB
    print(f"Loading {slices} slices of 512 x 512; the volume in float32 is {volume_mib:.0f} MiB")
    print(f"{'':14}{'reader':<11}{'seconds':>8}{'ratio':>7}{'peak MiB':>10}{'volumes':>9}")
    for name, syntax in SYNTAXES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_coded_series(folder, syntax, slices)
            measured = {reader: _in_own_process(reader, folder) for reader in READERS}
        best = measured["SimpleITK"]
        for reader, values in measured.items():
            if values is None:
                print(f"{name:14}{reader:<11}{'cannot read it':>25}")
                rows.append({"syntax": name, "reader": reader})
                continue
            ratio = values["seconds"] / best["seconds"] if best else float("nan")
            volumes = values["mib"] / volume_mib
            print(f"{name:14}{reader:<11}{values['seconds']:8.2f}{ratio:7.2f}{values['mib']:10.0f}{volumes:9.2f}")
            rows.append({"syntax": name, "reader": reader, **values, "ratio": ratio, "volumes": volumes})
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
