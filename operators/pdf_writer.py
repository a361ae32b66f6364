"""The summary page as a document, for systems that show no images (Encapsulated PDF, PS3.3 A.45.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from highdicom.base import SOPClass
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from operators.identity import (
    Provenance,
    contributing_equipment,
    derived_uid,
    equipment,
    sign,
    source_headers,
    source_references,
)
from operators.journal import Journal
from operators.saving import save
from operators.summary_page import SUMMARY_INPUTS, Summary, receive_summary, render_document

SERIES_NUMBER = 9006
SERIES_DESCRIPTION = "COVID-CT summary (research)"
FILE = Path("pdf", "summary.dcm")


def make_document(summary: Summary, provenance: Provenance) -> SOPClass:
    """Make the summary page as an encapsulated PDF.

    Parameters
    ----------
    summary : Summary
        What to show.
    provenance : Provenance
        What produces the document.

    Returns
    -------
    SOPClass
        Encapsulated PDF Storage, Explicit VR Little Endian.
    """
    volume = summary.study.volume
    first = source_headers(volume)[0]
    patient = ("patient_id", "patient_name", "patient_birth_date", "patient_sex", "accession_number", "study_id")
    keywords = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
    document = SOPClass(
        study_instance_uid=volume.study_uid,
        series_instance_uid=derived_uid(volume, provenance, "document series"),
        series_number=SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=derived_uid(volume, provenance, "document"),
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=1,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **dict(zip(patient, (first[keyword].value for keyword in keywords), strict=True)),
        **equipment(volume, provenance),
    )
    document.copy_patient_and_study_information(first)
    content = render_document(summary)
    document.ConversionType = "WSD"
    document.AcquisitionDateTime = None
    document.BurnedInAnnotation = "YES"
    document.DocumentTitle = SERIES_DESCRIPTION
    document.ConceptNameCodeSequence = []
    document.SourceInstanceSequence = source_references(volume)
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocumentLength = len(content)
    document.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    document.ContributingEquipmentSequence = contributing_equipment(provenance)
    sign(document, volume, provenance)
    return document


def write_document(summary: Summary, provenance: Provenance, folder: Path) -> None:
    """Make the document and save it as :data:`FILE` in ``folder``."""
    save(make_document(summary, provenance), folder / FILE)


class PdfWriterOperator(Operator):
    """Write the summary page to ``pdf/summary.dcm``.

    Named inputs ``volume``, ``lungs``, ``lesions``, ``classification``, ``explanation``, ``measurements``, ``remarks``.

    Parameters
    ----------
    folder : Path
        Folder of the outputs.
    provenance : Provenance
        What produces the document.
    """

    def __init__(
        self, fragment: Fragment, *args: Any, journal: Journal, folder: Path, provenance: Provenance, **kwargs: Any
    ) -> None:
        self._journal = journal
        self._folder = folder
        self._provenance = provenance
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in SUMMARY_INPUTS:
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, draw and write the document."""
        summary = receive_summary(op_input, self._provenance.models.records)
        with self._journal.node("Document writer") as found:
            write_document(summary, self._provenance, self._folder)
            found("summary as PDF")
