from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR
from highdicom.sr.utils import find_content_items
from pydicom import Dataset
from pydicom.sr.coding import Code

from operators import codes
from operators.findings import LesionType, Lung
from operators.identity import model_uid
from operators.measurements import LungMeasurements
from operators.relevance_summary import ChannelRelevance, RelevanceSummary
from operators.seg_writer import LESION_SEGMENTS, LUNGS_SEGMENT, make_segmentation
from operators.software import RESEARCH_NOTICE
from operators.sr_writer import Findings, describe_relevance, make_report
from operators.volume import CTVolume
from tests.operators.dicom_results import (
    CASES,
    SHAPE,
    Case,
    all_types,
    assert_valid,
    both_lungs,
    case,
    no_lesions,
    one_lung,
    provenance,
    written,
)
from tests.validation.tools import report_values


def report(found: Case) -> Comprehensive3DSR:
    segmentation = make_segmentation(found.volume, found.lungs, found.lesions, provenance())
    findings = Findings(found.measurements, found.classification, found.relevance)
    return make_report(found.volume, findings, segmentation, provenance())


def groups(found: Case, folder: Path) -> dict[str, Any]:
    """Measurement groups by their tracking identifier, of the report read back from its file."""
    read = highdicom.sr.srread(written(report(found), folder / "report.dcm"))
    return {group.tracking_identifier: group for group in read.content.get_volumetric_roi_measurement_groups()}


def values(group: Any) -> dict[tuple[str, str], tuple[float, str]]:
    """Value and unit by code of what is measured."""
    return {
        (item.name.scheme_designator, item.name.value): (item.value, item.unit.value)
        for item in group.get_measurements()
    }


def expected_values(lung: LungMeasurements) -> dict[tuple[str, str], tuple[float, str]]:
    amounts = {"INV": lung.involvement, "ALL": lung.all_lesions, "GGO": lung.ground_glass}
    amounts |= {"CON": lung.consolidation, "CPP": lung.crazy_paving, "MIX": lung.combined}
    expected = {("SCT", "118565006"): (lung.volume_ml, "ml"), ("DCM", "112031"): (lung.mean_hu, "[hnsf'U]")}
    for prefix, amount in amounts.items():
        expected["99COVIDCT", f"{prefix}-VOL"] = (amount.volume_ml, "ml")
        expected["99COVIDCT", f"{prefix}-PCT"] = (amount.percent_of_lung, "%")
    return {code: (pytest.approx(value, rel=1e-9), unit) for code, (value, unit) in expected.items()}


def texts(dataset: Dataset) -> list[str]:
    found = find_content_items(dataset, name=codes.COMMENT, recursive=True)
    return [item.value for item in found]


@pytest.mark.parametrize("name", CASES)
def test_has_no_error_for_dciodvfy(name: str, tmp_path: Path) -> None:
    assert_valid(report(CASES[name]()), tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_lung_groups_state_every_measurement(name: str, tmp_path: Path) -> None:
    found = CASES[name]()
    read = groups(found, tmp_path)
    lungs = {"Lungs": found.measurements.total, "Right lung": found.measurements.right}
    if found.measurements.left.volume_ml:
        lungs["Left lung"] = found.measurements.left
    for label, lung in lungs.items():
        assert values(read[label]) == expected_values(lung)
    assert ("Left lung" in read) == ("Left lung" in lungs)


def test_each_lesion_that_was_found_has_a_group_on_its_segment(tmp_path: Path) -> None:
    found = case()
    read = groups(found, tmp_path)
    for kind, term in codes.LESION_TERMS.items():
        group, amount = read[term.label], found.measurements.total.lesion(kind)
        assert group.finding_type == term.code
        assert group.referenced_segment.referenced_segment_numbers == [LESION_SEGMENTS[kind]]
        assert values(group) == {
            ("SCT", "118565006"): (pytest.approx(amount.volume_ml), "ml"),
            ("99COVIDCT", term.amount.percent.value): (pytest.approx(amount.percent_of_lung), "%"),
        }


def sides(found: Case, folder: Path) -> dict[str, Code]:
    """Laterality of the finding site of each group."""
    return {label: site.laterality for label, group in groups(found, folder).items() for site in group.finding_sites}


@pytest.mark.parametrize(("lung", "side"), [(Lung.LEFT, codes.LEFT), (Lung.RIGHT, codes.RIGHT)])
def test_a_lesion_lies_in_the_lung_that_has_it(lung: Lung, side: Code, tmp_path: Path) -> None:
    lesions = np.where(both_lungs() == lung, all_types(), 0).astype(np.uint8)
    lesions[5, 20:23, 30:33] = lesions[5, 20:23, 9:12] = LesionType.CONSOLIDATION
    found = sides(case(lesions=lesions), tmp_path)
    assert found.pop("Consolidation") == found.pop("Lungs") == found.pop("COVID-19 classification") == codes.BOTH_SIDES
    assert (found.pop("Left lung"), found.pop("Right lung")) == (codes.LEFT, codes.RIGHT)
    assert len(found) == 1 + (lung is Lung.RIGHT)
    assert set(found.values()) == {side}


def test_where_there_is_one_lung_nothing_lies_in_the_other(tmp_path: Path) -> None:
    assert set(sides(one_lung(), tmp_path).values()) == {codes.RIGHT}


def test_an_empty_segment_is_not_referenced(tmp_path: Path) -> None:
    assert set(groups(no_lesions(), tmp_path)) == {"COVID-19 classification", "Lungs", "Left lung", "Right lung"}
    found = one_lung()
    present = {codes.LESION_TERMS[kind].label for kind in LesionType if found.measurements.total.lesion(kind).volume_ml}
    assert set(groups(found, tmp_path)) == {"COVID-19 classification", "Lungs", "Right lung", *present}
    assert "No left lung was found." in texts(report(found))
    assert not any("No left" in text for text in texts(report(case())))


@pytest.mark.parametrize(("make", "qualifier"), [(case, codes.POSITIVE), (no_lesions, codes.NEGATIVE)])
def test_states_probability_and_decision_on_the_lungs(make: Any, qualifier: Code, tmp_path: Path) -> None:
    found = make()
    group = groups(found, tmp_path)["COVID-19 classification"]
    assert values(group) == {("DCM", "122157"): (found.classification.probability, "1")}
    assert group.finding_type == codes.COVID_19
    assert group.referenced_segment.referenced_segment_numbers == [LUNGS_SEGMENT]
    evaluations = {item.name.value: item.value for item in group.get_qualitative_evaluations()}
    assert evaluations[codes.COVID_19.value] == qualifier
    parameters = find_content_items(group[0], name=Code("111002", "DCM", "Algorithm Parameters"))
    assert "positive at a probability of 0.5 or more" in [item.value for item in parameters]


def test_each_measurement_names_its_model(tmp_path: Path) -> None:
    lungs = groups(case(), tmp_path)["Lungs"]
    name = Code("111001", "DCM", "Algorithm Name")
    models = provenance().models
    assert [item.value for item in find_content_items(lungs[0], name=name)] == [models.lungs.name]
    for prefix, model in {"INV": models.involvement, "GGO": models.lesions}.items():
        (measurement,) = lungs.get_measurements(Code(f"{prefix}-VOL", "99COVIDCT", ""))
        assert [item.value for item in find_content_items(measurement[0], name=name)] == [model.name]


def test_dcmqi_reads_the_same_values(tmp_path: Path) -> None:
    found = case()
    file = written(report(found), tmp_path / "report.dcm")
    read = report_values(file)
    assert read["COVID-19 classification"] == {"122157": pytest.approx(found.classification.probability)}
    for label, lung in {"Lungs": found.measurements.total, "Left lung": found.measurements.left}.items():
        assert read[label] == {code: value for (_, code), (value, _) in expected_values(lung).items()}


def test_evidence_holds_every_image_and_the_segmentation() -> None:
    found = case()
    made = report(found)
    listed = {instance for _, _, instance, _ in made.get_evidence()}
    segmentation = make_segmentation(found.volume, found.lungs, found.lesions, provenance())
    images = {header.SOPInstanceUID for header in found.volume.headers}
    assert listed == images | {segmentation.SOPInstanceUID}


def test_is_of_the_same_patient_study_and_request() -> None:
    found = case(PatientName="Müller^Jörg", AccessionNumber="A7", IssuerOfPatientID="Clinic")
    made, source = report(found), found.volume.headers[0]
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "StudyDescription"):
        assert made[keyword].value == source[keyword].value
    assert made.ReferencedRequestSequence[0].AccessionNumber == "A7"
    assert made.ReferencedRequestSequence[0].StudyInstanceUID == found.volume.study_uid


def test_declares_its_scheme_and_its_models_and_says_research() -> None:
    made = report(case())
    assert [item.CodingSchemeDesignator for item in made.CodingSchemeIdentificationSequence] == ["99COVIDCT"]
    devices = {item.DeviceUID for item in made.ContributingEquipmentSequence if "DeviceUID" in item}
    assert devices == {model_uid(model) for model in provenance().models.records}
    assert made.ContentQualification == "RESEARCH"
    assert RESEARCH_NOTICE in texts(made)
    assert (made.CompletionFlag, made.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_says_what_the_heatmaps_show() -> None:
    ct = ChannelRelevance(total=1.0, residual=1.5, reliable=True)
    lesions = ChannelRelevance(total=-1.0, residual=3.5, reliable=False)
    summary = RelevanceSummary(explained="negative", logit=2.5, ct=ct, lesions=lesions, lung_share=0.873, ledger={})
    text = describe_relevance(summary)
    assert "class COVID-19 negative, logit 2.500" in text
    assert "on the CT 1.000 (residual 1.500), on the lesion mask -1.000 (residual 3.500)" in text
    assert "87 % of the absolute relevance lies inside the lungs" in text


def test_private_codes_fit_their_value_representation() -> None:
    amounts = [codes.INVOLVEMENT, codes.ALL_LESIONS, *(term.amount for term in codes.LESION_TERMS.values())]
    both = [code for amount in amounts for code in (amount.volume, amount.percent)]
    assert len({code.value for code in both}) == len(both)
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in both)


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (written(report(case()), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_several_character_sets_are_kept(tmp_path: Path) -> None:
    name = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"
    found = case(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    read = pydicom.dcmread(written(report(found), tmp_path / "report.dcm"))
    assert str(read.PatientName) == name


def test_rejects_a_segmentation_of_another_study() -> None:
    found, other = case(), case(StudyInstanceUID="1.2.3")
    segmentation = make_segmentation(other.volume, other.lungs, other.lesions, provenance())
    findings = Findings(found.measurements, found.classification, found.relevance)
    with pytest.raises(ValueError, match="another study"):
        make_report(found.volume, findings, segmentation, provenance())


def test_no_group_refers_to_a_segment_without_frames(tmp_path: Path) -> None:
    """A lesion of which there is no image: the slice was interpolated."""
    lesions = np.zeros(SHAPE, np.uint8)
    lesions[5, 12:16, 9:13] = LesionType.CONSOLIDATION
    found = case(lesions=lesions)
    volume = found.volume
    some = CTVolume(volume.hu, volume.grid, (*volume.headers[:5], *volume.headers[6:]), (*range(5), *range(6, 12)))
    segmentation = make_segmentation(some, found.lungs, found.lesions, provenance())
    findings = Findings(found.measurements, found.classification, found.relevance)
    file = written(make_report(some, findings, segmentation, provenance()), tmp_path / "report.dcm")
    groups = highdicom.sr.srread(file).content.get_volumetric_roi_measurement_groups()
    assert {group.tracking_identifier for group in groups} == {
        "COVID-19 classification",
        "Lungs",
        "Left lung",
        "Right lung",
    }


def _request(**attributes: object) -> Dataset:
    request = Dataset()
    for keyword, value in attributes.items():
        setattr(request, keyword, value)
    return request


def test_refers_to_each_request_that_the_source_names() -> None:
    code = _request(CodeValue="CT1", CodingSchemeDesignator="99LOCAL", CodeMeaning="CT of the chest")
    requests = [
        _request(RequestedProcedureID="P1", RequestedProcedureDescription="Chest", AccessionNumber="A1"),
        _request(RequestedProcedureID="P2", RequestedProcedureCodeSequence=[code]),
    ]
    found = case(AccessionNumber="A7", RequestedProcedureDescription="CT", RequestAttributesSequence=requests)
    first, second = report(found).ReferencedRequestSequence
    assert (first.RequestedProcedureID, second.RequestedProcedureID) == ("P1", "P2")
    assert (first.AccessionNumber, second.AccessionNumber) == ("A1", "A7")
    assert (first.RequestedProcedureDescription, second.RequestedProcedureDescription) == ("Chest", "CT")
    assert not first.RequestedProcedureCodeSequence
    assert [item.CodeValue for item in second.RequestedProcedureCodeSequence] == ["CT1"]
    assert {first.StudyInstanceUID, second.StudyInstanceUID} == {found.volume.study_uid}
