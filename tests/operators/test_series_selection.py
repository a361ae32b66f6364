"""Which series of a study is read: the user's rules, ours, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from app.inspection import inspect_folder
from app.outcome import UsageError
from app.settings import Settings, load_rules, load_settings
from operators.dicom_folder import scan_folder
from operators.refusal import InputRefused, ReasonCode
from operators.selection_rules import ANY_SERIES, Selection, SelectionRules, meets
from operators.series_selection import Choice, choose_series, chosen_series
from operators.studies import Study, check_study, group_studies
from tests.builders import write_series
from tests.operators.test_series_loader import set_all

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = load_rules(ROOT / "app.yaml")


def _header(**attributes: object) -> Dataset:
    header = Dataset()
    header.Modality = "CT"
    header.SeriesDescription = "Thorax 1.0 B31f"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SliceThickness = 2
    header.SeriesNumber = 4
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header


@pytest.mark.parametrize(
    ("conditions", "met"),
    [
        ({}, True),
        ({"Modality": "ct"}, True),
        ({"Modality": "(?i)CT"}, True),
        ({"Modality": "MR"}, False),
        ({"SeriesDescription": "^thorax"}, True),
        ({"SeriesDescription": "B[67]\\d"}, False),
        ({"StudyDescription": "(.*?)"}, False),
        ({"ImageType": ["PRIMARY", "ORIGINAL"]}, True),
        ({"ImageType": ["primary", "!secondary"]}, True),
        ({"ImageType": ["!AXIAL"]}, False),
        ({"ImageType": ["MPR"]}, False),
        ({"ImageType": "PRIMARY.AXIAL"}, True),
        ({"SliceThickness": 2}, True),
        ({"SliceThickness": 2.5}, False),
        ({"SliceThickness": [1, 3]}, True),
        ({"SliceThickness": [3, 5]}, False),
        ({"SliceThickness": [2, ">"]}, False),
        ({"SliceThickness": [2, ">="]}, True),
        ({"SliceThickness": [2, "<"]}, False),
        ({"SliceThickness": [2, "=="]}, True),
        ({"SeriesNumber": ["^4$"]}, True),
        ({"SeriesNumber": "5"}, False),
        ({"ImageOrientationPatient": "Axial"}, True),
        ({"ImageOrientationPatient": "coronal"}, False),
        ({"Modality": "CT", "SliceThickness": [3, 5]}, False),
    ],
)
def test_conditions_mean_what_the_sdk_means(conditions: dict[str, object], met: bool) -> None:
    selection = Selection.model_validate({"name": "one", "conditions": conditions})
    assert meets(_header(), selection) is met


@pytest.mark.parametrize(
    "rules",
    [
        {"selections": [{"name": "a", "conditions": {"NoSuchKeyword": "x"}}]},
        {"selections": [{"name": "a", "conditions": {"Modality": "("}}]},
        {"selections": [{"conditions": {}}]},
        {"preferred-kernels": ["["]},
        {"kernels": []},
    ],
)
def test_wrong_rules_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectionRules.model_validate(rules)


@pytest.mark.parametrize(
    "text", ["series-selection: {selections: 3}", "- a", "series-selection: [", "series-selection: {x: 1}"]
)
def test_a_wrong_configuration_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.yaml").write_text(text)
    with pytest.raises(UsageError, match="configuration"):
        load_rules(tmp_path / "app.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        load_rules(tmp_path / "none.yaml")


def test_a_configuration_without_rules_takes_any_series(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("application: {title: x}\n")
    assert load_rules(tmp_path / "app.yaml") == ANY_SERIES


@pytest.mark.parametrize(
    ("kernel", "rank"),
    [
        ("B31f", 0),
        ("Br40d\\3", 0),
        ("I30f", 0),
        ("STANDARD", 1),
        ("SOFT", 1),
        ("B", 2),
        ("FC08", 3),
        ("B70f", 4),
        ("LUNG", 4),
    ],
)
def test_shipped_rules_know_the_smooth_kernels(kernel: str, rank: int) -> None:
    assert SHIPPED.kernel_rank(kernel) == rank


# --- choosing ---


def _series(folder: Path, name: str, slices: int = 12, gap: float = 10.0, **attributes: object) -> None:
    files = write_series(folder / name, np.zeros((slices, 4, 4)), (gap, 1.0, 1.0))
    common = {"SeriesInstanceUID": generate_uid(entropy_srcs=[name]), **attributes}
    for path in files:
        set_all([path], SOPInstanceUID=generate_uid(), **common)


def _choice(folder: Path, rules: SelectionRules = ANY_SERIES) -> Choice:
    return choose_series(_study(folder), rules)


def _study(folder: Path) -> Study:
    (study,) = group_studies(scan_folder(folder))
    return study


def _reasons(choice: Choice) -> dict[int | None, str]:
    return {verdict.summary.number: verdict.reason for verdict in choice.verdicts}


@pytest.mark.parametrize(
    ("better", "worse", "reason"),
    [
        ({}, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "coronal slices"),
        ({}, {"ImageType": ["DERIVED", "SECONDARY"]}, "derived, not original"),
        ({}, {"slices": 80, "gap": 1.0}, "too short to cover the lungs"),
        ({"BodyPartExamined": "CHEST"}, {"BodyPartExamined": "HEAD", "slices": 20}, "said to show another part"),
        ({"slices": 60, "gap": 2.0}, {"slices": 24, "gap": 5.0}, "gaps of 5.0 mm"),
        ({"ConvolutionKernel": "B31f"}, {"ConvolutionKernel": "B70f", "slices": 20}, "another kernel is preferred"),
        ({"slices": 13}, {}, "fewer slices"),
        ({}, {}, "a later series of the same kind"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_each_preference_decides_and_is_named(
    tmp_path: Path, better: dict[str, object], worse: dict[str, object], reason: str, swapped: bool
) -> None:
    numbers = (7, 3) if swapped and reason != "a later series of the same kind" else (3, 7)
    _series(tmp_path, "better", **({"SeriesNumber": numbers[0]} | better))  # type: ignore[arg-type]
    _series(tmp_path, "worse", **({"SeriesNumber": numbers[1]} | worse))  # type: ignore[arg-type]
    choice = _choice(tmp_path, SHIPPED)
    assert choice.chosen is not None
    assert choice.chosen.summary.number == numbers[0]
    said = _reasons(choice)
    assert said[numbers[0]] == ""
    assert said[numbers[1]].startswith(reason)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizers, projections or pictures only"),
        ({"SamplesPerPixel": 3}, "localizers, projections or pictures only"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "localizers, projections or pictures only"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"]}, "localizers, projections or pictures only"),
        ({"ImageType": ["DERIVED", "SECONDARY", "VOLUME", "MAXIMUM"]}, "localizers, projections or pictures only"),
        ({"VolumeBasedCalculationTechnique": "MIN_IP"}, "localizers, projections or pictures only"),
        ({"RescaleType": "MGML"}, "values other than Hounsfield units"),
        ({"slices": 2}, "fewer than 3 slices"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.70710678, 0.70710678]}, "slices oblique to the patient"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "no CT images"),
    ],
)
def test_what_is_no_volume_is_never_read(tmp_path: Path, attributes: dict[str, object], reason: str) -> None:
    _series(tmp_path, "one", SeriesNumber=1, **attributes)  # type: ignore[arg-type]
    choice = _choice(tmp_path)
    assert choice.chosen is None
    assert _reasons(choice) == {1: reason}
    with pytest.raises(InputRefused) as refused:
        chosen_series(choose_series(_study(tmp_path), ANY_SERIES))
    assert refused.value.code is ReasonCode.NO_CT_SERIES
    assert f"1 series: {reason}" in refused.value.message


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"RescaleSlope": -1}, ReasonCode.NO_RESCALE),
        ({"RescaleType": "US"}, ReasonCode.NO_RESCALE),
        ({"BitsStored": 8, "HighBit": 7}, ReasonCode.UNDECODABLE),
    ],
)
def test_a_series_that_can_be_read_is_preferred(tmp_path: Path, fault: dict[str, object], code: ReasonCode) -> None:
    _series(tmp_path, "bad", SeriesNumber=1, slices=20, **fault)  # type: ignore[arg-type]
    with pytest.raises(InputRefused) as refused:
        chosen_series(choose_series(_study(tmp_path), ANY_SERIES))
    assert refused.value.code is code
    assert f"Would be refused: {code}: " in inspect_folder(tmp_path, ANY_SERIES, Settings())
    _series(tmp_path, "good", SeriesNumber=2)
    assert chosen_series(choose_series(_study(tmp_path), ANY_SERIES)).summary.number == 2
    assert refused.value.message[20:] in _reasons(_choice(tmp_path))[1]


def test_inspection_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    _series(tmp_path, "one", ConvolutionKernel="B30\x1b[2Jf", BodyPartExamined="CHEST\r\nREAD")
    told = inspect_folder(tmp_path, ANY_SERIES, Settings())
    assert "B30?[2Jf" in told
    assert "CHEST??READ" in told


def test_rules_are_tried_in_order_and_outweigh_preferences(tmp_path: Path) -> None:
    _series(tmp_path, "thick", SeriesNumber=1, SliceThickness=10)
    _series(tmp_path, "sharp", SeriesNumber=2, SliceThickness=1, slices=11)
    rules = SelectionRules.model_validate(
        {
            "selections": [
                {"name": "never", "conditions": {"SliceThickness": [20, 30]}},
                {"name": "thin", "conditions": {"SliceThickness": [0.5, 2]}},
                {"name": "any", "conditions": {"Modality": "CT"}},
            ]
        }
    )
    choice = _choice(tmp_path, rules)
    assert choice.chosen is not None
    assert choice.chosen.summary.number == 2
    assert _reasons(choice)[1] == "not what the selection rules ask for"


def test_rules_that_nothing_meets_leave_nothing(tmp_path: Path) -> None:
    _series(tmp_path, "one", SeriesNumber=1)
    rules = SelectionRules.model_validate({"selections": [{"name": "MR", "conditions": {"Modality": "MR"}}]})
    assert _choice(tmp_path, rules).chosen is None
    _series(tmp_path, "bad", SeriesNumber=2, RescaleSlope=-1)
    choice = _choice(tmp_path, rules)
    assert set(_reasons(choice).values()) == {"not what the selection rules ask for"}
    with pytest.raises(InputRefused) as refused:
        chosen_series(choice)
    assert refused.value.code is ReasonCode.NO_CT_SERIES, "it is not the rescale that is to be repaired"


# --- studies ---


def test_objects_are_sorted_by_study_and_damage_counts_for_all(tmp_path: Path) -> None:
    _series(tmp_path, "a", StudyInstanceUID="1.2.3")
    _series(tmp_path, "b", StudyInstanceUID="1.2.4")
    first, second = group_studies(scan_folder(tmp_path))
    assert (first.uid, second.uid) == ("1.2.3", "1.2.4")
    assert len(first.files) == len(second.files) == 12
    check_study(first)
    (tmp_path / "b" / "broken.dcm").write_bytes(b"x" * 300)
    for study in group_studies(scan_folder(tmp_path)):
        with pytest.raises(InputRefused, match=r"the first is number 25 in order of the paths"):
            check_study(study)


def test_a_ct_image_without_a_study_may_belong_to_any(tmp_path: Path) -> None:
    _series(tmp_path, "a")
    set_all([next((tmp_path / "a").iterdir())], StudyInstanceUID="")
    codes = []
    for study in group_studies(scan_folder(tmp_path)):
        with pytest.raises(InputRefused) as refused:
            check_study(study)
        codes.append(refused.value.code)
    assert codes == [ReasonCode.MISSING_ATTRIBUTE, ReasonCode.UNREADABLE]


# --- covid-ct inspect ---


def test_inspection_tells_all_and_names_no_patient(tmp_path: Path) -> None:
    _series(tmp_path, "a", SeriesNumber=2, ConvolutionKernel="B31f", PatientName="Doe^Jane", PatientID="4711")
    _series(tmp_path, "b", SeriesNumber=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], PatientID="4711")
    _series(tmp_path, "c", SeriesNumber=5, StudyInstanceUID="9.9", slices=2)
    text = inspect_folder(tmp_path, SHIPPED, load_settings())
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:2] == ["26", "DICOM"]
    rows = {line[0]: line for line in lines if line and line[0] in "235"}
    assert rows["2"][1:4] == ["CT", "12", "12"]
    assert rows["2"][-1] == "READ"
    assert "localizers, projections or pictures only" in " ".join(rows["3"])
    assert "fewer than 3 slices" in " ".join(rows["5"])
    assert "Would be read: 12 slices 4 x 4, 1.00 x 1.00 x 10.00 mm." in text
    assert "Would be refused: NO_CT_SERIES" in text
    assert "Doe" not in text
    assert "4711" not in text
