"""A secondary capture becomes the same picture as PNG, or a clear error."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from app.outcome import UsageError
from app.picture import write_picture
from tests.builders import write_series


def _capture(path: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    image.set_pixel_data(pixels, "RGB", 8)
    image.save_as(path, enforce_file_format=True)
    return pixels


def test_the_picture_is_the_image(tmp_path: Path) -> None:
    pixels = _capture(tmp_path / "a.dcm")
    write_picture(tmp_path / "a.dcm", tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), pixels)


def test_what_is_no_such_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM")
    ct = write_series(tmp_path / "ct", np.zeros((1, 8, 8)))[0]
    for source in (tmp_path / "text.dcm", tmp_path / "missing.dcm", ct):
        with pytest.raises(UsageError, match=source.stem):
            write_picture(source, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _capture(tmp_path / "a.dcm")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_picture(tmp_path / "a.dcm", tmp_path / "file" / "a.png")
