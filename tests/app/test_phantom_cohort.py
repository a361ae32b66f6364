"""A synthetic cohort is in the convention, and its truth is true."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from app.cli import main
from app.cohort.table import read_cohort
from app.outcome import UsageError
from app.phantom import COARSE_MM
from app.phantom.cohort import SITES, label_of, write_cohort
from operators.findings import LesionType
from operators.series_loader import load_ct_series

pytestmark = pytest.mark.whole

_PATIENTS = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "one"
    write_cohort(folder, _PATIENTS, seed=5, spacing=COARSE_MM)
    return folder


def _truth(cohort: Path) -> dict[str, dict[str, str]]:
    with (cohort / "truth.csv").open(encoding="utf-8") as file:
        return {row["study"]: row for row in csv.DictReader(file)}


def test_masks_lie_on_the_grid_of_the_ct(cohort: Path) -> None:
    for study in read_cohort(cohort)[:2]:
        volume = load_ct_series(study.path)
        for path in (study.lungs, study.lesions):
            assert path is not None
            mask = sitk.ReadImage(str(path))
            assert mask.GetSize()[::-1] == volume.hu.shape
            corner = mask.TransformIndexToPhysicalPoint(tuple(n - 1 for n in mask.GetSize()))
            expected = volume.grid.affine @ [*(n - 1 for n in volume.hu.shape), 1]
            np.testing.assert_allclose(corner, expected[:3], atol=1e-3)
            np.testing.assert_allclose(mask.GetOrigin(), volume.grid.affine[:3, 3], atol=1e-3)


def test_lungs_are_air_and_lesions_are_denser(cohort: Path) -> None:
    truth = _truth(cohort)
    for study in read_cohort(cohort):
        hu = load_ct_series(study.path).hu
        lungs, lesions = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (study.lungs, study.lesions))
        assert set(np.unique(lungs)) == {0, 1, 2}
        assert set(np.unique(lesions)) <= {0, *map(int, LesionType)}
        assert not (lesions[lungs == 0]).any()
        healthy = (lungs > 0) & (lesions == 0)
        assert np.median(hu[healthy]) < -700
        share = 100 * (lesions > 0).sum() / (lungs > 0).sum()
        assert float(truth[study.patient]["involvement_percent"]) == pytest.approx(share, abs=1e-3)
        if share > 0.5:
            assert np.median(hu[lesions > 0]) > np.median(hu[healthy]) + 100


def test_labels_follow_the_kind_and_the_sites_differ(cohort: Path) -> None:
    truth, studies = _truth(cohort), read_cohort(cohort)
    for study in studies:
        assert study.label == (truth[study.patient]["kind"] == "covid")
        healthy = truth[study.patient]["kind"] == "healthy"
        assert (float(truth[study.patient]["involvement_percent"]) == 0.0) == healthy
        assert study.co_rads in range(1, 6)
    for site in SITES:
        here = [study for study in studies if study.site == site.name]
        assert len(here) == _PATIENTS // 2
        assert sum(study.label for study in here) == round(site.positive * len(here))
        header = pydicom.dcmread(next(here[0].path.iterdir()), stop_before_pixels=True)
        assert header.Manufacturer == site.manufacturer
    noise: dict[str | None, list[float]] = {"A": [], "B": []}
    for study in studies:
        noise[study.site].append(_grain(load_ct_series(study.path).hu))
    assert min(noise["B"]) > 1.3 * max(noise["A"])


def _grain(hu: np.ndarray) -> float:
    """How much neighbours differ in soft tissue."""
    tissue = (hu > -50) & (hu < 150)
    both = tissue[..., 1:] & tissue[..., :-1]
    return float(np.std(np.diff(hu, axis=-1)[both]))


def test_numbers_do_not_tell_the_label() -> None:
    """Else a table sorted by patient would be sorted by truth."""
    for site in range(len(SITES)):
        labels = [label_of(number, 60, 1) for number in range(site, 60, len(SITES))]
        assert labels != sorted(labels)
        assert labels != sorted(labels, reverse=True)


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_seed_decides(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["phantom", str(tmp_path / "again"), "--cohort", str(_PATIENTS), "--seed", "5", "--coarse"]
    assert main(command) == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'again'}\n"
    assert len(output.err.splitlines()) == _PATIENTS
    assert _digests(tmp_path / "again") == _digests(cohort)


def test_patients_differ(cohort: Path) -> None:
    headers = [pydicom.dcmread(next(study.path.iterdir())) for study in read_cohort(cohort)]
    assert len({header.StudyInstanceUID for header in headers}) == _PATIENTS
    assert len({header.PatientID for header in headers}) == _PATIENTS
    assert len({header.PatientAge for header in headers}) > 1


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 4 patients"):
        write_cohort(tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        write_cohort(tmp_path, 4)
    with pytest.raises(UsageError, match="cannot write the cohort"):
        write_cohort(tmp_path / "file" / "out", 4)
