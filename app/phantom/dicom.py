"""Writing a synthetic chest CT as a DICOM series (CT Image Storage, PS3.3 A.3)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from operators.software import MANUFACTURER, NAME, VERSION

RESCALE_INTERCEPT = -1024
_DATE = "20200101"
_TIME = "120000"


def _uid(*entropy: str) -> str:
    """Return the same UID for the same words."""
    return str(generate_uid(entropy_srcs=[NAME, "phantom", *entropy]))


def _common_header(study: str) -> Dataset:
    """Return patient, study, series, frame of reference and equipment modules."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = "Phantom^Chest"
    header.PatientID = f"PHANTOM-{study}"
    header.PatientBirthDate = "19600101"
    header.PatientSex = "O"
    header.PatientAge = "060Y"
    header.StudyInstanceUID = _uid(study, "study")
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = _DATE
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = _TIME
    header.ReferringPhysicianName = None
    header.StudyID = "1"
    header.AccessionNumber = "1"
    header.StudyDescription = "Synthetic chest CT"
    header.Modality = "CT"
    header.SeriesInstanceUID = _uid(study, "series")
    header.SeriesNumber = 1
    header.SeriesDescription = "Synthetic chest CT, axial"
    header.BodyPartExamined = "CHEST"
    header.PatientPosition = "HFS"
    header.FrameOfReferenceUID = _uid(study, "frame of reference")
    header.PositionReferenceIndicator = None
    header.Manufacturer = MANUFACTURER
    header.ManufacturerModelName = f"{NAME} phantom"
    header.DeviceSerialNumber = "1"
    header.SoftwareVersions = VERSION
    return header


def _image_header(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Dataset:
    """Return what the image modules have in common for all slices."""
    dz, dy, dx = spacing
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.QualityControlImage = "YES"
    header.AcquisitionNumber = 1
    header.KVP = 120
    header.SliceThickness = dz
    header.PixelSpacing = [dy, dx]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    _, header.Rows, header.Columns = shape
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 1
    header.RescaleIntercept = RESCALE_INTERCEPT
    header.RescaleSlope = 1
    header.RescaleType = "HU"
    header.WindowCenter = -600
    header.WindowWidth = 1500
    return header


def ct_headers(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    study: str = "0",
) -> tuple[Dataset, ...]:
    """Return the headers of an axial CT series of a supine, head-first patient, from feet to head.

    Parameters
    ----------
    shape : tuple of int
        Slices, rows, columns.
    spacing : tuple of float
        Distance between voxel centres along z, y, x in mm.
    origin : tuple of float
        Centre of the first voxel as x, y, z (LPS, mm).
    study : str
        What tells one synthetic patient from another: all UIDs and the patient's ID derive from it.

    Returns
    -------
    tuple of Dataset
        One complete header for each slice, without pixel data and file meta information.
    """
    headers = []
    for index in range(shape[0]):
        header = _common_header(study)
        header.update(_image_header(shape, spacing))
        header.SOPInstanceUID = _uid(study, "image", str(index))
        header.InstanceNumber = shape[0] - index
        x, y, z = origin
        header.ImagePositionPatient = [round(v, 6) for v in (x, y, z + index * spacing[0])]
        header.SliceLocation = header.ImagePositionPatient[2]
        headers.append(header)
    return tuple(headers)


def write_image(path: Path, header: Dataset, hu: npt.NDArray[np.float32]) -> None:
    """Write one slice, shape (rows, columns), as a DICOM file; HU are rounded and stored by the header's rescale."""
    stored = np.rint((hu - float(header.RescaleIntercept)) / float(header.RescaleSlope))
    image = Dataset()
    image.update(header)
    image.PixelData = stored.astype("<i2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)


def write_ct_series(
    folder: Path,
    hu: npt.NDArray[np.float32],
    spacing: tuple[float, float, float],
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    study: str = "0",
    **attributes: object,
) -> list[Path]:
    """Write a volume as a DICOM series, one file for each slice.

    The names say nothing about the order of the slices, as names from a hospital.

    Parameters
    ----------
    folder : Path
        Is made where it is missing.
    hu : ndarray, shape (z, y, x)
        Hounsfield units; slices from feet to head.
    spacing, origin, study
        As for :func:`ct_headers`.
    **attributes
        DICOM keyword and value to set in every header instead of the default.

    Returns
    -------
    list of Path
        The files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slices, rows, columns = hu.shape
    numbers = random.Random(study).sample(range(slices), slices)  # noqa: S311 - shuffles names only
    paths = []
    for header, image, number in zip(
        ct_headers((slices, rows, columns), spacing, origin, study), hu, numbers, strict=True
    ):
        for keyword, value in attributes.items():
            setattr(header, keyword, value)
        paths.append(folder / f"IM{number:04d}.dcm")
        write_image(paths[-1], header, image)
    return paths
