"""Writing the results of 300 slices of 512 x 512: seconds and bytes of each writer.

The findings are the truth of the phantom, the heatmaps are noise in and near the lungs. Each writer
runs several times, and the best counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from app.phantom import make_phantom
from app.phantom.dicom import ct_headers
from models.record import ModelRecord
from operators.classification import classifier_input
from operators.findings import Classification, Explanation, Involvement, Lesions, Lungs
from operators.identity import ModelSet, Provenance
from operators.measurements import measure
from operators.pm_writer import write_parametric_maps
from operators.relevance_summary import summarise_relevance
from operators.rendering import Study
from operators.sc_writer import write_pictures
from operators.seg_writer import make_segmentation, write_segmentation
from operators.sr_writer import Findings, write_report
from operators.summary_page import Summary
from operators.volume import CTVolume
from tests.builders import axial_grid

MB = 1e6
REPEATS = 3
ZOOM = (3, 2, 2)
"""From the phantom's usual 100 slices of 256 x 256."""


def _finely(values: np.ndarray) -> np.ndarray:
    for axis, factor in enumerate(ZOOM):
        values = np.repeat(values, factor, axis=axis)
    return values


def _study() -> Study:
    phantom = make_phantom()
    hu = _finely(phantom.hu) + np.random.default_rng(1).normal(0, 10, (1, 512, 512)).astype(np.float32)
    slices, rows, columns = hu.shape
    z, y, x = (step / factor for step, factor in zip(phantom.spacing, ZOOM, strict=True))
    volume = CTVolume(
        hu, axial_grid((slices, rows, columns), (z, y, x)), ct_headers((slices, rows, columns), (z, y, x))
    )
    lungs, lesions = Lungs(_finely(phantom.lungs), volume.grid), Lesions(_finely(phantom.lesions), volume.grid)
    inputs, grid = classifier_input(volume, lungs, lesions)
    classification = Classification(inputs, grid, (0.0, 1.0), 0.8, 0.5)
    return Study(volume, lungs, lesions, classification, _noise_near_lungs(classification))


def _noise_near_lungs(classification: Classification) -> Explanation:
    """Heatmaps of speckles in the lungs and a little around them."""
    rng = np.random.default_rng(0)
    seen = binary_dilation(classification.inputs[:, 0] > 0, iterations=3)
    speckles = (gaussian_filter(rng.normal(0, 0.1, seen.shape), 1.0) for _ in range(2))
    ct, mask = (np.where(seen, each**3, 0).astype(np.float32) for each in speckles)  # few are strong, most weak
    return Explanation(ct, mask, classification.grid, 1, 1.0)


def _provenance() -> Provenance:
    records = [
        ModelRecord(name, "0.1", str(number) * 64) for number, name in enumerate(("lungs", "lesions", "2DS", "net"))
    ]
    return Provenance(ModelSet(*records), "", datetime.now().astimezone())


def run() -> list[dict[str, Any]]:
    """Measure all writers and print a table."""
    study, provenance = _study(), _provenance()
    measurements = measure(study.volume, study.lungs, study.lesions, Involvement(study.lesions.mask, study.volume.grid))
    segmentation = make_segmentation(study.volume, study.lungs, study.lesions, provenance)
    relevance = summarise_relevance(study.classification, study.explanation)
    findings = Findings(measurements, study.classification, relevance)
    summary = Summary(study, measurements, (), provenance.models.records)
    writers: dict[str, Callable[[Path], object]] = {
        "segmentation": lambda folder: write_segmentation(study.volume, study.lungs, study.lesions, provenance, folder),
        "report": lambda folder: write_report(study.volume, findings, segmentation, provenance, folder),
        "pictures": lambda folder: write_pictures(summary, provenance, folder),
        "parametric maps": lambda folder: write_parametric_maps(
            study.volume, study.classification, study.explanation, provenance, folder
        ),
        "deflated segmentation": lambda folder: write_segmentation(
            study.volume, study.lungs, study.lesions, provenance, folder, deflate=True
        ),
        "deflated parametric maps": lambda folder: write_parametric_maps(
            study.volume, study.classification, study.explanation, provenance, folder, deflate=True
        ),
    }
    print(f"Writing the results of {study.volume.grid.shape[0]} slices of 512 x 512")
    print(f"{'':26}{'seconds':>8}{'MB':>7}")
    rows: list[dict[str, Any]] = []
    for name, write in writers.items():
        with tempfile.TemporaryDirectory() as temporary:
            seconds = min(_seconds(write, Path(temporary)) for _ in range(REPEATS))
            size = sum(path.stat().st_size for path in Path(temporary).rglob("*.dcm")) / MB
        rows.append({"writer": name, "seconds": seconds, "mb": size})
        print(f"{name:26}{seconds:8.2f}{size:7.1f}")
    _print_sums(rows)
    return rows


def _print_sums(rows: list[dict[str, Any]]) -> None:
    """Print what a whole run takes, with the setting ``deflate`` and without it."""
    plain, deflated = rows[:4], [*rows[1:3], *rows[4:]]
    for name, parts in (("all", plain), ("all, with deflate", deflated)):
        seconds, size = (sum(row[unit] for row in parts) for unit in ("seconds", "mb"))
        print(f"{name:26}{seconds:8.2f}{size:7.1f}")


def _seconds(write: Callable[[Path], object], folder: Path) -> float:
    start = time.perf_counter()
    write(folder)
    return time.perf_counter() - start
