"""What is fuzzed, and what must be true of its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.uid import UID

from app.inspection import inspect_folder
from app.settings import Settings
from operators.dicom_folder import scan_folder
from operators.refusal import InputRefused, ReasonCode
from operators.selection_rules import ANY_SERIES
from operators.series_loader import load_ct_series, load_study
from operators.studies import group_studies
from operators.volume import CTVolume

_INSPECTED = 4
"""One of so many folders is inspected too: that reads the same headers again."""


def load(folder: Path, number: int) -> None:
    """Load all studies of a folder as a run does; check every volume and refusal.

    Raises
    ------
    InputRefused
        If no study was loaded.
    """
    if number % _INSPECTED == 0:
        _inspect(folder)
    try:
        check_volume(load_ct_series(folder))
    except InputRefused as refusal:
        check_refusal(refusal)
        if refusal.code is not ReasonCode.MIXED_STUDIES or not _load_each(folder):
            raise


def _load_each(folder: Path) -> int:
    """Load each study of a folder; return how many were not refused."""
    loaded = 0
    for study in group_studies(scan_folder(folder)):
        try:
            check_volume(load_study(study, ANY_SERIES))
        except InputRefused as refusal:
            check_refusal(refusal)
        else:
            loaded += 1
    return loaded


def _inspect(folder: Path) -> None:
    try:
        inspect_folder(folder, ANY_SERIES, Settings())
    except InputRefused as refusal:
        check_refusal(refusal)


def check_volume(volume: CTVolume) -> None:
    """Check what every accepted volume must be."""
    slices = volume.grid.shape[0]
    assert volume.hu.dtype in (np.int16, np.float32)
    assert volume.hu.shape == volume.grid.shape
    assert np.isfinite(volume.hu).all()
    assert volume.hu.min() >= -1024.0
    assert np.isfinite(volume.grid.affine).all()
    assert min(volume.grid.spacing) > 0.0
    assert len(volume.headers) == len(volume.places) == len(volume.frames) <= slices
    assert list(volume.places) == sorted(set(volume.places))
    assert volume.places[0] == 0
    assert volume.places[-1] == slices - 1
    for header in volume.headers:
        assert "PixelData" not in header
        assert (header.Rows, header.Columns) == volume.grid.shape[1:]
        for uid in (header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID):
            assert UID(str(uid)).is_valid
    assert len({header.SeriesInstanceUID for header in volume.headers}) == 1
    assert len({header.FrameOfReferenceUID for header in volume.headers}) == 1


def check_refusal(refusal: InputRefused) -> None:
    """Check that a refusal says in one line what is wrong, and nothing of the patient."""
    assert isinstance(refusal.code, ReasonCode)
    assert refusal.message
    assert refusal.message.isprintable()
    assert "phantom" not in refusal.message.lower()
