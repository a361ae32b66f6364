"""What is wanted of a hostile file is read, or nothing is, and never much."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from app.gateway.audit import patient_id
from app.gateway.header import MetaContinues, TooLong, file_head, read_head, stored_as
from app.gateway.receiver import ACCEPTED_SYNTAXES
from operators.identity import IMPLEMENTATION_UID
from tests.builders import write_series

_STUDY, _PATIENT = 0x0020000D, 0x00100020
_MANY = 100_000


def _implicit(*elements: tuple[int, int, bytes]) -> bytes:
    """Return a file in Implicit VR Little Endian."""
    data = b"".join(struct.pack("<HHL", group, element, len(value)) + value for group, element, value in elements)
    return file_head(CTImageStorage, "1.2.3", ImplicitVRLittleEndian) + data


def _endless(group: int, element: int) -> bytes:
    """Return a sequence of undefined length with very many items."""
    start = struct.pack("<HHL", group, element, 0xFFFFFFFF)
    return start + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * _MANY + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def test_what_is_wanted_is_read(tmp_path: Path) -> None:
    (file,) = write_series(tmp_path, np.zeros((1, 8, 8)))
    image = pydicom.dcmread(file)
    syntax = image.file_meta.TransferSyntaxUID
    head = read_head(file, syntax, [_PATIENT, _STUDY])
    assert (head.PatientID, head.StudyInstanceUID) == (image.PatientID, image.StudyInstanceUID)


@pytest.mark.parametrize("syntax", ACCEPTED_SYNTAXES)
def test_it_is_read_in_any_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    image, buffer, file = Dataset(), DicomBytesIO(), tmp_path / "file"
    image.PatientID, image.StudyInstanceUID, image.Rows = "4711", "1.2.3.4", 512
    buffer.is_implicit_VR, buffer.is_little_endian = UID(syntax).is_implicit_VR, UID(syntax).is_little_endian
    write_dataset(buffer, image)
    file.write_bytes(file_head(CTImageStorage, "1.2.3", syntax) + buffer.getvalue())
    head = read_head(file, syntax, [_PATIENT, _STUDY])
    assert (head.PatientID, head.StudyInstanceUID) == ("4711", "1.2.3.4")
    assert "Rows" not in head


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34", "2.25." + "7" * 39])
def test_the_head_of_a_file_is_what_the_library_makes(uid: str) -> None:
    head = file_head(CTImageStorage, uid, ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = len(head) - 144
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, IMPLEMENTATION_UID
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, meta)
    assert head == bytes(128) + b"DICM" + buffer.getvalue()


def test_what_is_not_wanted_may_be_long_if_its_length_is_known(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(_implicit((0x0009, 0x1001, bytes(1 << 20)), (0x0020, 0x000D, b"1.2.3.4\0")))
    assert read_head(file, ImplicitVRLittleEndian, [_STUDY]).StudyInstanceUID == "1.2.3.4"


def test_a_sequence_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    file = tmp_path / "1.2.3.dcm"
    before = file_head(CTImageStorage, "1.2.3", ImplicitVRLittleEndian) + _endless(0x0008, 0x1140)
    file.write_bytes(before + struct.pack("<HHL", 0x0010, 0x0020, 4) + b"4711")
    with pytest.raises((TooLong, OSError)):  # as the parser passes it on
        read_head(file, ImplicitVRLittleEndian, [_PATIENT])
    assert patient_id(tmp_path) == ""


def test_a_value_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(_implicit((0x0020, 0x000D, b"1" * (1 << 20))))
    with pytest.raises(TooLong):
        read_head(file, ImplicitVRLittleEndian, [_STUDY])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_data_set_that_continues_the_file_meta_group_is_refused(tmp_path: Path, syntax: str) -> None:
    """Readers take what follows the group for a part of it: UIDs and transfer syntax could be others than stated."""
    file = tmp_path / "1.2.3.dcm"
    head = file_head(CTImageStorage, "1.2.3", syntax)
    file.write_bytes(head + struct.pack("<HH2sHLL", 2, 0x0102, b"OB", 0, 1 << 20, 0) + bytes(1 << 20))
    with pytest.raises(MetaContinues):
        read_head(file, syntax, [_PATIENT])
    assert patient_id(tmp_path) == ""
    assert stored_as(file) == (CTImageStorage, syntax)
