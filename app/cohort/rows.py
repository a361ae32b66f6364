"""Tables as CSV files that a person makes, by hand or with a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.outcome import UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Parameters
    ----------
    number : int
        Of its line in the file, as editors and spreadsheets count.
    cells : mapping
        By column, without the spaces around them; empty where the row has none.
    surplus : bool
        There are more cells than columns.
    """

    number: int
    cells: Mapping[str, str]
    surplus: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Names of the columns, and the rows that are not blank."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def repeated(self) -> list[str]:
        """Names that several columns have: nobody knows which of them counts."""
        return [name for name in dict.fromkeys(self.columns) if name and self.columns.count(name) > 1]


def read_table(path: Path) -> Table:
    """Read a table; empty columns at its end, as spreadsheets leave them, do not count.

    Raises
    ------
    UsageError
        If semicolons separate its columns.
    OSError, UnicodeDecodeError, csv.Error
        If it cannot be read as CSV in UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    header = lines[0][1] if lines else []
    while header and not header[-1]:
        header.pop()
    if len(header) == 1 and ";" in header[0]:
        raise UsageError(f"{path}: columns must be separated by commas, not by semicolons")
    return Table(tuple(header), tuple(_row(number, header, cells) for number, cells in lines[1:]))


def _row(number: int, columns: list[str], cells: list[str]) -> Row:
    filled = cells + [""] * (len(columns) - len(cells))
    return Row(number, dict(zip(columns, filled, strict=False)), any(cells[len(columns) :]))
