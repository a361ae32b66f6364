"""Well-formed folders, small ones, from which the cases are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.builders import write_series
from tests.fuzz.parts import Coding, Parts, taken_apart

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "robustness"
Files = dict[str, Parts]
Corpus = dict[str, Files]
_SHAPE = (6, 8, 10)
_SPACING = (30.0, 1.5, 0.75)
_REAL_FOLDERS = ("pydicom_bad", "non_ct")
_REAL_SYNTAXES = ("4.50", "4.55", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91")
_REAL_BYTES = 210_000
REAL = tuple(f"real_{name}" for name in (*_REAL_FOLDERS, *_REAL_SYNTAXES))
"""Names of the folders of real files, which need not be here."""


@lru_cache(maxsize=1)
def corpus() -> Corpus:
    """Make the folders; those of real files only where they are here."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        hu = rng.integers(-1024, 1500, _SHAPE).astype(np.float32)
        paths = write_series(Path(folder), hu, _SPACING, origin=(-5.0, -7.0, 100.0))
        images = [pydicom.dcmread(path) for path in paths]
        made = {name: make(images) for name, make in _MAKERS.items()}
    return made | _real()


def _written(image: Dataset) -> bytes:
    with tempfile.SpooledTemporaryFile() as stream:
        image.save_as(stream, enforce_file_format=True)
        stream.seek(0)
        return stream.read()


def _files(images: list[Dataset]) -> Files:
    return {f"IM{k:04d}.dcm": taken_apart(_written(image)) for k, image in enumerate(images)}


def _clone(image: Dataset, syntax: UID | None = None) -> Dataset:
    """Copy without the memory of how the image was written."""
    clone = Dataset({element.tag: deepcopy(element) for element in image})
    clone.file_meta = deepcopy(image.file_meta)
    if syntax is not None:
        clone.file_meta.TransferSyntaxUID = syntax
    return clone


def _uncompressed(syntax: UID) -> Callable[[list[Dataset]], Files]:
    def make(images: list[Dataset]) -> Files:
        clones = [_clone(image, syntax) for image in images]
        if syntax == ExplicitVRBigEndian:
            for clone in clones:
                clone.PixelData = np.frombuffer(clone.PixelData, "<i2").astype(">i2").tobytes()
        return _files(clones)

    return make


def _no_preamble(images: list[Dataset]) -> Files:
    files = {}
    for k, image in enumerate(images):
        clone = Dataset({element.tag: element for element in image})
        with tempfile.SpooledTemporaryFile() as stream:
            clone.save_as(stream, implicit_vr=k % 2 == 0, little_endian=True)
            stream.seek(0)
            files[f"IM{k:04d}"] = taken_apart(stream.read(), Coding(explicit=k % 2 == 1))
    return files


def _compressed(syntax: UID) -> Callable[[list[Dataset]], Files]:
    def make(images: list[Dataset]) -> Files:
        clones = [_clone(image) for image in images]
        for clone in clones:
            clone.compress(syntax, generate_instance_uid=False)
        return _files(clones)

    return make


def _compressed_by_gdcm(syntax: UID) -> Callable[[list[Dataset]], Files]:
    def make(images: list[Dataset]) -> Files:
        clones = []
        for image in images:
            clone = _clone(image, syntax)
            clone.PixelData = encapsulate([_gdcm_codestream(image, syntax)])
            clone["PixelData"].is_undefined_length = True
            clone["PixelData"].VR = "OB"
            clones.append(clone)
        return _files(clones)

    return make


def _gdcm_codestream(image: Dataset, syntax: UID) -> bytes:
    """Compress one image by GDCM: pydicom has no encoder of its own for these syntaxes."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(_written(image))
        stream.flush()
        reader = gdcm.ImageReader()
        reader.SetFileName(stream.name)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change()
        fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
        return fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


def _multi_frame(syntax: UID | None) -> Callable[[list[Dataset]], Files]:
    def make(images: list[Dataset]) -> Files:
        sources = [_clone(image) for image in images]
        for source in sources:
            source.BurnedInAnnotation = "NO"
        uids = [generate_uid(entropy_srcs=["fuzz", name]) for name in ("series", "image", "dimensions")]
        enhanced = LegacyConvertedEnhancedCTImage(sources, uids[0], 1, uids[1], 1)
        _settle(enhanced, uids[2])
        if syntax is not None:
            enhanced.compress(syntax, generate_instance_uid=False)
        return {"enhanced.dcm": taken_apart(_written(enhanced))}

    return make


def _settle(image: Dataset, uid: UID) -> None:
    """Replace what differs each time it is made: times and the UIDs of dimensions."""
    for element in image.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = uid
        elif element.VR in ("DA", "TM", "DT") and element.value:
            element.value = {"DA": "20200101", "TM": "120000", "DT": "20200101120000"}[element.VR]


_MAKERS: dict[str, Callable[[list[Dataset]], Files]] = {
    "explicit": _files,
    "implicit": _uncompressed(ImplicitVRLittleEndian),
    "big_endian": _uncompressed(ExplicitVRBigEndian),
    "deflated": _uncompressed(DeflatedExplicitVRLittleEndian),
    "no_preamble": _no_preamble,
    "rle": _compressed(RLELossless),
    "jpeg_ls": _compressed(JPEGLSLossless),
    "jpeg_2000": _compressed_by_gdcm(JPEG2000Lossless),
    "jpeg_lossless": _compressed_by_gdcm(JPEGLosslessSV1),
    "multi_frame": _multi_frame(None),
    "multi_frame_rle": _multi_frame(RLELossless),
    "multi_frame_jpeg_ls": _multi_frame(JPEGLSLossless),
}
SYNTHETIC = tuple(_MAKERS)
"""Names of the synthetic folders."""


def _real() -> Corpus:
    """Return folders of small real files, and stacks made of a compressed real slice."""
    found: Corpus = {}
    for name in _REAL_FOLDERS:
        paths = [path for path in sorted(REAL_DATA.glob(f"{name}/*.dcm")) if path.stat().st_size < _REAL_BYTES // 4]
        if paths:
            found[f"real_{name}"] = {path.name: taken_apart(path.read_bytes()) for path in paths}
    for name in _REAL_SYNTAXES:
        paths = sorted(REAL_DATA.glob(f"ts_chest_ctimage/CTImage.dcm_*_1.2.840.10008.1.2.{name}.dcm"))
        if paths and paths[0].stat().st_size < _REAL_BYTES:
            found[f"real_{name}"] = _stack(paths[0])
    return found


def _stack(path: Path) -> Files:
    """Make a series of one real slice; the pixel data stay as they are."""
    images = []
    for k in range(3):
        image = pydicom.dcmread(path)
        image.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz", path.name, str(k)])
        image.ImagePositionPatient[2] = 60.0 * k
        images.append(image)
    return _files(images)
