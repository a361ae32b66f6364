"""dicom3tools (dciodvfy, dcentvfy), PixelMed's DicomSRValidator and dcmqi's readers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

_CONFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
_PIXELMED_LIMITS = " ".join(f"-Djdk.xml.xpath{name}Limit=0" for name in ("TotalOp", "ExprOp", "ExprGrp"))
_KINDS = ("ground_glass", "consolidation", "crazy_paving", "combined")


def find_tool(name: str) -> str | None:
    """Path of a tool: of the virtual environment first."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def run_tool(name: str, *arguments: object) -> tuple[int, str]:
    """Run a tool that is there; return its exit status and all it said."""
    path = find_tool(name)
    assert path is not None, f"{name} is not installed"
    environment = {**os.environ, "JAVA_TOOL_OPTIONS": _PIXELMED_LIMITS}
    command = [path, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def explained_messages() -> list[str]:
    """Messages of dciodvfy and dcentvfy that the conformance statement explains; ``...`` stands for anything."""
    return re.findall(r"^\| `(\w+ - [^`]+)` \|", _CONFORMANCE.read_text("utf-8"), re.MULTILINE)


def unexplained(messages: Iterable[str]) -> Counter[str]:
    """Those of the messages that the conformance statement does not explain; all errors are such."""
    patterns = [re.escape(message).replace(r"\.\.\.", ".*") for message in explained_messages()]
    complaints = (line.strip() for line in messages if "Error" in line or "Warning" in line)
    return Counter(line for line in complaints if not any(re.search(pattern, line) for pattern in patterns))


def dciodvfy(path: Path) -> list[str]:
    """What dciodvfy says of an object; a deflated one, which it cannot read, is inflated first."""
    with tempfile.TemporaryDirectory() as temporary:
        return run_tool("dciodvfy", _inflated(path, Path(temporary)))[1].splitlines()


def _inflated(path: Path, folder: Path) -> Path:
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return path
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(folder / path.name, enforce_file_format=True)
    return folder / path.name


TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
TYPE_2 += ("AccessionNumber", "ReferringPhysicianName")
"""Attributes of patient and study that every object must have, empty where nothing is known."""


def dcentvfy(source: Iterable[Path], results: Iterable[Path], left_out: Iterable[str] = ()) -> list[str]:
    """What dcentvfy says of results beside their source: entities that disagree, references to nothing.

    What it says of the source alone is left out: scanners refer to localizers that nobody sent. So is what it says of
    attributes that are empty or absent in one of them, if they are of type 2 and the source lacks them, or in
    ``left_out``.
    """
    images = list(source)
    header = pydicom.dcmread(images[0], stop_before_pixels=True)
    lacking = {*left_out, *(keyword for keyword in TYPE_2 if not header.get(keyword))}
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for number, path in enumerate(results):
            folder = Path(temporary, str(number))
            folder.mkdir()
            files.append(_inflated(path, folder))
        said = run_tool("dcentvfy", *images, *files)[1].splitlines()
    excused = re.compile("Attribute (present in one|is empty).*Element=<(" + "|".join(lacking or {"none"}) + ")>")
    return [line for line in said if any(f"<{file}>" in line for file in files) and not excused.search(line)]


def changed_attributes(source: Iterable[Path], results: Iterable[Path]) -> list[str]:
    """Attributes of patient and study that an object states otherwise than the source."""
    header = pydicom.dcmread(next(iter(source)), stop_before_pixels=True)
    keywords = (
        *TYPE_2,
        "PatientAge",
        "StudyInstanceUID",
        "StudyDescription",
        "IssuerOfPatientID",
        "SpecificCharacterSet",
    )
    written = ((path, pydicom.dcmread(path, stop_before_pixels=True)) for path in results)
    return [
        f"{path.name}: {keyword}"
        for path, dataset in written
        for keyword in keywords
        if (dataset.get(keyword) or None) != (header.get(keyword) or None)
    ]


def pixelmed(path: Path) -> list[str]:
    """Errors that DicomSRValidator finds in a structured report; an unfinished validation is one too."""
    said = run_tool("DicomSRValidator", path)[1]
    errors = [line for line in said.splitlines() if "Error" in line]
    needed = ("Found Root Template TID_1500", "Root Template Validation Complete", "IOD validation complete")
    return errors + [f"not said: {words}" for words in needed if words not in said]


def segment_volumes(path: Path) -> dict[str, float]:
    """Volume in ml of each segment by its label, counted in what dcmqi's segimage2itkimage makes of it."""
    with tempfile.TemporaryDirectory() as temporary:
        status, said = run_tool("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", temporary)
        assert status == 0, said
        described = json.loads(Path(temporary, "meta.json").read_text("utf-8"))["segmentAttributes"]
        labels = {item["labelID"]: item["SegmentLabel"] for group in described for item in group}
        images = {label: sitk.ReadImage(str(Path(temporary, f"{number}.nrrd"))) for number, label in labels.items()}
    return {
        label: float(np.count_nonzero(sitk.GetArrayViewFromImage(image)) * np.prod(image.GetSpacing()) / 1000)
        for label, image in images.items()
    }


def report_values(path: Path) -> dict[str, dict[str, float]]:
    """Measurements by code value, by tracking identifier, as dcmqi's tid1500reader reads them."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary, "report.json")
        status, said = run_tool("tid1500reader", "--inputDICOM", path, "--outputMetadata", target)
        assert status == 0, said
        groups = json.loads(target.read_text("utf-8"))["Measurements"]
    return {
        group["TrackingIdentifier"]: {
            item["quantity"]["CodeValue"]: float(item["value"]) for item in group["measurementItems"]
        }
        for group in groups
    }


_TIMES = re.compile("^(InstanceCreation|Content|Observation)(Date|Time)$|OfSecondaryCapture$|^ContributionDateTime$")


def without_times(path: Path) -> bytes:
    """Bytes of an object as if it had been made at another time: what says when is cut out, at every depth."""
    dataset = pydicom.dcmread(path)
    _drop_times(dataset)
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _drop_times(dataset: pydicom.Dataset) -> None:
    for element in list(dataset):
        if _TIMES.search(element.keyword):
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _drop_times(item)


def disagreements(results: Path) -> list[str]:
    """Where segmentation or report, read by dcmqi, state other figures than ``result.json``."""
    stated = json.loads((results / "result.json").read_text("utf-8"))
    segments = segment_volumes(results / "seg" / "segmentation.dcm")
    report = report_values(results / "sr" / "report.dcm")
    # Where slices were interpolated, the segmentation has no frames: there were no images.
    whole = not any(remark["code"] == "SLICES_INTERPOLATED" for remark in stated["remarks"])
    pairs = [*(_volumes(stated, segments) if whole else []), *_report(stated, report)]
    return [
        f"{what}: {read} read, {expected} stated"
        for what, read, expected in pairs
        if read is None or not np.isclose(read, expected, rtol=1e-6, atol=1e-6)
    ]


_Pair = tuple[str, float | None, float]


def _volumes(stated: Mapping[str, Any], segments: Mapping[str, float]) -> list[_Pair]:
    total, left, right = (stated["measurements"][side] for side in ("total", "left", "right"))
    expected = {"Lungs": total["volume_ml"], "Left lung": left["volume_ml"], "Right lung": right["volume_ml"]}
    labels = ("Ground-glass opacity", "Consolidation", "Crazy paving", "Combined pattern")
    expected |= {label: total[kind]["volume_ml"] for label, kind in zip(labels, _KINDS, strict=True)}
    assert set(expected) == set(segments), "segments are missing"
    return [(f"segment {label}", segments[label], volume) for label, volume in expected.items()]


def _report(stated: Mapping[str, Any], report: Mapping[str, Mapping[str, float]]) -> list[_Pair]:
    pairs: list[_Pair] = [
        ("probability", report.get("COVID-19 classification", {}).get("122157"), stated["probability"])
    ]
    for label, side in (("Lungs", "total"), ("Left lung", "left"), ("Right lung", "right")):
        lung = stated["measurements"][side]
        if lung["volume_ml"] == 0:
            continue
        expected = {"118565006": lung["volume_ml"], "112031": lung["mean_hu"]}
        prefixes = ("GGO", "CON", "CPP", "MIX", "ALL", "INV")
        for prefix, kind in zip(prefixes, (*_KINDS, "all_lesions", "involvement"), strict=True):
            expected[f"{prefix}-VOL"] = lung[kind]["volume_ml"]
            expected[f"{prefix}-PCT"] = lung[kind]["percent_of_lung"]
        pairs += [(f"{label} {code}", report.get(label, {}).get(code), value) for code, value in expected.items()]
    return pairs
