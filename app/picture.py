"""A secondary capture as a picture that any program shows."""

from __future__ import annotations

from pathlib import Path

import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError

from app.outcome import UsageError

_COLOUR = ("RGB", "YBR_RCT")
"""Photometric interpretations that are decoded to RGB."""


def read_picture(source: Path) -> Image.Image:
    """Read a DICOM image in colour.

    Parameters
    ----------
    source : Path
        A secondary capture image of one frame, as the application writes them.

    Raises
    ------
    UsageError
        If it is no such image.
    """
    try:
        image = pydicom.dcmread(source)
        if image.get("PhotometricInterpretation") not in _COLOUR or int(image.get("NumberOfFrames") or 1) != 1:
            raise UsageError(f"{source} is not a colour image of one frame: name a file of the folder sc/")
        return Image.fromarray(image.pixel_array)
    except (OSError, InvalidDicomError) as error:
        raise UsageError(f"cannot read {source} as DICOM") from error


def write_picture(source: Path, target: Path) -> None:
    """Write a DICOM image in colour as PNG.

    Parameters
    ----------
    source : Path
        As in :func:`read_picture`.
    target : Path
        The PNG file.

    Raises
    ------
    UsageError
        If ``source`` is no such image, or ``target`` cannot be written.
    """
    picture = read_picture(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, format="PNG")
    except OSError as error:
        raise UsageError(f"cannot write {target}") from error
