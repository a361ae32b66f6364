"""Refusing input that cannot be processed correctly."""

from enum import StrEnum


class ReasonCode(StrEnum):
    """Stable codes that say why an input was refused; written to ``result.json``."""

    NO_DICOM = "NO_DICOM"
    """The folder holds no readable DICOM object."""
    NO_CT_SERIES = "NO_CT_SERIES"
    """No series of axial CT images with enough slices."""
    ENHANCED_CT = "ENHANCED_CT"
    """The CT is an enhanced multi-frame object, which is not supported."""
    MIXED_STUDIES = "MIXED_STUDIES"
    """More than one patient or study in the folder."""
    AMBIGUOUS_SERIES = "AMBIGUOUS_SERIES"
    """Several series fit equally well and no rule prefers one."""
    UNREADABLE = "UNREADABLE"
    """A file that belongs to the study is damaged."""
    UNDECODABLE = "UNDECODABLE"
    """The pixel data of a slice is absent, damaged, too coarse, or coded in an unsupported way."""
    NO_RESCALE = "NO_RESCALE"
    """A slice lacks a valid rescale to Hounsfield units, so what its values mean is not known."""
    MISSING_ATTRIBUTE = "MISSING_ATTRIBUTE"
    """A slice lacks a valid attribute without which its place or identity is unknown."""
    INCONSISTENT_GEOMETRY = "INCONSISTENT_GEOMETRY"
    """Slices differ in size, spacing, orientation or frame of reference, or are tilted."""
    MISSING_SLICES = "MISSING_SLICES"
    """The gaps between slices are not uniform."""
    DUPLICATE_POSITIONS = "DUPLICATE_POSITIONS"
    """Two slices lie at the same position."""
    DUPLICATE_INSTANCES = "DUPLICATE_INSTANCES"
    """Two slices bear the same SOP Instance UID."""
    PARTIAL_COVERAGE = "PARTIAL_COVERAGE"
    """The images cover too little of the chest."""
    NO_LUNGS = "NO_LUNGS"
    """No lungs were found in the volume."""


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
