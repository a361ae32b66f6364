from dataclasses import replace
from datetime import datetime

import pytest
from pydicom.uid import UID

from operators import identity
from operators.identity import contributing_equipment, derived_uid, model_uid, source_headers
from tests.operators.dicom_results import case, provenance, record

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
