"""Refusing input that cannot be processed correctly."""

from enum import StrEnum


class ReasonCode(StrEnum):
    """Stable codes that say why an input was refused; written to ``result.json``."""

    NO_DICOM = "NO_DICOM"
    """The folder holds no readable DICOM object."""
    NO_CT_SERIES = "NO_CT_SERIES"
    """No series of CT images that the selection rules accept."""
    MIXED_STUDIES = "MIXED_STUDIES"
    """Several studies although the settings ask for one, or several patients in one study."""
    UNREADABLE = "UNREADABLE"
    """A file that may belong to the study is damaged."""
    UNDECODABLE = "UNDECODABLE"
    """The pixel data of a slice are absent, damaged, too coarse, or coded in an unsupported way."""
    NO_RESCALE = "NO_RESCALE"
    """A slice lacks a valid rescale to Hounsfield units, so what its values mean is not known."""
    MISSING_ATTRIBUTE = "MISSING_ATTRIBUTE"
    """A slice lacks a valid attribute without which its place or identity is unknown."""
    INCONSISTENT_GEOMETRY = "INCONSISTENT_GEOMETRY"
    """Slices differ in size, spacing, orientation or frame of reference, or are not stacked along their normal."""
    GANTRY_TILT = "GANTRY_TILT"
    """The gantry was tilted."""
    MISSING_SLICES = "MISSING_SLICES"
    """The gaps between slices vary more than may be interpolated."""
    DUPLICATE_POSITIONS = "DUPLICATE_POSITIONS"
    """Different slices lie at the same position and nothing tells which to take."""
    DUPLICATE_INSTANCES = "DUPLICATE_INSTANCES"
    """Different images bear the same SOP Instance UID."""
    TOO_LARGE = "TOO_LARGE"
    """The images are larger than any chest CT."""
    PARTIAL_COVERAGE = "PARTIAL_COVERAGE"
    """The images cover too little of the lungs."""
    NO_LUNGS = "NO_LUNGS"
    """No lungs were found in the volume."""
    NOT_CHEST_CT = "NOT_CHEST_CT"
    """What was found cannot be the lungs of a chest CT."""
    IMPLAUSIBLE_HU = "IMPLAUSIBLE_HU"
    """Air or soft tissue do not have their Hounsfield units."""


class InputRefused(Exception):
    """The input cannot be processed; nothing is wrong with the software.

    Parameters
    ----------
    code : ReasonCode
        Stable reason code.
    message : str
        One line that says what is wrong and what to do. Holds no patient data.
    """

    def __init__(self, code: ReasonCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def no_lungs() -> InputRefused:
    """Return the refusal of a CT without lungs."""
    return InputRefused(ReasonCode.NO_LUNGS, "no lungs were found: send an axial CT series that covers the whole chest")
