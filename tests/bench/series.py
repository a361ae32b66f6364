"""CT series of 512 x 512 pixels in several transfer syntaxes, to measure loading with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.builders import write_series

SYNTAXES = {
    "raw": ExplicitVRLittleEndian,
    "JPEG-LS": JPEGLSLossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
}


def chest_like(slices: int, size: int = 512) -> np.ndarray:
    """Tissue, lungs and air with the noise of a scanner: compresses about as well as a chest CT does."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    hu = np.where((y / 0.6) ** 2 + (x / 0.85) ** 2 < 1, 40.0, -1000.0)
    for middle in (-0.4, 0.4):
        hu[(y / 0.45) ** 2 + ((x - middle) / 0.3) ** 2 < 1] = -850.0
    noise = rng.normal(0, 18, (8, size, size))
    return np.stack([hu + np.roll(noise[k % 8], 7 * k, axis=0) for k in range(slices)]).astype(np.float32)


def write_coded_series(folder: Path, syntax: UID, slices: int) -> None:
    """Write a series in a transfer syntax."""
    for path in write_series(folder, chest_like(slices), (1.0, 0.7, 0.7)):
        if syntax != ExplicitVRLittleEndian:
            _recode(path, syntax)


def _recode(path: Path, syntax: UID) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new") as target:
        writer = gdcm.ImageWriter()
        writer.SetFileName(target.name)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        path.write_bytes(Path(target.name).read_bytes())
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
