"""One task for people: its members, and its timeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from audit.commands.rendering.json_lines import TEXT, elements
from audit.commands.rendering.records import Column, member
from audit.commands.rendering.screen import Look
from audit.commands.rendering.table import GAP, Cell, row_line, widths_of
from audit.commands.rendering.tasks import ALL_COLUMNS, Task, seconds_of, status_cell
from audit.commands.rendering.times import Zone, duration_text, labelled_time, long_time
from audit.history.json_text import members

#: An event as the history of a task returns it.
Event = Mapping[str, Any]

_SHOWN_ABOVE: Final = frozenset({"status", "request_text", "duration_seconds"})
_LONGEST_VALUE: Final = 60


#: The columns of the events of a task.
EVENT_COLUMNS: Final[Sequence[Column[Event]]] = (
    Column("position", member("position"), is_number=True),
    Column("at_utc", member("at")),
    Column("kind", member("kind")),
    Column("status", member("status")),
    Column("actor", member("actor")),
    Column("role", member("role")),
    Column("request_id", member("request_id")),
    Column("changed", lambda event: dict(members(event[TEXT]))["changed"]),
)


def task_lines(task: Task, look: Look, zone: Zone, link: str | None) -> Iterator[str]:
    """Yield the members of a task. Nothing is cut; a text of several lines keeps them."""
    state = status_cell(task["status"], look)
    seconds = seconds_of(task)
    took = "" if seconds is None else f"{GAP}took {duration_text(seconds)}"
    yield look.styled(state.text, state.style) + took
    for line in _lines_of(task["request_text"], look):
        yield GAP + look.styled(line, "bold")
    yield ""
    labels = {
        column.name: column.name.removesuffix("_utc").replace("_", " ")
        for column in ALL_COLUMNS
        if column.name not in _SHOWN_ABOVE
    }
    width = max(map(len, labels.values()))
    for column in ALL_COLUMNS:
        if column.name not in labels or (value := column.text(task)) is None:
            continue
        style = "red" if column.name == "error_message" else ""
        if column.name.endswith("_utc"):
            value = labelled_time(value, zone)
        elif column.name == "services_touched":
            value = ", ".join(task["services_touched"]) or "-"
        name = labels[column.name]
        for line in _lines_of(value, look):
            url = link if column.name == "task_id" else None
            yield f"{GAP}{name:{width}}{GAP}{look.styled(line, style, url)}".rstrip()
            name = ""


class Timeline:
    """Draws the events of a task, page by page or one by one."""

    def __init__(self, look: Look, zone: Zone, *, has_changes: bool) -> None:
        self._look = look
        self._zone = zone
        self._has_changes = has_changes
        self._widths: list[int | None] = []
        self._before: datetime | None = None

    def lines(self, events: Sequence[Event]) -> Iterator[str]:
        """Yield a line for each event, and one for each changed member if they are asked for."""
        rows = [list(self._cells(event)) for event in events]
        if not self._widths:
            zone = self._zone.label(datetime.fromisoformat(events[0]["at"]))
            names = (f"TIMELINE ({zone})", "STATE", "AFTER", "BY", "CHANGED")
            header = [Cell(name, "bold", right=name == "AFTER") for name in names]
            # A state and a time that come later are not wider than these.
            widest = [Cell(""), Cell("✔ completed"), Cell("+59m 59s"), Cell(""), Cell("")]
            self._widths = [*widths_of([header, widest, *rows])[:-1], None]
            yield row_line(header, self._widths, self._look)
        for event, row in zip(events, rows, strict=True):
            yield row_line(row, self._widths, self._look)
            if self._has_changes:
                yield from self._changes(event)

    def _cells(self, event: Event) -> Iterator[Cell]:
        look = self._look
        at = datetime.fromisoformat(event["at"])
        yield Cell(f"{long_time(self._zone.at(at))}.{at.microsecond // 1000:03}")
        yield status_cell(event["status"], look)
        after = "" if self._before is None else duration_text((at - self._before).total_seconds())
        self._before = at
        yield Cell(f"+{after}" if after else "", right=True)
        yield Cell(look.inert(event["actor"] or event["role"]))
        names = ", ".join(name for name in event["changed"] if name != "status")
        yield Cell(look.inert(names if event["kind"] == "changed" else event["kind"]))

    def _changes(self, event: Event) -> Iterator[str]:
        arrow = "->" if self._look.is_ascii else "→"
        changed = dict(members(event[TEXT]))["changed"]
        for name, text in members(changed):
            change = dict(members(text))
            before, after = (self._short(change[side]) for side in ("from", "to"))
            yield f"{GAP}{GAP}{self._look.inert(name)}: {before} {arrow} {after}"

    def _short(self, text: str) -> str:
        shown = self._look.inert(text)
        if len(shown) <= _LONGEST_VALUE or self._look.width is None:
            return shown
        return shown[:_LONGEST_VALUE] + self._look.ellipsis


def events_of(body: str) -> tuple[list[tuple[str, Event]], str | None]:
    """Return the events of a page of a history, and the cursor of the next one."""
    page = dict(members(body))
    cursor = page["next_cursor"]
    return list(elements(page["events"])), None if cursor == "null" else cursor[1:-1]


def _lines_of(text: str, look: Look) -> list[str]:
    return [look.inert(line) for line in text.split("\n")]
