from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID

from operators import identity
from operators.identity import Provenance, contributing_equipment, derived_uid, model_uid, produced_at, source_headers
from operators.pdf_writer import make_document
from operators.pm_writer import make_parametric_map
from operators.sc_writer import make_pictures
from operators.seg_writer import make_segmentation
from operators.sr_writer import Findings, make_report
from operators.summary_page import Summary
from tests.operators.dicom_results import Case, case, provenance, record, written

KIND = "report"


def test_the_same_input_and_software_give_the_same_uid_at_any_time() -> None:
    later = replace(provenance(), produced=datetime(2030, 1, 1))
    assert derived_uid(case().volume, provenance(), KIND) == derived_uid(case().volume, later, KIND)


def test_any_difference_gives_another_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = case().volume
    other_image = case().volume
    other_image.headers[3].SOPInstanceUID = "1.2.3"
    uids = [
        derived_uid(volume, provenance(), KIND),
        derived_uid(volume, provenance(), "segmentation"),
        derived_uid(volume, provenance(settings="threshold=0.6"), KIND),
        derived_uid(volume, provenance(lungs="9"), KIND),
        derived_uid(other_image, provenance(), KIND),
    ]
    monkeypatch.setattr(identity, "VERSION", "0.2.0")
    uids.append(derived_uid(volume, provenance(), KIND))
    assert len(set(uids)) == len(uids)


def test_uids_are_valid_and_derived_from_a_uuid() -> None:
    uids = [
        derived_uid(case().volume, provenance(), KIND),
        provenance().device_uid,
        model_uid(record("DeepMedic")),
        identity.IMPLEMENTATION_UID,
    ]
    for uid in uids:
        assert uid.is_valid
        assert 0 < int(uid.removeprefix("2.25.")) < 2**128
    assert len(set(uids)) == len(uids)


def test_words_cannot_slide_from_one_part_of_a_uid_to_the_next() -> None:
    assert model_uid(record("a")) != model_uid(replace(record("a"), name="a0.1", version=""))


def test_the_device_uid_of_a_model_changes_with_its_weights() -> None:
    assert model_uid(record("DeepMedic", "1")) == model_uid(record("DeepMedic", "1"))
    assert model_uid(record("DeepMedic", "1")) != model_uid(record("DeepMedic", "2"))


def test_each_model_is_contributing_equipment() -> None:
    items = contributing_equipment(provenance())
    models = provenance().models.records
    assert [item.ManufacturerModelName for item in items] == [model.name for model in models]
    assert [UID(item.DeviceUID) for item in items] == [model_uid(model) for model in models]
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in items} == {"109102"}


def test_the_serial_number_follows_weights_and_settings() -> None:
    serials = {provenance().serial_number, provenance("other").serial_number, provenance(lungs="9").serial_number}
    assert len(serials) == 3


def test_a_name_with_a_backslash_is_one_name_as_the_source_has_it(tmp_path: Path) -> None:
    """As of Shift JIS whose character set nobody has declared."""
    names = {"PatientName": "DOE\\JANE^X", "ReferringPhysicianName": "Miller^A\\Smith^B"}
    found = case(PatientSex=["M", "F"], **names)
    for made in every_object(found):
        for keyword, name in names.items():
            assert str(made[keyword].value) == name
            read = pydicom.dcmread(written(made, tmp_path / "object.dcm"))
            assert [*read[keyword].value] == [*found.volume.headers[0][keyword].value]
        assert made.PatientSex == ""


def test_several_physicians_stay_several(tmp_path: Path) -> None:
    found = case(PhysiciansOfRecord=["A^B", "C^D"])
    assert list(source_headers(found.volume)[0].PhysiciansOfRecord) == ["A^B", "C^D"]


def test_damaged_private_elements_of_a_source_stop_nothing(tmp_path: Path) -> None:
    """They are left as they are read: nobody needs them."""
    volume = case().volume
    for header in volume.headers:
        header[0x00111001] = RawDataElement(Tag(0x00111001), "FD", 4, b"\x00" * 4, 0, False, True)
    first, *_ = source_headers(volume)
    assert "PatientName" in first


def test_values_that_a_backslash_parts_stop_nothing() -> None:
    keywords = ("PatientID", "StudyID", "AccessionNumber", "StudyDescription")
    for made in every_object(case(**{keyword: ["A", "B"] for keyword in keywords})):
        assert [list(made[keyword].value) for keyword in keywords] == [["A", "B"]] * 4


def test_times_are_those_of_the_zone_that_the_source_names() -> None:
    produced = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for made in every_object(case(TimezoneOffsetFromUTC="-0530"), replace(provenance(), produced=produced)):
        assert made.TimezoneOffsetFromUTC == "-0530"
        assert _stated(made, "ContentDate", "ContentTime") == ("20260101", "213405")
        assert _stated(made, "InstanceCreationDate", "InstanceCreationTime") == ("20260101", "213405")
        if "TimeOfSecondaryCapture" in made:
            assert _stated(made, "DateOfSecondaryCapture", "TimeOfSecondaryCapture") == ("20260101", "213405")


@pytest.mark.parametrize("zone", ["Berlin", "-0000", "+1401", "-1230", "+0160", "+9900", "2", ""])
def test_what_is_no_zone_is_passed_over(zone: str) -> None:
    found, produced = case(TimezoneOffsetFromUTC=zone), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    by = replace(provenance(), produced=produced)
    assert produced_at(found.volume, by) == produced
    assert produced_at(found.volume, by).tzinfo is UTC
    assert "TimezoneOffsetFromUTC" not in make_segmentation(found.volume, found.lungs, found.lesions, by)


def test_the_scanner_acquired_when_it_did() -> None:
    found = case(Manufacturer="Scanners", ManufacturerModelName="One", AcquisitionDateTime="20200102030405")
    for made in every_object(found)[:-1]:
        items = made.ContributingEquipmentSequence
        stated = {item.ManufacturerModelName: str(item.get("ContributionDateTime")) for item in items}
        assert stated["One"] == "20200102030405"
        assert stated["highdicom"].startswith("20260102030405")


def _stated(made: Dataset, *keywords: str) -> tuple[str, ...]:
    return tuple(str(made[keyword].value) for keyword in keywords)


def every_object(found: Case, by: Provenance | None = None) -> list[Dataset]:
    """Make every object; the document comes last."""
    by = by or provenance()
    summary = Summary(found.study, found.measurements, (), by.models.records)
    segmentation = make_segmentation(found.volume, found.lungs, found.lesions, by)
    return [
        segmentation,
        make_report(
            found.volume, Findings(found.measurements, found.classification, found.relevance), segmentation, by
        ),
        make_parametric_map(found.volume, found.explanation, "ct", by),
        *make_pictures(summary, by)[:2],
        make_document(summary, by),
    ]


def test_missing_attributes_are_completed_without_touching_the_source() -> None:
    volume = case(PatientSex="MALE").volume
    for header in volume.headers:
        del header.PatientName, header.PatientBirthDate, header.AccessionNumber
    first, *others = source_headers(volume)
    assert first.PatientName == first.PatientBirthDate == first.AccessionNumber == first.PatientSex == ""
    assert first.PatientID == volume.headers[0].PatientID
    assert "PatientName" not in volume.headers[0]
    assert volume.headers[0].PatientSex == "MALE"
    assert all(other is header for other, header in zip(others, volume.headers[1:], strict=True))


INVALID = {
    "PatientWeight": (b"70,5", b"70.5"),
    "PatientSize": (b"1,75", b"1.75"),
    "PatientAge": (b"45", b"045Y"),
    "PatientBirthTime": (b"12:30 ", b"1230"),
    "LastMenstrualDate": (b"20200230", b"20200229"),
}


def _raw(keyword: str, value: bytes) -> RawDataElement:
    tag = Tag(keyword)
    return RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_is_no_valid_number_age_date_or_time_of_the_patient_is_left_out() -> None:
    invalid, valid = case(), case()
    for keyword, values in INVALID.items():
        for found, value in zip((invalid, valid), values, strict=True):
            found.volume.headers[0][keyword] = _raw(keyword, value)
    invalid.volume.headers[0].PatientBirthDate = "1960"
    for made in every_object(invalid):
        assert not [keyword for keyword in INVALID if keyword in made]
        assert made.PatientBirthDate == ""
    for made in every_object(valid):
        assert [str(made[keyword].value) for keyword in INVALID] == [good.decode() for _, good in INVALID.values()]


def test_once_lossy_always_lossy_whichever_slice_it_was() -> None:
    found = case(LossyImageCompression="00")
    header = found.volume.headers[5]
    header.LossyImageCompression, header.LossyImageCompressionRatio = "01", 9.5
    header.LossyImageCompressionMethod = "ISO_15444_1"
    segmentation, _, relevance, *pictures, _ = every_object(found)
    for made in (segmentation, relevance, *pictures):
        assert _stated(made, "LossyImageCompression", "LossyImageCompressionRatio") == ("01", "9.5")
        assert made.LossyImageCompressionMethod == "ISO_15444_1"
    assert found.volume.headers[0].LossyImageCompression == "00"
