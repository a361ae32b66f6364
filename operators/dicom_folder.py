"""Finding the DICOM objects of a folder, losing none."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, EXPLICIT_VR_LENGTH_32, VR, PersonName

from operators.refusal import InputRefused, ReasonCode

MULTI_FRAME_CT = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_PREAMBLE = 128
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""First bytes of an object without preamble: group 0002 or 0008 in either byte order (PS3.5, 7.1)."""
_IDENTIFYING_GROUP = 0x0008
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_SHORT_VALUE = 64
_LONG_VALUE = 1 << 16
"""Longer values are left in the file: nothing that a volume needs is so long, but descriptions of frames."""
UNDEFINED_LENGTH = 0xFFFFFFFF
_TEXT_PADDING = b"\0 "
_IMPLICIT_HEAD = 8
"""Bytes of tag and length before a value in implicit VR (PS3.5, 7.1.3)."""
Characters = str | list[str] | None
"""Specific Character Set."""
_INFLATED = 64 << 20
"""A deflated data set may grow to this many bytes, which a CT image of any size does not exceed,"""
_GROWTH = 100
"""or to this many times its size, as long multi-frame images and segmentations of large ones may (70 was measured);
anything more is a bomb."""


class Stamp(NamedTuple):
    """What changes when a file is changed: its size in bytes, and the time of its last change in ns."""

    size: int
    changed: int


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file from its status."""
    return Stamp(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True, eq=False)
class DicomFile:
    """One DICOM object: its file and its header without pixel data.

    Parameters
    ----------
    path : Path
        The file.
    number : int
        Place of the file among all files of the folder in the order of their paths, from 1: how messages name it.
    header : FileDataset
        Everything before the pixel data, but values of more than 64 KiB that are no sequences.
    pixels_at : int
        Where the element Pixel Data begins in the file, or, where there is none, the file ends; 0 for a deflated
        object.
    stamp : Stamp
        Size and time of the file when the header was read.
    texts : tuple of DataElement
        Texts of the header that the library would write in other bytes than it has read, as those that do not fit the
        character set; in their bytes.
    """

    path: Path
    number: int
    header: FileDataset
    pixels_at: int
    stamp: Stamp
    texts: tuple[DataElement, ...] = ()

    @property
    def sop_class(self) -> str:
        """SOP Class UID; empty for a directory, which has none."""
        return str(self.header.get("SOPClassUID") or "")


@dataclass(frozen=True, slots=True, eq=False)
class FolderScan:
    """What a folder holds.

    Parameters
    ----------
    files : tuple of DicomFile
        All objects that could be read, in the order of their paths.
    damaged : tuple of int
        Numbers of the files that are DICOM objects, or by their names ought to be, and cannot be read.
    others : int
        How many files are no DICOM objects.
    """

    files: tuple[DicomFile, ...]
    damaged: tuple[int, ...]
    others: int


def scan_folder(folder: Path) -> FolderScan:
    """Read the headers of all DICOM objects below a folder, no pixels.

    Sub-folders and links are followed, each real file is read once. Directory files (``DICOMDIR``) are passed over:
    what they list lies in the folder, or is not there.

    Parameters
    ----------
    folder : Path
        Folder to search.

    Raises
    ------
    InputRefused
        ``NO_DICOM`` where there is no object, not even a damaged one.
    """
    if not folder.is_dir():
        raise InputRefused(ReasonCode.NO_DICOM, "The input folder does not exist; name the folder of a CT study.")
    files: list[DicomFile] = []
    damaged: list[int] = []
    others = 0
    examination = _Examination()
    for number, path in enumerate(sorted(_files_below(folder), key=os.fspath), start=1):
        try:
            file = _read_file(path, number, examination)
        except Exception:  # a damaged file can make the parser raise anything
            damaged.append(number)
            continue
        if file is None:
            others += 1
        else:
            files.append(file)
    if not files and not damaged:
        raise InputRefused(ReasonCode.NO_DICOM, "The folder holds no DICOM file; name the folder of a CT study.")
    return FolderScan(tuple(files), tuple(damaged), others)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below the folder once, however links lead to it, and every folder that cannot be opened."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            if path.is_dir():
                waiting.extend(path.iterdir())
            elif path.is_file() or not path.exists():  # a dangling link may be a lost slice; devices are none
                yield path
        except OSError:  # no permission, or a link to a name that no file can have
            yield path


def _read_file(path: Path, number: int, examination: _Examination) -> DicomFile | None:
    """Return a DICOM object, or None for a file that is none; raise for a damaged object."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return None
    with path.open("rb") as stream:
        start = stream.read(_PREAMBLE + 4)
        if start[_PREAMBLE:] != b"DICM" and not start.startswith(_FIRST_GROUPS):
            if _ought_to_be_dicom(path, start):
                raise ValueError("not the DICOM object that its name promises")
            return None
    stamp = stamp_of(path.stat())
    header, pixels_at = _read_header(path)
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    if _ends_early(header) or (header.get("SOPClassUID") in MULTI_FRAME_CT and pixels_at >= stamp.size):
        raise ValueError("the header ends early")
    _drop_long_values(header, stamp.size)
    return DicomFile(path, number, header, pixels_at, stamp, examination.check(header))


def _read_header(path: Path) -> tuple[FileDataset, int]:
    """Read an object up to its pixel data, but long values only when they are asked for; tell where it ended."""
    with open_object(path) as file:
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, defer_size=_LONG_VALUE)
        if header.buffer is not None:  # was inflated, and pydicom would look for long values in the deflated file
            file.seek(0)
            header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            header.buffer = None  # holds all pixels
            return header, 0
        return header, file.tell()


def open_object(path: Path) -> io.BufferedReader:
    """Open a DICOM object for reading in memory that is in proportion to the file, whatever its header announces.

    Raises
    ------
    ValueError
        For file meta information that cannot be parsed.
    """
    file = _FrugalFile(path)
    try:
        _refuse_nested_meta(file)
    except BaseException:
        file.close()
        raise
    return file


def read_object(path: Path) -> FileDataset:
    """Read a DICOM object, with or without preamble, all of it.

    A damaged object can make this raise anything.
    """
    with open_object(path) as file:
        return pydicom.dcmread(file, force=True)


def _refuse_nested_meta(file: io.BufferedReader) -> None:
    """Raise for a sequence in the file meta information, which has none: pydicom may write it as text, endlessly."""
    if file.read(_PREAMBLE + 4)[_PREAMBLE:] != b"DICM":
        file.seek(0)
    while (head := file.read(8))[:2] == _FIRST_GROUPS[0]:
        vr, length = head[4:6], int.from_bytes(head[6:], "little")
        if vr.decode("latin-1") in EXPLICIT_VR_LENGTH_32:
            length = int.from_bytes(file.read(4), "little")
        elif not b"AA" <= vr <= b"ZZ":  # not explicit: pydicom reads on as if it were implicit
            length = int.from_bytes(head[4:], "little")
        if vr == b"SQ" or length == UNDEFINED_LENGTH:
            raise ValueError("a sequence in the file meta information")
        file.seek(length, io.SEEK_CUR)
    file.seek(0)


class _FrugalFile(io.BufferedReader):
    """A file from which as many bytes are asked for at once as it has, whatever a damaged header announces.

    Python allocates what is asked for before it reads.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(str(path)))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes; or all, which pydicom does only with a deflated data set."""
        if size is None or size < 0:
            return _no_bomb(super().read())
        return super().read(min(size, self._size))


def _no_bomb(deflated: bytes) -> bytes:
    """Return deflated bytes; raise where they would inflate to what no image needs."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left, size = deflated, 0
    while left and not inflater.eof:  # after its end, what follows stays for ever
        size += len(inflater.decompress(left, 1 << 20))
        left = inflater.unconsumed_tail
        if size > max(_INFLATED, _GROWTH * len(deflated)):
            raise ValueError("the deflated data set grows out of all proportion")
    return deflated


def _drop_long_values(header: FileDataset, size: int) -> None:
    """Drop all long values but sequences.

    Raises for a value that would end beyond the file, of ``size`` bytes: nothing can be told of what follows.
    """
    for tag, element in list(header.items()):
        if not isinstance(element, RawDataElement) or element.length == UNDEFINED_LENGTH:
            continue
        there = size - element.value_tell if element.value is None else len(element.value)
        if there < element.length:
            raise ValueError("a value is cut off")
        if element.length > _LONG_VALUE and not _is_sequence(element):
            del header[tag]


class _Examination:
    """Decodes each standard element now, so that a damaged one raises here, not later; but no value twice.

    The images of a series have most of their values in common.
    """

    def __init__(self) -> None:
        self._sound: dict[Hashable, DataElement | None] = {}

    def check(self, header: FileDataset) -> tuple[DataElement, ...]:
        """Return the texts that would be written in other bytes; raise for an element that cannot be decoded."""
        characters = header.get("SpecificCharacterSet")
        texts = []
        for tag, element in header.items():
            key = _key(element, str(characters))
            if not tag.is_private and key not in self._sound:
                decoded = _decode(header, tag)
                if key is not None:
                    self._sound[key] = _in_its_bytes(element.value, decoded, characters)
            texts.append(self._sound.get(key))
        return tuple(text for text in texts if text is not None)


def _decode(header: FileDataset, tag: BaseTag) -> DataElement:
    if header[tag].VR == "SQ" and _is_plain(tag):
        raise ValueError("a sequence in the place of a plain value")  # endless where it is written as text
    return header[tag]


def _in_its_bytes(value: bytes | None, decoded: DataElement, characters: Characters) -> DataElement | None:
    """Return a text in the bytes that it was read from, where the library would write others; else None.

    What it cannot decode by the character set, or not encode again, it replaces (PS3.5, 6.1.2.5).
    """
    if value is None or decoded.VR not in CUSTOMIZABLE_CHARSET_VR:
        return None
    value = value.rstrip(_TEXT_PADDING)
    if _encoded(decoded, characters) == value:
        return None
    name = PersonName(value) if decoded.VR == VR.PN else value  # without encodings, it keeps its bytes
    return DataElement(decoded.tag, decoded.VR, name, already_converted=True)


def _encoded(element: DataElement, characters: Characters) -> bytes:
    """Return the value of an element as the library writes it, without padding."""
    target = DicomBytesIO()
    target.is_little_endian = target.is_implicit_VR = True
    write_data_element(target, element, characters)
    return target.getvalue()[_IMPLICIT_HEAD:].rstrip(_TEXT_PADDING)


def _key(element: object, characters: str) -> Hashable:
    """Return what decides how an element is decoded; None for one that is decoded already, or not read yet."""
    if not isinstance(element, RawDataElement) or element.value is None:
        return None
    value = element.value if len(element.value) <= _SHORT_VALUE else hashlib.sha256(element.value).digest()
    return element.tag, element.VR, value, element.is_little_endian, characters


def _is_sequence(element: RawDataElement) -> bool:
    if element.VR not in (None, "UN"):
        return element.VR == "SQ"
    return dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"


def _is_plain(tag: BaseTag) -> bool:
    """Tell whether the standard knows an element, and not as a sequence."""
    return dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ"


def _ends_early(header: FileDataset) -> bool:
    """Tell whether a header is cut off before it says for sure what the object is and where it belongs.

    Elements come in the order of their tags (PS3.5, 7.1): the last value read may be a part of the true one, so
    a cut UID may look like that of another class or series.
    """
    sop_class = header.get("SOPClassUID")
    if sop_class == CTImageStorage:
        return "Rows" not in header
    return not sop_class or max(header.keys()).group <= _IDENTIFYING_GROUP


def _ought_to_be_dicom(path: Path, start: bytes) -> bool:
    """Tell whether a file may be a spoilt slice: by its suffix, or for being blank without a telling suffix."""
    suffix = path.suffix.lower()
    return suffix in _DICOM_SUFFIXES or (not any(start) and (suffix == "" or suffix[1:].isdigit()))
