"""Records as programs read them: TSV, CSV and the columns that a user chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

Row = TypeVar("Row")

_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - spreadsheets read these as well
#: Spreadsheets offer to split lines at semicolons and tabs as well, but not quoted cells.
_QUOTED: Final = frozenset('",;\t\r\n')
_TSV: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Output(StrEnum):
    """The forms of output."""

    TABLE = "table"
    WIDE = "wide"
    TSV = "tsv"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    IDS = "ids"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column: its name, and the function that returns its text for a row."""

    name: str
    text: Callable[[Row], str | None]
    """Returns None if the row has no value."""
    is_number: bool = False
    """Numbers are aligned to the right. In CSV, text that a spreadsheet would run is escaped, but
    not numbers."""


def member(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return the function that returns a member of a JSON object, for a column."""
    return itemgetter(name)


def chosen(columns: Sequence[Column[Row]], names: str | None) -> Sequence[Column[Row]]:
    """Return the columns that a list of names chooses; all without one.

    A name may leave `_utc` out.

    Raises:
        ValueError: there is no such column.
    """
    if names is None:
        return columns
    by_name = {column.name.removesuffix("_utc"): column for column in columns}
    try:
        return [by_name[name.strip().removesuffix("_utc")] for name in names.split(",")]
    except KeyError as unknown:
        known = ", ".join(column.name for column in columns)
        raise ValueError(f"there is no column {unknown}; there are {known}") from None


def tsv_line(values: Iterable[str | None]) -> str:
    r"""Return a line of TSV. Tabs, line breaks and backslashes are written as \t, \n and \\."""
    return "\t".join("" if value is None else value.translate(_TSV) for value in values) + "\n"


def csv_line(columns: Sequence[Column[Any]], values: Sequence[str | None]) -> str:
    """Return a line of CSV. A cell that a spreadsheet would run as a formula begins with '."""
    cells = (
        "" if value is None else _csv_cell(value, is_text=not column.is_number)
        for column, value in zip(columns, values, strict=True)
    )
    return ",".join(cells) + "\n"


def _csv_cell(value: str, *, is_text: bool) -> str:
    if is_text and value.startswith(_FORMULA):
        value = f"'{value}"
    if not value or not _QUOTED.isdisjoint(value):
        return '"' + value.replace('"', '""') + '"'
    return value


def line_of(output: Output, columns: Sequence[Column[Row]], row: Row) -> str:
    """Return a row as a line of TSV or CSV."""
    values = [column.text(row) for column in columns]
    return csv_line(columns, values) if output is Output.CSV else tsv_line(values)


def header_of(output: Output, columns: Sequence[Column[Any]]) -> str:
    """Return the header of TSV or CSV."""
    names = [column.name for column in columns]
    return (",".join(names) + "\n") if output is Output.CSV else tsv_line(names)
