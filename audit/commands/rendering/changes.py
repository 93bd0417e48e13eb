"""The changes of the feed, for people and as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from audit.commands.rendering.json_lines import TEXT
from audit.commands.rendering.records import Column, member
from audit.commands.rendering.screen import Look
from audit.commands.rendering.table import Cell, row_line, widths_of
from audit.commands.rendering.tasks import status_cell
from audit.commands.rendering.times import Zone, long_time
from audit.history.json_text import members

#: A change as the feed returns it.
Change = Mapping[str, Any]

CHANGE_COLUMNS: Final[Sequence[Column[Change]]] = (
    Column("n", member("n"), is_number=True),
    Column("changed_at_utc", member("changed_at")),
    Column("task_id", member("task_id")),
    Column("status", member("status")),
    Column("by", member("by")),
    Column("changed", lambda change: dict(members(change[TEXT]))["changed"]),
    Column("request_text", lambda change: change["task"]["request_text"]),
    Column("error_message", lambda change: change["task"]["error_message"]),
)


class ChangeLines:
    """Draws changes as they come, a line for each."""

    def __init__(self, look: Look, zone: Zone) -> None:
        self._look = look
        self._zone = zone
        self._widths: list[int | None] = []

    def lines(self, changes: Sequence[Change]) -> Iterator[str]:
        """Yield a line for each change, and the header before the first one."""
        rows = [list(self._cells(change)) for change in changes]
        if not self._widths:
            zone = self._zone.label(datetime.fromisoformat(changes[0]["changed_at"]))
            names = (f"CHANGED ({zone})", "STATE", "TASK", "BY", "REQUEST / ERROR")
            header = [Cell(name, "bold") for name in names]
            widest = [Cell(""), Cell("✔ completed"), Cell(""), Cell("x" * 12), Cell("")]
            self._widths = [*widths_of([header, widest, *rows])[:-1], None]
            yield row_line(header, self._widths, self._look)
        for row in rows:
            yield row_line(row, self._widths, self._look)

    def _cells(self, change: Change) -> Iterator[Cell]:
        look, task = self._look, change["task"]
        at = datetime.fromisoformat(change["changed_at"])
        yield Cell(f"{long_time(self._zone.at(at))}.{at.microsecond // 1000:03}")
        yield status_cell(change["status"], look)
        yield Cell(change["task_id"])
        yield Cell(look.inert(change["by"] or "-"))
        yield Cell(look.inert(task["error_message"] or task["request_text"]))
