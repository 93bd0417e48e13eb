"""Makes the first page of a list from an earlier one and the changes since then.

The page and its total are what the query returns in the snapshot of the last change. If that cannot
be told from the changes, as when a task leaves a full page, there is no such page.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, Self
from uuid import UUID

from audit.history.changes import Change, ChangeFilter
from audit.history.cursor import Cursor
from audit.history.query import TaskFilter, TaskQuery
from audit.history.task import TaskPage

#: Numbers stay text, so that they may have any number of digits.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)
#: The bytes that a page counts for each task, besides its document.
_ROUNDING_BYTES: Final = 1024


class _Row(NamedTuple):
    """A task of a page. Rows compare in the reverse order of lists, because no two have one id."""

    created_at: datetime
    task_id: UUID
    document: str


@dataclass(frozen=True, slots=True)
class FirstPage:
    """The first page of a list in one snapshot, with its tasks apart."""

    query: TaskQuery
    rows: Sequence[_Row]
    """The oldest task first."""
    total: int

    @classmethod
    def of(cls, query: TaskFilter, page: TaskPage) -> Self | None:
        """Return the page of a query with its tasks apart; None if changes cannot be applied."""
        if (
            not isinstance(query, TaskQuery)
            or query.position
            or query.offset
            or query.outcome is not None
            or page.total is None
            or page.rows != min(page.total, query.limit)
        ):
            return None
        try:
            rows = _rows(page.tasks_json)
        except (ValueError, RecursionError):
            return None
        return cls(query, rows, page.total)

    def after(self, changes: Iterable[Change], selected: ChangeFilter) -> FirstPage | None:
        """Return the page after changes, the oldest first; None if they do not tell it."""
        rows, total = list(self.rows), self.total
        for change in changes:
            was, matches = selected.matches(change)
            if not was and not matches:
                continue
            is_full = total > len(rows)
            place = bisect_left(rows, (change.created_at, change.task_id))
            is_known = place < len(rows) and rows[place].task_id == change.task_id
            if place == 0 and is_full and not is_known:
                # It comes after the page.
                total += matches - was
                continue
            if was != is_known or (matches and change.document is None):
                return None
            if was:
                del rows[place]
            if matches:
                assert change.document is not None  # noqa: S101 - checked above
                rows.insert(place, _Row(change.created_at, change.task_id, change.document))
            elif is_full:
                # Another task comes into the page.
                return None
            total += matches - was
            del rows[: -self.query.limit]
        return FirstPage(self.query, rows, total)

    def to_task_page(self, clock: datetime, max_bytes: int) -> TaskPage | None:
        """Return the page as `Reading.list_tasks` would; None if it may be too long."""
        query, rows = self.query, self.rows
        tasks_json = f"[{','.join(row.document for row in reversed(rows))}]"
        if len(tasks_json.encode()) + _ROUNDING_BYTES * len(rows) > max_bytes:
            return None
        following = None
        if self.total > len(rows):
            last = rows[0]
            of_window = clock if query.span else None
            following = Cursor(of_window, last.created_at, last.task_id, self.total)
        return TaskPage(
            tasks_json=tasks_json,
            total=self.total,
            limit=query.limit,
            offset=0,
            next_cursor=following.encode(query.fingerprint) if following else None,
            rows=len(rows),
        )


def _rows(tasks_json: str) -> Sequence[_Row]:
    """Return the tasks of a JSON array that PostgreSQL wrote, the last one first.

    Raises:
        ValueError, RecursionError: the array cannot be read.
    """
    rows = []
    start = 1
    while tasks_json[start] != "]":
        task, end = _DECODER.raw_decode(tasks_json, start)
        created_at = datetime.fromisoformat(task["created_at"])
        rows.append(_Row(created_at, UUID(task["task_id"]), tasks_json[start:end]))
        start = end + (tasks_json[end] == ",")
    rows.reverse()
    return rows
