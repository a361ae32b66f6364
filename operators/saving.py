"""Saving what was made: DICOM files (PS3.10)."""

from __future__ import annotations

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
    """
    if deflate:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
