from pathlib import Path

import pydicom
import pytest
from pydicom.uid import EncapsulatedPDFStorage

from operators.pdf_writer import make_document, write_document
from operators.summary_page import Summary
from tests.operators.dicom_results import CASES, Case, assert_valid, case, provenance


def summary(found: Case) -> Summary:
    return Summary(found.study, found.measurements, (), provenance().models.records)


@pytest.mark.parametrize("name", CASES)
def test_has_no_error_for_dciodvfy(name: str, tmp_path: Path) -> None:
    assert_valid(make_document(summary(CASES[name]()), provenance()), tmp_path)


def test_holds_the_page_of_the_patient_and_study(tmp_path: Path) -> None:
    found = case(PatientName="Müller^Jörg")
    write_document(summary(found), provenance(), tmp_path)
    read = pydicom.dcmread(tmp_path / "pdf" / "summary.dcm")
    assert read.SOPClassUID == EncapsulatedPDFStorage
    assert read.MIMETypeOfEncapsulatedDocument == "application/pdf"
    content = read.EncapsulatedDocument[: read.EncapsulatedDocumentLength]
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert read[keyword].value == found.volume.headers[0][keyword].value
