"""Rules that say which series a user wants, in the form of the MONAI Deploy App SDK's series selector."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from operators.ct_geometry import plane_of

Condition = str | float | list[str | float]
_PLANES = ("axial", "coronal", "sagittal")


def _known(conditions: dict[str, Condition]) -> dict[str, Condition]:
    for keyword, condition in conditions.items():
        if tag_for_keyword(keyword) is None:
            raise ValueError(f"{keyword} is no DICOM keyword")
        if keyword == "ImageOrientationPatient" and str(condition).casefold() not in _PLANES:
            raise ValueError("ImageOrientationPatient is Axial, Coronal or Sagittal")
        for text in condition if isinstance(condition, list) else [condition]:
            if isinstance(text, str):
                _compiled(text)
    return conditions


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def _expressions(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        _compiled(pattern)
    return patterns


class Selection(BaseModel):
    """A named set of conditions, all of which a series must meet.

    Parameters
    ----------
    name : str
        For messages.
    conditions : dict
        DICOM keyword to what its value must be:

        - text: equal, or found as a regular expression; both without regard to case;
        - a number: equal; ``[low, high]``: in the range; ``[number, ">"]`` (or ``>=``, ``<``, ``<=``, ``==``): so;
          ``[text]`` for a number: a regular expression; of several numbers, each must be so;
        - a list of text, for an attribute of several values: each is among them, each with ``!`` before it is not;
        - ``ImageOrientationPatient``: ``Axial``, ``Coronal`` or ``Sagittal``.

        A series without the attribute does not meet the condition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    conditions: Annotated[dict[str, Condition], AfterValidator(_known)]


class SelectionRules(BaseModel):
    """Which series to take.

    Parameters
    ----------
    selections : tuple of Selection
        Tried in this order: the first that any series meets holds. Without any, every series will do.
    preferred_kernels : tuple of str
        Regular expressions for Convolution Kernel, the best first; a kernel that none of them knows comes last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    selections: tuple[Selection, ...] = ()
    preferred_kernels: Annotated[tuple[str, ...], AfterValidator(_expressions)] = Field((), alias="preferred-kernels")

    def kernel_rank(self, kernel: str) -> int:
        """Return 0 for the most preferred kernels, more for others."""
        ranks = (k for k, pattern in enumerate(self.preferred_kernels) if _compiled(pattern).search(kernel))
        return next(ranks, len(self.preferred_kernels))


ANY_SERIES = SelectionRules.model_validate({})
"""No wish: what a series must be at the least decides alone."""


def meets(header: Dataset, selection: Selection) -> bool:
    """Tell whether a series, represented by the header of one of its images, meets all conditions."""
    return all(_meets(header, keyword, condition) for keyword, condition in selection.conditions.items())


def _meets(header: Dataset, keyword: str, condition: Condition) -> bool:
    if keyword == "ImageOrientationPatient":
        return str(condition).casefold() == str(plane_of(header)).casefold()
    values = _values(header.get(keyword))
    if not values:
        return False
    if all(isinstance(value, float) for value in values):
        return all(_meets_number(value, condition) for value in values)
    if isinstance(condition, list):
        present = {str(value).strip().casefold() for value in values}
        wanted = [str(text).strip().casefold() for text in condition]
        return all((text[1:] not in present) if text.startswith("!") else (text in present) for text in wanted)
    return _meets_text("\\".join(map(str, values)), str(condition))


def _values(value: Any) -> list[Any]:
    """Return the values of an attribute of any multiplicity, numbers as numbers."""
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [float(v) if isinstance(v, int | float) else v for v in values]


_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def _meets_number(value: float, condition: Condition) -> bool:
    match condition:
        case [int() | float() as low, int() | float() as high]:
            return float(low) <= value <= float(high)
        case [int() | float() as number, str() as relation] if relation in _RELATIONS:
            return _RELATIONS[relation](value, float(number))
        case [str() as pattern]:
            return _meets_text(f"{value:g}", pattern)
        case int() | float():
            return value == float(condition)
        case str():
            return _meets_text(f"{value:g}", condition)
    return False


def _meets_text(value: str, pattern: str) -> bool:
    return value.casefold() == pattern.casefold() or _compiled(pattern).search(value) is not None
