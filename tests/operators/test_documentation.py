"""The documentation of the input names every code."""

from pathlib import Path

import pytest

from operators.refusal import ReasonCode
from operators.remarks import RemarkCode

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "input.md").read_text("utf-8")


@pytest.mark.parametrize("code", [*ReasonCode, *RemarkCode])
def test_every_code_is_explained(code: ReasonCode | RemarkCode) -> None:
    assert f"`{code}`" in PAGE
