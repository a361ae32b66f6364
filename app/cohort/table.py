"""The data set convention: a folder of CT studies, and one table ``cohort.csv`` that says what they are."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from app.cohort.rows import Row, Table, read_table
from app.outcome import UsageError

TABLE = "cohort.csv"
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED = ("patient", "study", "label")
OPTIONAL = ("co_rads", "split", "site", "lungs", "lesions")
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class CohortStudy:
    """One CT study of a cohort.

    Parameters
    ----------
    patient : str
        Pseudonym; splits never divide a patient.
    path : Path
        Folder of DICOM, or a NIfTI file.
    label : int
        0 negative, 1 positive.
    co_rads : int, optional
        1 to 5.
    split : str, optional
        ``train``, ``validation`` or ``test``.
    site : str, optional
        Where it was acquired.
    lungs, lesions : Path, optional
        Masks as NIfTI files on the grid of the CT: lungs 1 left, 2 right; lesions 1 ground glass, 2 consolidation,
        3 crazy paving, 4 combined pattern, 5 a lesion of unknown type.
    """

    patient: str
    path: Path
    label: int
    co_rads: int | None = None
    split: Split | None = None
    site: str | None = None
    lungs: Path | None = None
    lesions: Path | None = None

    @property
    def name(self) -> str:
        """Name of its folder or file, without ``.nii`` or ``.nii.gz``."""
        return stem(self.path)


def stem(path: Path) -> str:
    """Return the name of a folder, or of a NIfTI file without its ending; dots in it, as of UIDs, stay."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


@contextmanager
def new_cohort(folder: Path) -> Iterator[None]:
    """Make the folder of a cohort that is written in the block.

    Raises
    ------
    UsageError
        If it is not empty, or it or something in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"the folder {folder} is not empty; give another")
        yield
    except OSError as error:
        raise UsageError(f"cannot write the cohort to {folder}: {error.strerror}") from error


def read_cohort(folder: Path, *, classes: bool = True) -> tuple[CohortStudy, ...]:
    """Read the table of a cohort; as :func:`read_cohorts`."""
    return read_cohorts([folder], classes=classes)


def read_cohorts(folders: Sequence[Path], *, classes: bool = True) -> tuple[CohortStudy, ...]:
    """Read the tables of several cohorts as if they were one.

    Parameters
    ----------
    folders : sequence of Path
        A pseudonym means the same patient in all of them.
    classes : bool
        Each split needs both classes in all of them together, as classifiers do.

    Raises
    ------
    UsageError
        If anything is wrong; names the first problem and says how to see all.
    """
    studies: list[CohortStudy] = []
    for folder in folders:
        rows, problems = inspect_rows(folder)
        if problems:
            more = f"; covid-ct cohort {folder} lists all {len(problems)} problems" if len(problems) > 1 else ""
            raise UsageError(f"{folder / TABLE}: {problems[0]}{more}")
        studies += rows
    wrong = [*contradictions(studies), *(lone_classes(studies) if classes else ())]
    if wrong:
        where = folders[0] / TABLE if len(folders) == 1 else "the cohorts together"
        raise UsageError(f"{where}: {wrong[0]}")
    return tuple(studies)


def inspect_cohort(folder: Path) -> tuple[tuple[CohortStudy, ...], list[str]]:
    """Read the table of a cohort and find all that is wrong with it, a line each.

    No image is read. Studies are those of the rows without a problem of their own.

    Raises
    ------
    UsageError
        If the table cannot be read at all.
    """
    studies, problems = inspect_rows(folder)
    return studies, problems + list(contradictions(studies))


def inspect_rows(folder: Path) -> tuple[tuple[CohortStudy, ...], list[str]]:
    """Read the rows of a table and find all that is wrong with each, but not whether they agree.

    Raises
    ------
    UsageError
        If the table cannot be read at all.
    """
    table = _read(folder / TABLE)
    missing = [name for name in REQUIRED if name not in table.columns]
    unknown = [name for name in table.columns if name and name not in (*REQUIRED, *OPTIONAL)]
    problems = [f"the column {name} is missing" for name in missing]
    problems += [f"the column {name} is there several times" for name in table.repeated]
    problems += [f"unknown column {name}; known: {', '.join((*REQUIRED, *OPTIONAL))}" for name in unknown]
    problems += [f"column {number} has no name" for number, name in enumerate(table.columns, start=1) if not name]
    if missing or table.repeated:
        return (), problems
    studies = []
    for row in table.rows:
        found = list(_wrong(row, folder))
        problems += [f"row {row.number}: {problem}" for problem in found]
        if not found:
            studies.append(_study(row.cells, folder))
    if not table.rows:
        problems.append("there are no studies")
    return tuple(studies), problems


def contradictions(studies: Sequence[CohortStudy]) -> Iterator[str]:
    """Find what is wrong among studies: the same twice, a patient in two splits, a split for some of them only.

    A study is the same however its path is written, and through whatever links it leads.
    """
    seen: dict[Path, str] = {}
    for study in studies:
        place, name = study.path.resolve(), study.path.name
        if place in seen:
            yield f"study {name} is there twice" + (f": it is {seen[place]}, too" if seen[place] != name else "")
        seen.setdefault(place, name)
    splits: dict[str, set[Split | None]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    for patient, of_patient in splits.items():
        if len(of_patient) > 1:
            yield f"patient {patient} is in several splits: {', '.join(sorted(str(split) for split in of_patient))}"
    stated = {study.split for study in studies}
    if None in stated and len(stated) > 1:
        yield "some studies have a split and others have none"


def lone_classes(studies: Sequence[CohortStudy]) -> Iterator[str]:
    """Find the splits with studies of one class only: no classifier can be trained, or judged, on them."""
    for split in {study.split for study in studies}:
        labels = {study.label for study in studies if study.split == split}
        if len(labels) == 1:
            where = "the cohort" if split is None else f"the split {split}"
            yield f"{where} has only {'positive' if labels == {1} else 'negative'} studies"


def part(
    studies: Sequence[CohortStudy], patients: Sequence[str]
) -> tuple[tuple[CohortStudy, ...], tuple[CohortStudy, ...]]:
    """Part studies into those of some patients, and the others.

    Raises
    ------
    UsageError
        If one of the patients has no study.
    """
    absent = set(patients) - {study.patient for study in studies}
    if absent:
        raise UsageError(f"no study is of patient {min(absent)}")
    theirs = tuple(study for study in studies if study.patient in patients)
    return theirs, tuple(study for study in studies if study.patient not in patients)


def names_of(studies: Sequence[CohortStudy]) -> list[str]:
    """Name studies for tables, with the folder that they are in where a patient has several of the same name."""
    times = Counter((study.patient, study.path.name) for study in studies)
    return [
        study.path.name if times[study.patient, study.path.name] == 1 else f"{study.path.parent.name}/{study.path.name}"
        for study in studies
    ]


def write_table(folder: Path, studies: Sequence[CohortStudy]) -> None:
    """Write the table of a cohort, whole at any moment; paths become relative to ``folder`` where they lie in it."""
    partial = folder / f"{TABLE}.part"
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow((*REQUIRED, *OPTIONAL))
            for each in studies:
                values = (each.label, each.co_rads, each.split, each.site)
                masks = (_relative(each.lungs, folder), _relative(each.lesions, folder))
                cells = (each.patient, _relative(each.path, folder), *values, *masks)
                table.writerow("" if cell is None else cell for cell in cells)
        partial.replace(folder / TABLE)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> Table:
    try:
        return read_table(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: a cohort is a folder with a table of this name") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file in UTF-8") from error


def _wrong(of: Row, folder: Path) -> Iterator[str]:
    """Find what is wrong with one row."""
    row = of.cells
    if of.surplus:
        yield "more cells than columns"
    if not row["patient"]:
        yield "no patient"
    if row["label"] not in ("0", "1"):
        yield f"label {row['label']!r} is not 0 or 1"
    if row.get("co_rads", "") not in ("", "1", "2", "3", "4", "5"):
        yield f"co_rads {row['co_rads']!r} is not 1 to 5"
    if row.get("split", "") not in ("", *SPLITS):
        yield f"split {row['split']!r} is not {', '.join(SPLITS)}"
    study = folder / row["study"]
    if not row["study"]:
        yield "no study"
    elif not study.exists():
        yield f"the study {row['study']} does not exist"
    elif study.is_dir() and not any(study.iterdir()):
        yield f"the study {row['study']} is an empty folder"
    elif study.is_file() and not study.name.endswith(_NIFTI):
        yield f"the study {row['study']} is neither a folder nor a NIfTI file"
    for mask in ("lungs", "lesions"):
        if row.get(mask) and not ((folder / row[mask]).is_file() and row[mask].endswith(_NIFTI)):
            yield f"the mask {row[mask]} is no NIfTI file that exists"


def _study(row: Mapping[str, str], folder: Path) -> CohortStudy:
    split = next((split for split in SPLITS if split == row.get("split")), None)
    return CohortStudy(
        row["patient"],
        folder / row["study"],
        int(row["label"]),
        int(row["co_rads"]) if row.get("co_rads") else None,
        split,
        row.get("site") or None,
        folder / row["lungs"] if row.get("lungs") else None,
        folder / row["lesions"] if row.get("lesions") else None,
    )


def _relative(path: Path | None, folder: Path) -> str | None:
    if path is None:
        return None
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
