"""Validate the results of a run beside its source: ``python -m tests.validation CT RESULTS``; exit 1 on a complaint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pydicom

from tests.validation.tools import changed_attributes, dcentvfy, dciodvfy, disagreements, pixelmed, unexplained


def _complain(what: str, complaints: Iterable[str]) -> int:
    listed = list(complaints)
    print(f"{what:46}{'ok' if not listed else f'{len(listed)} complaints'}", flush=True)
    for complaint in listed[:20]:
        print(f"    {complaint}")
    return len(listed)


def validate(source: Path, results: Path) -> int:
    """Print a line for each check; return the number of complaints."""
    objects = sorted(results.rglob("*.dcm"))
    images = [path for path in source.rglob("*") if path.is_file() and pydicom.misc.is_dicom(path)]
    count = 0
    for path in objects:
        said = dciodvfy(path)
        warnings = sum("Warning" in line for line in said)
        name = path.relative_to(results)
        count += _complain(f"dciodvfy {name} ({warnings} warnings)", unexplained(said))
    count += _complain("dcentvfy, source and results", unexplained(dcentvfy(images, objects)))
    count += _complain("patient and study as in the source", changed_attributes(images, objects))
    count += _complain("PixelMed DicomSRValidator", pixelmed(results / "sr" / "report.dcm"))
    return count + _complain("dcmqi against result.json", disagreements(results))


parser = argparse.ArgumentParser(prog="python -m tests.validation", description=__doc__)
parser.add_argument("source", metavar="CT", type=Path, help="folder of the source images")
parser.add_argument("results", metavar="RESULTS", type=Path, help="output folder of a run")
arguments = parser.parse_args()
sys.exit(min(1, validate(arguments.source, arguments.results)))
