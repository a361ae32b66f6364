"""``covid-ct inspect``: what a folder holds, which series would be read, and why not the others."""

from __future__ import annotations

from pathlib import Path

from app.settings import Settings
from operators.dicom_folder import scan_folder
from operators.refusal import InputRefused
from operators.selection_rules import SelectionRules
from operators.series_loader import describe, plan_volume
from operators.series_selection import Choice, SeriesSummary, choose_series
from operators.studies import Study, group_studies

_COLUMNS = ("Series", "Modality", "Images", "Slices", "Pixels", "Spacing mm", "Plane", "Kernel", "Body part", "Verdict")


def inspect_folder(folder: Path, rules: SelectionRules, settings: Settings) -> str:
    """Describe the studies and series of a folder as text; no pixels are decoded and nothing is written.

    Names no patient: studies are numbered in the order of their UIDs.

    Raises
    ------
    InputRefused
        ``NO_DICOM`` where the folder holds no DICOM object.
    """
    scan = scan_folder(folder)
    studies = group_studies(scan)
    lines = [
        f"{len(scan.files)} DICOM object(s) in {len(studies)} study(ies), {len(scan.damaged)} damaged,"
        f" {scan.others} other file(s)"
    ]
    for number, study in enumerate(studies, start=1):
        choice = choose_series(study, rules)
        lines += ["", f"Study {number} of {len(studies)}", *_table(choice), _outcome(study, choice, settings)]
    return "\n".join(lines)


def _table(choice: Choice) -> list[str]:
    rows = [
        (*_cells(verdict.summary), verdict.reason or (verdict.refusal.message if verdict.refusal else "READ"))
        for verdict in choice.verdicts
    ]
    widths = [max(len(row[k]) for row in (_COLUMNS, *rows)) for k in range(len(_COLUMNS))]
    rule = "  ".join("-" * width for width in widths)
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_COLUMNS, rule.split("  "), *rows)
    ]


def _cells(summary: SeriesSummary) -> tuple[str, ...]:
    return (
        "?" if summary.number is None else str(summary.number),
        summary.modality or "?",
        str(summary.images),
        str(summary.slices),
        "{} x {}".format(*summary.size) if summary.size else "?",
        "{:.2f} x {:.2f} x {:.2f}".format(*summary.spacing) if summary.spacing else "?",
        f"{summary.plane}{'' if summary.original else ', derived'}",
        summary.kernel or "?",
        summary.body_part or "?",
    )


def _outcome(study: Study, choice: Choice, settings: Settings) -> str:
    """Say what would become of the study, as far as the headers tell."""
    try:
        plan = plan_volume(study, choice, settings.max_gap_mm)
    except InputRefused as refusal:
        return f"Would be refused: {refusal.code}: {refusal.message}"
    return " ".join([f"Would be read: {describe(plan.stack.grid)}.", *(f"{r.code}: {r.message}" for r in plan.remarks)])
