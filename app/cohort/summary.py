"""What a cohort holds, as a table of counts."""

from __future__ import annotations

from collections.abc import Sequence

from app.cohort.table import SPLITS, CohortStudy


def summarise(studies: Sequence[CohortStudy]) -> str:
    """Count patients and studies by split and site; names nobody."""
    stated = {study.split for study in studies}
    groups = [(f"split {split}", [s for s in studies if s.split == split]) for split in SPLITS if split in stated]
    sites = sorted({study.site for study in studies if study.site})
    groups += [(f"site {site}", [study for study in studies if study.site == site]) for site in sites]
    rows: list[tuple[str, ...]] = [("", "patients", "studies", "positive", "with lung masks", "with lesion masks")]
    rows += [_row(name, members) for name, members in [("all", list(studies)), *groups]]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, studies: Sequence[CohortStudy]) -> tuple[str, ...]:
    counts = (
        len({study.patient for study in studies}),
        len(studies),
        sum(study.label for study in studies),
        sum(study.lungs is not None for study in studies),
        sum(study.lesions is not None for study in studies),
    )
    return name, *map(str, counts)
