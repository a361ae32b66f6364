"""Coded concepts and colours of the outputs.

Standard codes are those of DICOM PS3.16, SNOMED CT, LOINC, RadLex and UCUM. What has no standard code is
in the private scheme ``99COVIDCT``, which every object that uses it declares.
"""

from __future__ import annotations

from dataclasses import dataclass

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.coding import Code

from operators.findings import LesionType
from operators.software import MANUFACTURER

RGB = tuple[int, int, int]

PRIVATE_SCHEME = "99COVIDCT"

ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG = Code("39607008", "SCT", "Lung")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
BOTH_SIDES = Code("51440002", "SCT", "Bilateral")
MIXED = Code("26242008", "SCT", "Mixed")

COVID_19 = Code("840539006", "SCT", "COVID-19")
POSITIVE = Code("10828004", "SCT", "Positive")
NEGATIVE = Code("260385009", "SCT", "Negative")

CLASS_NAMES = ("COVID-19 negative", "COVID-19 positive")
"""Of the classifier's two classes, for a person."""

PROBABILITY = Code("122157", "DCM", "Probability")
VOLUME = Code("118565006", "SCT", "Volume")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
MEAN = Code("373098007", "SCT", "Mean")
SALIENCY = Code("130404", "DCM", "Saliency")
COMMENT = Code("121106", "DCM", "Comment")
CT_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")

MILLILITRE = Code("ml", "UCUM", "milliliter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNITS = Code("1", "UCUM", "no units")

ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")


@dataclass(frozen=True, slots=True)
class AmountCodes:
    """Private names of the volume of something inside a lung, and of its percentage of that lung."""

    volume: Code
    percent: Code


def _amount(prefix: str, meaning: str) -> AmountCodes:
    return AmountCodes(
        Code(f"{prefix}-VOL", PRIVATE_SCHEME, f"Volume of {meaning} in the lung"),
        Code(f"{prefix}-PCT", PRIVATE_SCHEME, f"Percentage of the lung with {meaning}"),
    )


INVOLVEMENT = _amount("INV", "infection")
ALL_LESIONS = _amount("ALL", "lesions of any type")


@dataclass(frozen=True, slots=True)
class LesionTerm:
    """How one type of lesion is named, coded and drawn.

    Parameters
    ----------
    label : str
        Name for a person.
    code : Code
        Property type of the segment and finding of the report.
    modifiers : tuple of Code
        Modifiers of the property type.
    amount : AmountCodes
        Names of its measurements inside a lung.
    color : tuple of int
        sRGB, from the palette of Okabe and Ito, which colour-blind people can tell apart.
    """

    label: str
    code: Code
    modifiers: tuple[Code, ...]
    amount: AmountCodes
    color: RGB


LESION_TERMS: dict[LesionType, LesionTerm] = {
    LesionType.GROUND_GLASS: LesionTerm(
        "Ground-glass opacity",
        Code("112120", "DCM", "Ground glass opacity"),
        (),
        _amount("GGO", "ground-glass opacity"),
        (86, 180, 233),
    ),
    # The two RadLex codes are taken from published COVID-19 segmentations, not from RadLex itself.
    LesionType.CONSOLIDATION: LesionTerm(
        "Consolidation",
        Code("RID43255", "RADLEX", "Consolidation"),
        (),
        _amount("CON", "consolidation"),
        (213, 94, 0),
    ),
    LesionType.CRAZY_PAVING: LesionTerm(
        "Crazy paving",
        Code("RID43256", "RADLEX", "Crazy paving"),
        (),
        _amount("CPP", "crazy paving"),
        (240, 228, 66),
    ),
    LesionType.COMBINED: LesionTerm(
        "Combined pattern",
        Code("112001", "DCM", "Opacity"),
        (MIXED,),
        _amount("MIX", "combined pattern"),
        (204, 121, 167),
    ),
}

LEFT_LUNG_COLOR: RGB = (0, 158, 115)
RIGHT_LUNG_COLOR: RGB = (0, 90, 60)
LUNGS_COLOR: RGB = (153, 153, 153)


def private_scheme() -> CodingSchemeIdentificationItem:
    """Declare the private scheme (PS3.3, C.12.1.1.1, Coding Scheme Identification Sequence)."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME, name="covid-ct-map measurements", responsible_organization=MANUFACTURER
    )
