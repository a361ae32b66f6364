"""Identity of the outputs: deterministic UIDs, patient and study of the source, and what made them."""

from __future__ import annotations

import copy
import hashlib
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime, tzinfo
from functools import partial
from typing import Any

from highdicom import AlgorithmIdentificationSequence, ContributingEquipment
from pydicom import DataElement, Dataset
from pydicom.config import RAISE
from pydicom.uid import UID
from pydicom.valuerep import DA, DT, TM, PersonName, validate_value

from models.record import ModelRecord
from operators.codes import ARTIFICIAL_INTELLIGENCE, PROCESSING_EQUIPMENT
from operators.ct_images import with_values
from operators.software import MANUFACTURER, NAME, RESEARCH_NOTICE, VERSION
from operators.volume import CTVolume

_NAMESPACE = uuid.UUID("6d1c7c52-3f0f-4f5e-9a0e-7a6f5f6b2c11")

# Type 2 attributes that every output must have, empty where the source lacks them (PS3.3 C.7.1.1, C.7.2.1).
_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)

_NAMES = ("PatientName", "ReferringPhysicianName")
_STUDY_DATE_AND_TIME = ("StudyDate", "StudyTime")
_PATIENT_GROUP = 0x0010
_RULES: dict[str, Callable[[str], object]] = {
    "DA": DA,
    "TM": TM,
    **{vr: partial(validate_value, vr, validation_mode=RAISE) for vr in ("AS", "DS", "IS")},
}
"""What raises ValueError for a string that is none of its value representation (PS3.5, 6.2)."""
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""Once lossy, always lossy: said of all that derives from such an image (PS3.3, C.7.6.1.1.5)."""


def _uid(*parts: str) -> UID:
    """UUID-derived UID (PS3.5, B.2) of the parts."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, chr(10).join(parts)).int}")


IMPLEMENTATION_UID = _uid("implementation", NAME)


def frame_of_reference_uid(series: str) -> UID:
    """UID of the frame of reference of a series that names none."""
    return _uid("frame of reference", series)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The weights in use, by their task."""

    lungs: ModelRecord
    lesions: ModelRecord
    involvement: ModelRecord
    classifier: ModelRecord

    @property
    def records(self) -> tuple[ModelRecord, ...]:
        """All of them."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produces the outputs of a run, and when.

    Parameters
    ----------
    models : ModelSet
        The weights in use.
    settings : str
        Fingerprint of every setting that can change a result.
    produced : datetime
        Written as creation and content time; has no influence on the UIDs.
    """

    models: ModelSet
    settings: str
    produced: datetime

    @property
    def _parts(self) -> tuple[str, ...]:
        return (NAME, VERSION, self.settings, *(part for model in self.models.records for part in astuple(model)))

    @property
    def device_uid(self) -> UID:
        """UID of this software with these weights and settings."""
        return _uid("device", *self._parts)

    @property
    def serial_number(self) -> str:
        """Short stand-in for a serial number: changes with version, weights and settings."""
        return hashlib.sha256("\n".join(self._parts).encode()).hexdigest()[:16]


def derived_uid(volume: CTVolume, provenance: Provenance, kind: str) -> UID:
    """UID of an output: the same for the same images, software version, weights and settings.

    Parameters
    ----------
    volume : CTVolume
        Its study, series and SOP Instance UIDs identify the input.
    provenance : Provenance
        What produces the output.
    kind : str
        Which of the outputs.
    """
    images = (
        f"{header.SOPInstanceUID}#{frame}" if frame else str(header.SOPInstanceUID)
        for header, frame in zip(volume.headers, volume.frames, strict=True)
    )
    return _uid("derived", kind, *provenance._parts, volume.study_uid, volume.series_uid, *images)


def model_uid(model: ModelRecord) -> UID:
    """Device UID of a model; changes whenever its weights or settings change."""
    return _uid("model", *astuple(model))


def source_headers(volume: CTVolume) -> list[Dataset]:
    """Header of each source image, the first completed so that outputs can take patient and study from it.

    De-identified images often lack attributes that an output must have, even if empty. What is no valid sex, age,
    number, date or time is left out too. A name with a backslash, which parts values, is one name all the same. Where
    any image was once compressed with loss, the first says so.
    """
    first = copy.deepcopy(volume.headers[0])
    for keyword in _PATIENT_AND_STUDY:
        if keyword not in first:
            setattr(first, keyword, "")
    for keyword in _NAMES:
        if first[keyword].VM > 1:
            setattr(first, keyword, PersonName("\\".join(str(name) for name in first[keyword].value)))
    if str(first.PatientSex) not in {"M", "F", "O"}:
        first.PatientSex = ""
    for element in [*first.group_dataset(_PATIENT_GROUP), *(first[keyword] for keyword in _STUDY_DATE_AND_TIME)]:
        if not _valid(element):
            _leave_out(first, element.keyword)
    _copy_loss(volume.headers, first)
    return [_without_empty(header) for header in (first, *volume.headers[1:])]


def _valid(element: DataElement) -> bool:
    if element.VR not in _RULES:
        return True
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            _RULES[element.VR]("" if value is None else str(value))
    except ValueError:
        return False
    return True


def _leave_out(header: Dataset, keyword: str) -> None:
    if keyword in _PATIENT_AND_STUDY:
        setattr(header, keyword, "")
    else:
        delattr(header, keyword)


def _copy_loss(headers: Sequence[Dataset], first: Dataset) -> None:
    """Say in ``first`` what the first of the headers says that tells of loss."""
    lossy = next((header for header in headers if header.get("LossyImageCompression") == "01"), Dataset())
    for keyword in LOSSY:
        if keyword in lossy:
            first[keyword] = lossy[keyword]


def source_references(volume: CTVolume) -> list[Dataset]:
    """Refer to each source object once, as what it is (PS3.3, table 10-11)."""
    items = []
    for instance, sop_class in {header.SOPInstanceUID: header.SOPClassUID for header in volume.headers}.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        items.append(item)
    return items


def _without_empty(header: Dataset) -> Dataset:
    """Leave out what must not be empty where it is there."""
    if "LossyImageCompression" not in header or header.LossyImageCompression:
        return header
    return with_values(header, LossyImageCompression=None)


def produced_at(volume: CTVolume, provenance: Provenance) -> datetime:
    """Return when the outputs are made, in the time zone of the source where it names one (PS3.3, C.12.1.1.8)."""
    zone = _zone(volume)
    return provenance.produced if zone is None else provenance.produced.astimezone(zone)


def _zone(volume: CTVolume) -> tzinfo | None:
    stated = str(volume.headers[0].get("TimezoneOffsetFromUTC") or "")
    if not re.fullmatch(r"[+-]\d\d[0-5]\d", stated) or stated == "-0000" or not -1200 <= int(stated) <= 1400:
        return None
    return datetime.strptime(stated, "%z").tzinfo


def equipment(volume: CTVolume, provenance: Provenance) -> dict[str, Any]:
    """Arguments by which every highdicom object names this software, the time and the purpose."""
    produced = produced_at(volume, provenance)
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": NAME,
        "software_versions": VERSION,
        "device_serial_number": provenance.serial_number,
        "content_date": produced.date(),
        "content_time": produced.time(),
        "content_qualification": "RESEARCH",
        "specific_character_set": None,  # highdicom refuses some that pydicom writes: set by :func:`sign`
    }


def contributing_equipment(provenance: Provenance) -> list[ContributingEquipment]:
    """One item for each model (PS3.3 C.12.1, Contributing Equipment Sequence)."""
    items = []
    for model in provenance.models.records:
        item = ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=PROCESSING_EQUIPMENT,
            manufacturer_model_name=model.name,
            software_versions=model.version,
            contribution_description=RESEARCH_NOTICE,
        )
        item.DeviceUID = model_uid(model)
        items.append(item)
    return items


def algorithm(model: ModelRecord) -> AlgorithmIdentificationSequence:
    """Algorithm identification of a model for images (PS3.3, 10.16)."""
    return AlgorithmIdentificationSequence(
        name=model.name,
        family=ARTIFICIAL_INTELLIGENCE,
        version=model.version,
        source=MANUFACTURER,
        parameters={"weights sha256": model.sha256},
    )


def sign(dataset: Dataset, volume: CTVolume, provenance: Provenance) -> None:
    """Say in which characters, when and by which implementation ``dataset`` is written (PS3.3 C.12.1; PS3.10, 7.1)."""
    produced = produced_at(volume, provenance)
    characters = volume.headers[0].get("SpecificCharacterSet")
    if characters:
        dataset.SpecificCharacterSet = characters
    if _zone(volume) is not None:  # of all times in the data set, those of the study too
        dataset.TimezoneOffsetFromUTC = volume.headers[0].TimezoneOffsetFromUTC
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = DA(produced.date()), TM(produced.time())
    dataset.InstanceCreatorUID = provenance.device_uid
    for item in dataset.ContributingEquipmentSequence:
        if item.get("ManufacturerModelName") == "highdicom":  # which states the time by a clock of its own
            item.ContributionDateTime = DT(produced)
    _put_back_texts(dataset, volume)
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = f"COVIDCTMAP {VERSION}"[:16]


def _put_back_texts(dataset: Dataset, volume: CTVolume) -> None:
    """Put the bytes of the source where ``dataset`` has a text of the source that the library would damage."""
    first = source_headers(volume)[0] if volume.texts else Dataset()
    for text in volume.texts:
        if text.tag in dataset and text.tag in first and dataset[text.tag] == first[text.tag]:
            dataset[text.tag] = text
