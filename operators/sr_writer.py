"""DICOM Structured Report: TID 1500 Measurement Report as a Comprehensive 3D SR (PS3.16 A, PS3.3 A.35.13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highdicom.seg import Segmentation
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr import (
    VolumetricROIMeasurementsAndQualitativeEvaluations as Group,
)
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code

from models.record import ModelRecord
from operators import codes
from operators.findings import Classification, LesionType
from operators.identity import (
    Provenance,
    contributing_equipment,
    derived_uid,
    equipment,
    sign,
    source_headers,
)
from operators.journal import Journal
from operators.measurements import Amount, LungMeasurements, Measurements
from operators.relevance_summary import RelevanceSummary, summarise_relevance
from operators.remarks import Remark
from operators.saving import save
from operators.seg_writer import (
    LEFT_LUNG_SEGMENT,
    LESION_SEGMENTS,
    LUNGS_SEGMENT,
    RIGHT_LUNG_SEGMENT,
    segment_tracking,
)
from operators.software import MANUFACTURER, NAME, RESEARCH_NOTICE
from operators.volume import CTVolume

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "COVID-CT measurement report (research)"
FILE = Path("sr", "report.dcm")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report states.

    Parameters
    ----------
    measurements : Measurements
        Volumes, attenuation and percentages.
    classification : Classification
        Probability and decision.
    relevance : RelevanceSummary
        What the heatmaps show.
    remarks : sequence of Remark
        What was repaired in the input or makes the results less certain.
    """

    measurements: Measurements
    classification: Classification
    relevance: RelevanceSummary
    remarks: Sequence[Remark] = ()


def _algorithm(model: ModelRecord, *parameters: str) -> AlgorithmIdentification:
    """TID 4019."""
    return AlgorithmIdentification(
        name=model.name,
        version=model.version,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        parameters=[f"weights sha256 {model.sha256}", *parameters],
    )


def _percent(names: codes.AmountCodes, amount: Amount, model: ModelRecord | None = None) -> list[Measurement]:
    """Percentage of the lung; nothing where there is no lung to take it of."""
    if amount.percent_of_lung is None:
        return []
    by = _algorithm(model) if model else None
    return [Measurement(names.percent, amount.percent_of_lung, codes.PERCENT, algorithm_id=by)]


def _amount(names: codes.AmountCodes, amount: Amount, model: ModelRecord) -> list[Measurement]:
    """Volume inside a lung and percentage of that lung."""
    volume = Measurement(names.volume, amount.volume_ml, codes.MILLILITRE, algorithm_id=_algorithm(model))
    return [volume, *_percent(names, amount, model)]


def _lung_measurements(lung: LungMeasurements, provenance: Provenance) -> list[Measurement]:
    """All measurements of one lung, or of both; zero volumes are stated."""
    models = provenance.models
    measurements = [Measurement(codes.VOLUME, lung.volume_ml, codes.MILLILITRE)]
    if lung.mean_hu is not None:
        measurements.append(Measurement(codes.ATTENUATION, lung.mean_hu, codes.HOUNSFIELD, derivation=codes.MEAN))
    measurements += _amount(codes.INVOLVEMENT, lung.involvement, models.involvement)
    measurements += _amount(codes.ALL_LESIONS, lung.all_lesions, models.lesions)
    for kind, term in codes.LESION_TERMS.items():
        measurements += _amount(term.amount, lung.lesion(kind), models.lesions)
    return measurements


def _side(left: Amount | LungMeasurements, right: Amount | LungMeasurements) -> Code:
    """Return the laterality of what there is that much of in each lung."""
    if left.volume_ml == 0.0:
        return codes.RIGHT
    return codes.LEFT if right.volume_ml == 0.0 else codes.BOTH_SIDES


@dataclass(frozen=True, slots=True)
class _Writer:
    """What all groups of one report share."""

    volume: CTVolume
    segmentation: Segmentation
    provenance: Provenance

    def _tracking(self, identifier: str, uid: str) -> TrackingIdentifier:
        return TrackingIdentifier(uid=uid, identifier=identifier)

    def _reference(self, segment: int) -> ReferencedSegment:
        """Refer to a segment by its source series: listing every image would add nothing."""
        return ReferencedSegment(
            sop_class_uid=self.segmentation.SOPClassUID,
            sop_instance_uid=self.segmentation.SOPInstanceUID,
            segment_number=segment,
            source_series=SourceSeriesForSegmentation(self.volume.series_uid),
        )

    def lung(self, segment: int, side: Code, lung: LungMeasurements) -> Group:
        """Group of one lung, or of both (TID 1411)."""
        label, uid = segment_tracking(self.volume, self.provenance, segment)
        return Group(
            tracking_identifier=self._tracking(label, uid),
            referenced_segment=self._reference(segment),
            finding_category=codes.ANATOMICAL_STRUCTURE,
            finding_type=codes.LUNG,
            finding_sites=[FindingSite(codes.LUNG, laterality=side)],
            algorithm_id=_algorithm(self.provenance.models.lungs),
            measurements=_lung_measurements(lung, self.provenance),
        )

    def lesion(self, kind: LesionType, measurements: Measurements) -> Group:
        """Group of one type of lesion (TID 1411), whose site is the lung that has it, or both."""
        term = codes.LESION_TERMS[kind]
        amount = measurements.total.lesion(kind)
        side = _side(measurements.left.lesion(kind), measurements.right.lesion(kind))
        label, uid = segment_tracking(self.volume, self.provenance, LESION_SEGMENTS[kind])
        volume = Measurement(codes.VOLUME, amount.volume_ml, codes.MILLILITRE)
        return Group(
            tracking_identifier=self._tracking(label, uid),
            referenced_segment=self._reference(LESION_SEGMENTS[kind]),
            finding_category=codes.ABNORMAL_STRUCTURE,
            finding_type=term.code,
            finding_sites=[FindingSite(codes.LUNG, laterality=side)],
            algorithm_id=_algorithm(self.provenance.models.lesions),
            measurements=[volume, *_percent(term.amount, amount)],
        )

    def classification(self, result: Classification, side: Code) -> Group:
        """Group of the classification, whose region are the lungs that there are (TID 1411)."""
        return Group(
            tracking_identifier=self._tracking(
                "COVID-19 classification", derived_uid(self.volume, self.provenance, "track classification")
            ),
            referenced_segment=self._reference(LUNGS_SEGMENT),
            finding_type=codes.COVID_19,
            finding_sites=[FindingSite(codes.LUNG, laterality=side)],
            algorithm_id=_algorithm(
                self.provenance.models.classifier, f"positive at a probability of {result.threshold:g} or more"
            ),
            measurements=[Measurement(codes.PROBABILITY, result.probability, codes.NO_UNITS)],
            qualitative_evaluations=[
                QualitativeEvaluation(codes.COVID_19, codes.POSITIVE if result.positive else codes.NEGATIVE)
            ],
        )

    def groups(self, findings: Findings) -> Iterator[Group]:
        """All groups: classification, lungs, then the types of lesion that were found.

        An empty segment has no region that a group could refer to: it gets none.
        """
        measurements, filled = findings.measurements, _filled_segments(self.segmentation)
        side = _side(measurements.left, measurements.right)
        yield self.classification(findings.classification, side)
        yield self.lung(LUNGS_SEGMENT, side, measurements.total)
        if LEFT_LUNG_SEGMENT in filled:
            yield self.lung(LEFT_LUNG_SEGMENT, codes.LEFT, measurements.left)
        if RIGHT_LUNG_SEGMENT in filled:
            yield self.lung(RIGHT_LUNG_SEGMENT, codes.RIGHT, measurements.right)
        for kind in LesionType:
            if LESION_SEGMENTS[kind] in filled:
                yield self.lesion(kind, measurements)


def _filled_segments(segmentation: Segmentation) -> set[int]:
    """Numbers of the segments that have any frame."""
    frames = segmentation.PerFrameFunctionalGroupsSequence
    return {frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in frames}


def _observer(provenance: Provenance) -> ObservationContext:
    """Name this software as the observer (TID 1001, 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=provenance.device_uid,
        name=NAME,
        manufacturer_name=MANUFACTURER,
        model_name=NAME,
        serial_number=provenance.serial_number,
    )
    return ObservationContext(
        ObserverContext(observer_type=standard.DCM.Device, observer_identifying_attributes=device)
    )


def describe_relevance(relevance: RelevanceSummary) -> str:
    """Say in two sentences what the heatmaps show (paper, section 4.4)."""
    return (
        f"Heatmaps: layer-wise relevance for the class COVID-19 {relevance.explained}, logit {relevance.logit:.3f}. "
        f"Relevance on the CT {relevance.ct.total:.3f} (residual {relevance.ct.residual:.3f}), on the lesion mask "
        f"{relevance.lesions.total:.3f} (residual {relevance.lesions.residual:.3f}); "
        f"{100 * relevance.lung_share:.0f} % of the absolute relevance lies inside the lungs."
    )


def _remarks(findings: Findings) -> ContainerContentItem:
    """Remarks in words (TID 1500, Qualitative Evaluations)."""
    sides = {"left": findings.measurements.left, "right": findings.measurements.right}
    texts = [
        RESEARCH_NOTICE,
        describe_relevance(findings.relevance),
        *(f"No {side} lung was found." for side, lung in sides.items() if lung.volume_ml == 0),
        *(f"{remark.code}: {remark.message}" for remark in findings.remarks),
    ]
    container = ContainerContentItem(
        name=codes.QUALITATIVE_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(
        [TextContentItem(codes.COMMENT, text, relationship_type=RelationshipTypeValues.CONTAINS) for text in texts]
    )
    return container


_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


_OF_REQUEST = (
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
)


def _referenced_requests(header: Dataset) -> list[Dataset]:
    """Return the requests that the report answers, as far as the source names them (PS3.3 C.17.2, table C.17-3c)."""
    return [_referenced_request(header, request) for request in header.get("RequestAttributesSequence") or [Dataset()]]


def _referenced_request(header: Dataset, request: Dataset) -> Dataset:
    """Return a request; what it does not say of itself, the image says of all."""
    item = Dataset()
    item.StudyInstanceUID = header.StudyInstanceUID
    item.ReferencedStudySequence = []
    for keyword in _OF_REQUEST:
        setattr(item, keyword, request.get(keyword) or header.get(keyword) or "")
    keyword = "RequestedProcedureCodeSequence"
    codes_ = request.get(keyword) or header.get(keyword) or []
    item.RequestedProcedureCodeSequence = [code for code in codes_ if all(code.get(name) for name in _CODE)]
    return item


def make_report(
    volume: CTVolume, findings: Findings, segmentation: Segmentation, provenance: Provenance
) -> Comprehensive3DSR:
    """Make the report.

    Groups (TID 1411, each with its segment): the classification on both lungs; both lungs, the left and the
    right, as far as there, with all their amounts, zeros included; each type of lesion that was found.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    findings : Findings
        What to state.
    segmentation : Segmentation
        Of the same findings, by :func:`operators.seg_writer.make_segmentation`.
    provenance : Provenance
        What produces the report.

    Returns
    -------
    Comprehensive3DSR
        Explicit VR Little Endian; complete, preliminary, unverified.

    Raises
    ------
    ValueError
        If the segmentation is of another study, or there is no lung at all.
    """
    if segmentation.StudyInstanceUID != volume.study_uid:
        raise ValueError("the segmentation is of another study")
    if findings.measurements.total.volume_ml == 0:
        raise ValueError("a report needs at least one lung")
    content = MeasurementReport(
        observation_context=_observer(provenance),
        procedure_reported=codes.CT_PROCEDURE,
        imaging_measurements=list(_Writer(volume, segmentation, provenance).groups(findings)),
        title=standard.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_remarks(findings))
    headers = source_headers(volume)
    report = Comprehensive3DSR(
        evidence=[*{header.SOPInstanceUID: header for header in headers}.values(), segmentation],
        content=content,
        series_instance_uid=derived_uid(volume, provenance, "report series"),
        series_number=SERIES_NUMBER,
        series_description=SERIES_DESCRIPTION,
        sop_instance_uid=derived_uid(volume, provenance, "report"),
        instance_number=1,
        is_complete=True,
        requested_procedures=_referenced_requests(headers[0]),
        contributing_equipment=contributing_equipment(provenance),
        coding_schemes=[codes.private_scheme()],
        **equipment(volume, provenance),
    )
    sign(report, volume, provenance)
    return report


def write_report(
    volume: CTVolume, findings: Findings, segmentation: Segmentation, provenance: Provenance, folder: Path
) -> None:
    """Make the report and save it as :data:`FILE` in ``folder``; arguments as for :func:`make_report`."""
    save(make_report(volume, findings, segmentation, provenance), folder / FILE)


class SrWriterOperator(Operator):
    """Write the report to ``sr/report.dcm``.

    Named inputs ``volume``, ``measurements``, ``classification``, ``explanation``, ``remarks``, ``segmentation``.

    Parameters
    ----------
    folder : Path
        Folder of the outputs.
    provenance : Provenance
        What produces the report.
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
        for name in ("volume", "measurements", "classification", "explanation", "remarks", "segmentation"):
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, make and write the report."""
        volume, segmentation = op_input.receive("volume"), op_input.receive("segmentation")
        measurements, classification = op_input.receive("measurements"), op_input.receive("classification")
        relevance = summarise_relevance(classification, op_input.receive("explanation"))
        findings = Findings(measurements, classification, relevance, op_input.receive("remarks"))
        with self._journal.node("Report writer") as found:
            write_report(volume, findings, segmentation, self._provenance, self._folder)
            found("measurement report")
