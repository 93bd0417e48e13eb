"""Lists of tasks: their columns for programs, and their table for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from audit.commands.rendering.json_lines import TEXT
from audit.commands.rendering.records import Column, member
from audit.commands.rendering.screen import Look
from audit.commands.rendering.table import GAP, Cell, drawn, row_line, table, widths_of
from audit.commands.rendering.times import Zone, duration_text, long_time, short_time
from audit.history.json_text import members

#: A task as lists return it.
Task = Mapping[str, Any]

_SYMBOLS: Final = {
    "pending": ("○", ".", "dim"),
    "approved": ("●", "*", ""),
    "executing": ("▶", ">", "cyan"),
    "completed": ("✔", "+", "green"),
    "failed": ("✖", "x", "bold red"),
    "rejected": ("⊘", "-", "magenta"),
}
_ID_WIDTH: Final = 36
_NARROWEST_TABLE: Final = 76
_NARROWEST_LINE: Final = 140
_WIDEST_NAME: Final = 28
_LEAST_REQUEST: Final = 20


def seconds_of(task: Task) -> float | None:
    """Return how long a task took; None if it has not ended."""
    if task["completed_at"] is None:
        return None
    ended = datetime.fromisoformat(task["completed_at"])
    return (ended - datetime.fromisoformat(task["created_at"])).total_seconds()


def _seconds_text(task: Task) -> str | None:
    seconds = seconds_of(task)
    return None if seconds is None else f"{seconds:.6f}"


def joined(names: Sequence[str]) -> str:
    """Return names in one cell: separated by semicolons, or as JSON if a name has one or a quote.

    So a program can always take the cell apart.
    """
    if any(";" in name or '"' in name for name in names):
        return json.dumps(names, ensure_ascii=False)
    return ";".join(names)


def _intent(task: Task) -> str | None:
    intent = (task["outcome"] or {}).get("action_type")
    return intent if intent is None or isinstance(intent, str) else json.dumps(intent)


def _json_member(name: str) -> Callable[[Task], str | None]:
    """Return a function that returns a member as JSON, with all the digits of its numbers."""

    def text(task: Task) -> str | None:
        return None if task[name] is None else dict(members(task[TEXT]))[name]

    return text


#: The columns of CSV and TSV. Those of an export have the same names.
COLUMNS: Final[Sequence[Column[Task]]] = (
    Column("task_id", member("task_id")),
    Column("status", member("status")),
    Column("created_at_utc", member("created_at")),
    Column("completed_at_utc", member("completed_at")),
    Column("duration_seconds", _seconds_text, is_number=True),
    Column("intent", _intent),
    Column("services_touched", lambda task: joined(task["services_touched"])),
    Column("request_text", member("request_text")),
    Column("error_message", member("error_message")),
    Column("outcome", _json_member("outcome")),
)


#: The columns of a whole task, as `audit show` prints them.
ALL_COLUMNS: Final[Sequence[Column[Task]]] = (
    *COLUMNS[:3],
    Column("approved_at_utc", member("approved_at")),
    *COLUMNS[3:5],
    Column("recorded_at_utc", member("recorded_at")),
    Column("created_by", member("created_by")),
    Column("project_id", member("project_id")),
    *COLUMNS[5:-1],
    *(
        Column(name, _json_member(name))
        for name in (
            "outcome", "estimated_resources", "actual_resources", "external_ai_used", "suggestions"
        )
    ),
)  # fmt: skip


def status_cell(status: str, look: Look) -> Cell:
    """Return a state with its symbol. A state that this version does not know has none."""
    symbol, plain, style = _SYMBOLS.get(status, ("?", "?", ""))
    return Cell(f"{plain if look.is_ascii else symbol} {look.inert(status)}", style)


class TaskTable:
    """Draws pages of tasks. All pages have the columns of the first one."""

    def __init__(
        self, look: Look, zone: Zone, now: datetime, link_to: Callable[[str], str | None]
    ) -> None:
        self._look = look
        self._zone = zone
        self._now = zone.at(now)
        self._link_to = link_to
        self._widths: list[int | None] = []
        self._began = False

    @property
    def _is_folded(self) -> bool:
        """Whether the requests are below the other columns, because a line has no room."""
        return self._look.width is not None and self._look.width < _NARROWEST_LINE

    def lines(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Yield two lines for each task: what it was, and its id and error."""
        if self._look.width is not None and self._look.width < _NARROWEST_TABLE:
            for task in tasks:
                yield from self._stacked(task)
            return
        rows = [self._cells(task) for task in tasks]
        if not self._widths:
            names = ("STATE", "TOOK", "SERVICES", "INTENT", "REQUEST / ERROR")
            header = [
                Cell(name, "bold", right=name == "TOOK") for name in (self._created(tasks), *names)
            ]
            if self._is_folded:
                header[-1] = Cell("")
            self._widths = self._choose_widths([header, *rows])
            yield row_line(header, self._widths, self._look)
        look = self._look
        indent = sum(width or 0 for width in self._widths[:3]) + 2 * len(GAP)
        if not self._is_folded:
            indent += sum(width or 0 for width in self._widths[3:5]) + 2 * len(GAP)
        rest = None if look.width is None else look.width - indent - len(GAP)
        for task, (*row, request) in zip(tasks, rows, strict=True):
            below = [self._error(task)]
            if self._is_folded:
                yield row_line(row, self._widths[:5], look)
                below.insert(0, request)
            else:
                yield row_line([*row, request], self._widths, look)
            for number, cell in enumerate(below):
                if not number or cell.text:
                    first = Cell("") if number else self._id(task)
                    yield row_line([first, cell], [indent, rest], look)

    def wide_lines(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Yield one line for each task, and cut nothing."""
        names = [self._created(tasks), *"STATE TOOK TASK SERVICES INTENT REQUEST ERROR".split()]
        rows = [
            [
                Cell(long_time(self._time(task))),
                *(cells := self._cells(task))[1:3],
                self._id(task),
                *cells[3:],
                self._error(task),
            ]
            for task in tasks
        ]
        lines = table(names, rows, self._look, is_cut=False)
        if self._began:
            next(lines)
        self._began = True
        yield from lines

    def _created(self, tasks: Sequence[Task]) -> str:
        times = (datetime.fromisoformat(task["created_at"]) for task in (tasks[0], tasks[-1]))
        return f"CREATED ({self._zone.label(*times)})"

    def _time(self, task: Task) -> datetime:
        return self._zone.at(datetime.fromisoformat(task["created_at"]))

    def _cells(self, task: Task) -> list[Cell]:
        inert = self._look.inert
        seconds = seconds_of(task)
        return [
            Cell(short_time(self._time(task), self._now), right=True),
            status_cell(task["status"], self._look),
            Cell("-" if seconds is None else duration_text(seconds), right=True),
            Cell(inert(", ".join(task["services_touched"]) or "-")),
            Cell(inert(_intent(task) or "-")),
            Cell(inert(task["request_text"])),
        ]

    def _id(self, task: Task) -> Cell:
        return Cell(self._look.inert(task["task_id"]), "dim", self._link_to(task["task_id"]))

    def _error(self, task: Task) -> Cell:
        return Cell(self._look.inert(task["error_message"] or ""), "red")

    def _choose_widths(self, rows: Sequence[Sequence[Cell]]) -> list[int | None]:
        created, status, took, services, intent, _ = widths_of(rows)
        gaps = len(GAP)
        created = max(created, _ID_WIDTH - status - took - 2 * gaps)
        if self._look.width is None:
            return [created, status, took, services, intent, None]
        room = self._look.width - created - status - took - 5 * gaps
        if self._is_folded:
            room += gaps
            services = min(services, max(room - intent, room // 2))
            return [created, status, took, services, min(intent, room - services), 0]
        widest = max(_WIDEST_NAME, self._look.width // 5)
        services, intent = min(services, widest), min(intent, widest)
        if services + intent + _LEAST_REQUEST > room:
            half = max(_LEAST_REQUEST // 2, (room - _LEAST_REQUEST) // 2)
            services, intent = min(services, half), min(intent, half)
        return [created, status, took, services, intent, room - services - intent]

    def _stacked(self, task: Task) -> Iterator[str]:
        """Yield the lines of a task for a terminal that is too narrow for columns."""
        look = self._look
        width = look.width
        created, status, took, services, intent, request = self._cells(task)
        head = GAP.join(drawn(cell, None, look) for cell in (status, created, took))
        yield head
        names = [cell.text for cell in (services, intent) if cell.text != "-"]
        rest = [Cell(", ".join(names)), request, self._error(task), self._id(task)]
        for cell in rest:
            if cell.text and width:
                line = Cell(GAP + cell.text, cell.style, cell.link)
                yield drawn(line, width, look, is_last=True)
