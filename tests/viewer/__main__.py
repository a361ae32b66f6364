"""``python -m tests.viewer CT RESULTS OHIF PICTURES``: look at the results in OHIF and save what it shows.

Ends with status 1 and one line if OHIF complains or does not paint what the objects hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageOps
from playwright.sync_api import Error as BrowserError
from pydicom import Dataset
from pydicom.misc import is_dicom

from tests.pacs.server import PacsFailed, running
from tests.viewer.ohif import Picture, Viewer, ViewerFailed, viewing

_SEG, _SR, _PICTURES = 9001, 9002, 9003
_LESIONS = range(3, 7)
_COLOURED = 24
"""Difference of the greatest and the least primary colour, above which a pixel is not grey."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.viewer", description=__doc__)
    for name in ("ct", "results", "ohif", "pictures"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    try:
        _look(arguments.ct, arguments.results, arguments.ohif, arguments.pictures)
    except (FileNotFoundError, PacsFailed, ViewerFailed, BrowserError) as failure:
        sys.exit(f"error: {failure}")
    print(f"look at {arguments.pictures}")


def _look(ct: Path, results: Path, ohif: Path, pictures: Path) -> None:
    segmentation = pydicom.dcmread(results / "seg" / "segmentation.dcm")
    paths = (path for folder in (ct, results) for path in sorted(folder.rglob("*")))
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as orthanc, viewing(ohif) as viewer:
        orthanc.stow([path for path in paths if path.is_file() and is_dicom(path)])
        viewer.open(segmentation.StudyInstanceUID)
        _look_at_segmentation(viewer, segmentation)
        viewer.save(pictures / "segmentation.png")
        viewer.show_series(_PICTURES)
        for name in ("summary", "keyslice_01"):
            _look_at_picture(viewer, pydicom.dcmread(results / "sc" / f"{name}.dcm"))
            viewer.save(pictures / f"{name}.png")
        if viewer.complaints():
            raise ViewerFailed(f"OHIF says: {viewer.complaints()[0]}")
        # It shows a report by its coordinates. Ours has none: the viewport stays empty, and OHIF says that something
        # went wrong (OHIF/Viewers, issue 3390).
        viewer.show_series(_SR)
        viewer.wait_for_complaint()
        viewer.save(pictures / "report.png")


def _look_at_segmentation(viewer: Viewer, segmentation: Dataset) -> None:
    viewer.show_series(_SEG)
    labels = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    found = viewer.segments()
    if found != labels:
        raise ViewerFailed(f"segments {found} instead of {labels}")
    instance, mask = _most_lesions(segmentation)
    viewer.wait_for_image(instance, lambda shown: _overlap(shown, mask) > 0.9)


def _look_at_picture(viewer: Viewer, picture: Dataset) -> None:
    pixels = picture.pixel_array
    viewer.wait_for_image(picture.SOPInstanceUID, lambda shown: _likeness(shown, pixels) > 0.95)


def _most_lesions(segmentation: Dataset) -> tuple[str, Picture]:
    """Give the source image with the largest area of lesions and what all segments cover of it."""
    masks: defaultdict[str, Picture] = defaultdict(
        lambda: np.zeros((segmentation.Rows, segmentation.Columns), np.uint8)
    )
    areas: Counter[str] = Counter()
    for plane, frame in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        instance = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        masks[instance] |= plane
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber in _LESIONS:
            areas[instance] += int(plane.sum())
    ((most, _),) = areas.most_common(1)
    return most, masks[most]


def _overlap(shown: Picture, mask: Picture) -> float:
    """Dice coefficient of what is coloured on the screen and the mask where it belongs."""
    coloured = np.ptp(shown, axis=2) > _COLOURED
    expected = _fitted(mask * 255, shown) > 127
    return float(2 * (coloured & expected).sum() / (coloured.sum() + expected.sum()))


def _likeness(shown: Picture, pixels: Picture) -> float:
    """Correlation of what is on the screen and the picture where it belongs; not a number for an empty screen."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(shown.ravel(), _fitted(pixels, shown).ravel())[0, 1])


def _fitted(pixels: Picture, shown: Picture) -> Picture:
    """Scale to the screen as viewers do: as large as it can be seen whole, in the middle."""
    height, width = shown.shape[:2]
    image = ImageOps.pad(Image.fromarray(pixels), (width, height))
    return np.asarray(image)


if __name__ == "__main__":
    main()
