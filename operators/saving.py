"""Saving what was made: DICOM files (PS3.10)."""

from __future__ import annotations

import errno
import io
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian


def save(dataset: Dataset, path: Path, *, deflate: bool = False) -> None:
    """Write a data set as a DICOM file, into a folder that is made where it is missing.

    Parameters
    ----------
    dataset : Dataset
        With its file meta information.
    path : Path
        Where to.
    deflate : bool
        Write it in Deflated Explicit VR Little Endian (PS3.5, A.5): a segmentation shrinks to a thirtieth. ``dataset``
        must be in Explicit VR Little Endian.

    Raises
    ------
    OSError
        If it cannot be written, or does not read back the same.
    """
    if deflate:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(target.getbuffer())
    if path.read_bytes() != target.getbuffer():
        raise OSError(errno.EIO, "the disk did not keep what was written", str(path))
