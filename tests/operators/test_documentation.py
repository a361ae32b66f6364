"""The documentation names every code, and what is written."""

from pathlib import Path

import pytest

from operators import codes, pdf_writer, pm_writer, sc_writer, seg_writer, sr_writer
from operators.refusal import ReasonCode
from operators.remarks import RemarkCode

DOCS = Path(__file__).resolve().parents[2] / "docs"
INPUT, CONFORMANCE = ((DOCS / name).read_text("utf-8") for name in ("input.md", "conformance.md"))
AMOUNTS = [codes.INVOLVEMENT, codes.ALL_LESIONS, *(term.amount for term in codes.LESION_TERMS.values())]


@pytest.mark.parametrize("code", [*ReasonCode, *RemarkCode])
def test_every_code_is_explained(code: ReasonCode | RemarkCode) -> None:
    assert f"`{code}`" in INPUT


@pytest.mark.parametrize("code", [code.value for amount in AMOUNTS for code in (amount.volume, amount.percent)])
def test_every_private_code_is_in_the_conformance_statement(code: str) -> None:
    assert f"`{code}`" in CONFORMANCE


@pytest.mark.parametrize("term", codes.LESION_TERMS.values(), ids=lambda term: term.label)
def test_every_lesion_code_is_in_the_conformance_statement(term: codes.LesionTerm) -> None:
    assert term.code.value in CONFORMANCE


def test_series_numbers_are_in_the_conformance_statement() -> None:
    written = {
        "seg": [seg_writer.SERIES_NUMBER],
        "sr": [sr_writer.SERIES_NUMBER],
        "sc": [sc_writer.SERIES_NUMBER],
        "pm": pm_writer.SERIES_NUMBERS.values(),
        "pdf": [pdf_writer.SERIES_NUMBER],
    }
    rows = {line.split("|")[1].strip(" `/"): line for line in CONFORMANCE.splitlines() if line.startswith("| `")}
    for folder, numbers in written.items():
        assert f"| {', '.join(map(str, numbers))} |" in rows[folder]
