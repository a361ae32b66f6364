"""What a PACS makes of a whole run: source and results are sent to a real Orthanc and read back."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from tests.app.tiny_run import run, write_lungs, write_models
from tests.pacs.server import Orthanc, running

pytestmark = pytest.mark.pacs

_MODALITIES = {"9001": "SEG", "9002": "SR", "9003": "CT", "9004": "OT", "9005": "OT", "9006": "DOC"}


@dataclass(frozen=True)
class Study:
    """Files of a study and of two runs on it."""

    source: list[Path]
    results: list[Path]
    rerun: list[Path]

    @property
    def uid(self) -> str:
        return str(_header(self.source[0]).StudyInstanceUID)


@dataclass(frozen=True)
class Archive:
    """A server that holds the source and the results of the first run."""

    orthanc: Orthanc
    way: str

    def send(self, files: list[Path]) -> None:
        {"C-STORE": self.orthanc.store, "STOW-RS": self.orthanc.stow}[self.way](files)


@pytest.fixture(scope="module", params=["false", "true"], ids=["plain", "deflated"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    write_models(folder / "models")
    write_lungs(folder / "source")
    for output in ("results", "rerun"):
        run(folder / "source", folder / output, folder / "models", "pdf=true", f"deflate={request.param}")
    return Study(*(sorted((folder / name).rglob("*.dcm")) for name in ("source", "results", "rerun")))


@pytest.fixture(scope="module", params=["C-STORE", "STOW-RS"])
def archive(
    request: pytest.FixtureRequest, study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    with running(tmp_path_factory.mktemp("orthanc")) as orthanc:
        filled = Archive(orthanc, request.param)
        filled.send(study.source + study.results)
        yield filled


def _header(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def _data_set(file: bytes) -> bytes:
    """Give what follows the file meta group, whose length is its first value; inflated where it is deflated."""
    content = file[144 + int.from_bytes(file[140:144], "little") :]
    syntax = pydicom.dcmread(BytesIO(file), stop_before_pixels=True).file_meta.TransferSyntaxUID
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content) if syntax.is_deflated else content


def _found(archive: Archive, path: str) -> list[Dataset]:
    return [Dataset.from_json(match) for match in archive.orthanc.qido(path)]


def _held(archive: Archive, study: Study) -> dict[str, tuple[str, str]]:
    """Series and SOP class of every instance of the study that the server finds."""
    found = _found(archive, f"studies/{study.uid}/instances")
    return {each.SOPInstanceUID: (each.SeriesInstanceUID, each.SOPClassUID) for each in found}


def test_every_object_comes_back_bit_for_bit(archive: Archive, study: Study) -> None:
    for path in study.source + study.results:
        sent, header = path.read_bytes(), _header(path)
        by_wado = archive.orthanc.wado(study.uid, header.SeriesInstanceUID, header.SOPInstanceUID)
        for received in (archive.orthanc.file(header.SOPInstanceUID), by_wado):
            # A receiver of C-STORE writes the file meta group itself; by STOW-RS it is sent along.
            if archive.way == "STOW-RS":
                assert received == sent, path.name
            assert _data_set(received) == _data_set(sent), path.name
            syntax = pydicom.dcmread(BytesIO(received), stop_before_pixels=True).file_meta.TransferSyntaxUID
            assert syntax == header.file_meta.TransferSyntaxUID, path.name


def test_pictures_stay_compressed(archive: Archive, study: Study) -> None:
    pictures = [_header(path) for path in study.results if path.parent.name == "sc"]
    assert len(pictures) > 1
    for picture in pictures:
        received = pydicom.dcmread(BytesIO(archive.orthanc.file(picture.SOPInstanceUID)))
        assert received.file_meta.TransferSyntaxUID.is_compressed
        assert received.pixel_array.shape == (picture.Rows, picture.Columns, 3)


def _expected_series(study: Study) -> dict[str, tuple[str, int]]:
    """Modality and number of instances, by series number."""
    numbers = Counter(str(_header(path).SeriesNumber) for path in study.results)
    assert set(numbers) == set(_MODALITIES)
    results = {number: (_MODALITIES[number], count) for number, count in numbers.items()}
    return {str(_header(study.source[0]).SeriesNumber): ("CT", len(study.source)), **results}


def test_it_is_one_study_of_one_patient_for_orthanc(archive: Archive, study: Study) -> None:
    (patient,) = archive.orthanc.rest("/patients?expand")
    assert patient["MainDicomTags"]["PatientID"] == "4711"
    (only,) = archive.orthanc.rest("/studies?expand")
    assert only["MainDicomTags"]["StudyInstanceUID"] == study.uid
    listed = archive.orthanc.rest("/series?expand")
    tags = [(each["MainDicomTags"], len(each["Instances"])) for each in listed]
    series = {tag["SeriesNumber"]: (tag["Modality"], count) for tag, count in tags}
    assert series == _expected_series(study)
    assert len(listed) == len(series)


def test_it_is_one_study_of_one_patient_for_a_search(archive: Archive, study: Study) -> None:
    (only,) = _found(archive, "studies")
    assert (only.StudyInstanceUID, only.PatientName, only.PatientID) == (study.uid, "Doe^Jane", "4711")
    found = _found(archive, f"studies/{study.uid}/series")
    series = {str(each.SeriesNumber): (each.Modality, each.NumberOfSeriesRelatedInstances) for each in found}
    assert series == _expected_series(study)
    assert len(found) == len(series)


def test_every_reference_resolves(archive: Archive, study: Study) -> None:
    held = _held(archive, study)
    for path in study.results:
        references = list(_references(_header(path)))
        assert references, f"{path.name} refers to nothing"
        for series, sop_class, instance in references:
            assert instance in held, f"{path.name}: {instance}"
            assert held[instance][1] == sop_class, f"{path.name}: {instance}"
            assert series in {None, held[instance][0]}, f"{path.name}: {instance}"


def _references(dataset: Dataset, series: str | None = None) -> Iterator[tuple[str | None, str, str]]:
    """Series where an item around it tells it, SOP class, and instance of each reference."""
    if "ReferencedSOPInstanceUID" in dataset:
        yield series, dataset.ReferencedSOPClassUID, dataset.ReferencedSOPInstanceUID
    for element in dataset:
        for item in element.value if element.VR == "SQ" else []:
            yield from _references(item, item.get("SeriesInstanceUID", series))


def test_the_same_results_add_nothing(archive: Archive, study: Study) -> None:
    before = _held(archive, study)
    assert len(before) == len(study.source) + len(study.results)
    for again in (study.results, study.rerun):
        archive.send(again)
        assert _held(archive, study) == before
        assert archive.orthanc.rest("/statistics")["CountInstances"] == len(before)
