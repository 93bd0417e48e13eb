"""Makes a page of a list from an earlier one and the changes since then.

The page and its total are what the query returns in the snapshot of the last change. The changes do
not always determine the page: when a task leaves a full page, the one that moves in is unknown. In
these cases, the functions return None, and the query has to run. It is rare if some tasks around
the page are known.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
#: The memory of a row besides its document.
_ROW_BYTES: Final = 250
#: How many tasks before and after a page are read. Most writes are new tasks, each of which moves
#: one from before a page into it.
_BEFORE: Final = 300
_AFTER: Final = 100


class _Row(NamedTuple):
    """A task of a page. Rows compare in the reverse order of lists, because no two have one id."""

    created_at: datetime
    task_id: str
    document: str


def widened(query: TaskFilter) -> TaskQuery | None:
    """Return a query for a page and the tasks around it; None if changes never determine the page.

    The tasks before the page move into it when newer ones leave the list, or out of the margin when
    newer ones come. Those after it move in when a task of the page leaves the list.
    """
    if (
        not isinstance(query, TaskQuery)
        or query.position
        or query.outcome is not None
        or query.total != "exact"
    ):
        return None
    offset = query.offset or 0
    before = min(offset, _BEFORE)
    limit = before + query.limit + _AFTER
    return query.model_copy(update={"offset": offset - before, "limit": limit})


@dataclass(frozen=True, slots=True)
class PageInList:
    """A page, maybe with tasks around it, in one snapshot."""

    query: TaskQuery
    rows: Sequence[_Row]
    """The oldest task first."""
    skipped: int
    """How many matching tasks are newer than these."""
    total: int

    @property
    def size(self) -> int:
        """The approximate memory of the rows in bytes."""
        return sum(_ROW_BYTES + len(row.document) for row in self.rows)

    @classmethod
    def of(cls, query: TaskFilter, page: TaskPage) -> Self | None:
        """Return what changes can be applied to: the page of a query, or of the widened query.

        None if changes cannot determine such a page.
        """
        if widened(query) is None or page.total is None or page.offset is None:
            return None
        if not page.rows and page.offset:
            return None
        if page.rows != min(page.total - page.offset, page.limit):
            # It was too long.
            return None
        try:
            rows = _rows(page.tasks_json)
        except (ValueError, RecursionError):
            return None
        assert isinstance(query, TaskQuery)  # noqa: S101 - it can be widened
        return cls(query, rows, page.offset, page.total)

    def after(self, changes: Iterable[Change], selected: ChangeFilter) -> Self | None:
        """Return the page after changes, the oldest first; None if they do not determine it."""
        rows, skipped, total = list(self.rows), self.skipped, self.total
        for change in changes:
            was, matches = selected.matches(change)
            if not was and not matches:
                continue
            place = bisect_left(rows, (change.created_at, change.task_id))
            is_known = place < len(rows) and rows[place].task_id == change.task_id
            if skipped and place == len(rows):
                skipped += matches - was
            elif is_known or place or skipped + len(rows) == total:
                if was != is_known or not _replace(rows, place, change, was, matches):
                    return None
                if skipped and not rows:
                    return None
            total += matches - was
        end = self._place(skipped) + self.query.limit
        del rows[: max(0, len(rows) - end - _AFTER)]
        is_complete = len(rows) >= end or skipped + len(rows) == total
        if self._place(skipped) < 0 or not is_complete:
            return None
        return replace(self, rows=rows, skipped=skipped, total=total)

    def to_task_page(self, clock: datetime, max_bytes: int) -> TaskPage | None:
        """Return the page as `Reading.list_tasks` would; None if it may be too long."""
        query, place = self.query, self._place(self.skipped)
        rows = self.rows[::-1][place : place + query.limit]
        tasks_json = f"[{','.join(row.document for row in rows)}]"
        if len(tasks_json.encode()) + _ROUNDING_BYTES * len(rows) > max_bytes:
            return None
        offset = query.offset or 0
        following = None
        if rows and offset + len(rows) < self.total:
            last = rows[-1]
            of_window = clock if query.span else None
            following = Cursor(of_window, last.created_at, UUID(last.task_id), self.total)
        return TaskPage(
            tasks_json=tasks_json,
            total=self.total,
            limit=query.limit,
            offset=offset,
            next_cursor=following.encode(query.fingerprint) if following else None,
            rows=len(rows),
        )

    def _place(self, skipped: int) -> int:
        """Return where the page begins in the rows, the newest of which comes after `skipped`."""
        return (self.query.offset or 0) - skipped


def _replace(rows: list[_Row], place: int, change: Change, was: bool, matches: bool) -> bool:
    """Update a task of the page; return False if the change lacks the text that the page needs.

    `was` and `matches` say whether the task was in the list before, and whether it is now.
    """
    if was:
        del rows[place]
    if matches:
        if change.document is None:
            return False
        rows.insert(place, _Row(change.created_at, change.task_id, change.document))
    return True


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
        rows.append(_Row(created_at, task["task_id"], tasks_json[start:end]))
        start = end + (tasks_json[end] == ",")
    rows.reverse()
    return rows
