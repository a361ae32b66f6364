from pathlib import Path

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from operators.pm_writer import write_parametric_maps
from operators.seg_writer import write_segmentation
from tests.operators.dicom_results import case, provenance


@pytest.mark.parametrize("folder", ["seg", "pm"])
def test_deflated_objects_are_the_same_in_fewer_bytes(folder: str, tmp_path: Path) -> None:
    found = case()
    for name, deflate in (("plain", False), ("deflated", True)):
        write_segmentation(found.volume, found.lungs, found.lesions, provenance(), tmp_path / name, deflate=deflate)
        write_parametric_maps(
            found.volume, found.classification, found.explanation, provenance(), tmp_path / name, deflate=deflate
        )
    paths = sorted((tmp_path / "plain" / folder).iterdir())
    assert paths
    for path in paths:
        other = tmp_path / "deflated" / folder / path.name
        plain, deflated = pydicom.dcmread(path), pydicom.dcmread(other)
        assert plain.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert deflated.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
        assert plain == deflated
        assert other.stat().st_size < path.stat().st_size


def test_what_the_disk_did_not_keep_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = case()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:-1])
    with pytest.raises(OSError, match="did not keep"):
        write_segmentation(found.volume, found.lungs, found.lesions, provenance(), tmp_path)
