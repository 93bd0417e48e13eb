"""Counts the tasks in bars of time, and finds the window that bars cover, in one snapshot.

Filters that the counts know are counted by them, and tasks are read only where an edge of a bar
cuts through a bucket of the counts. Other filters are counted by reading all tasks that match.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import asyncpg

from audit.history.bar_parts import Part, parts_of
from audit.history.location import BEGINNING
from audit.history.query import TaskFilter
from audit.history.states import State
from audit.history.statistics_query import HistogramQuery
from audit.postgres import statements
from audit.postgres.pool import fetch_row, fetch_rows

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: At most this number of spans is read by one statement each.
_FEW_SPANS: Final = 4
#: Reading this number of tasks takes PostgreSQL about as long as finding one more span.
_TASKS_OF_SPAN: Final = 100
#: After all tasks. A year begins here, so that no bucket of the counts is cut.
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)

#: How many tasks there are, by the number of the bar from 1 on, the state and the intent.
Numbers = Counter[tuple[int, State, str | None]]
#: From a time on, and before another one.
Span = tuple[datetime, datetime]


async def find_window(
    connection: Connection, query: HistogramQuery, since: datetime | None, clock: datetime
) -> tuple[datetime, datetime] | None:
    """Return the time that the bars cover; None if it has no start and no task matches.

    Without a limit, it begins with the oldest matching task and ends after the newest one.
    """
    until = query.until
    if since is None:
        oldest = await _find_oldest(connection, query)
        if oldest is None:
            return None
        since = oldest
    if until is None:
        # Tasks may be of the next 24 hours.
        from_time = max(since, clock) if query.ends_now else since
        newest = await _find_newest(connection, query, from_time)
        until = max(since, clock + _SECOND) if query.ends_now else since
        until = max(until, newest + _MICROSECOND) if newest else until
    return since, until


async def _find_oldest(connection: Connection, query: TaskFilter) -> datetime | None:
    """Return when the oldest task was created that matches a filter without a start."""
    since = until = None
    if query.is_counted:
        since, until = await _outermost_bucket(connection, query, is_newest=False)
        if since is None:
            return None
    oldest: datetime | None = (await _measure_rows(connection, query, since, until))["oldest"]
    return oldest


async def _find_newest(
    connection: Connection, query: TaskFilter, from_time: datetime
) -> datetime | None:
    """Return when the newest matching task was created; None if that is before `from_time`."""
    until = None
    if query.is_counted:
        since, until = await _outermost_bucket(connection, query, is_newest=True)
        if until is None or until <= from_time:
            return None
        from_time = max(from_time, since)
    newest: datetime | None = (await _measure_rows(connection, query, from_time, until))["newest"]
    return newest


async def _outermost_bucket(
    connection: Connection, query: TaskFilter, *, is_newest: bool
) -> asyncpg.Record:
    return await fetch_row(
        connection, statements.OUTERMOST_BUCKET, **counted_values(query), is_newest=is_newest
    )


async def _measure_rows(
    connection: Connection, query: TaskFilter, since: datetime | None, until: datetime | None
) -> asyncpg.Record:
    return await fetch_row(
        connection,
        statements.MEASURE_ROWS,
        **query.filter_values(query.since),
        read_since=since,
        read_until=until,
    )


async def count_bars(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    edges: Sequence[datetime],
    *,
    by_intent: bool = False,
) -> Numbers:
    """Return how many tasks match in each bar. Without `by_intent`, each intent is None.

    `since` is the start of the window of the filter. The bars must lie in the window.
    """
    numbers: Numbers = Counter()
    # All tasks of each bar.
    unknown = [
        Part(bar, 1, None, start, start, end) for bar, (start, end) in enumerate(pairwise(edges), 1)
    ]
    if query.is_counted:
        parts = parts_of(edges)
        row = await fetch_row(
            connection,
            statements.COUNT_BARS,
            **counted_values(query),
            edges=edges,
            parts=parts,
            by_intent=by_intent,
        )
        columns = (row[name] or () for name in ("bars", "statuses", "intents", "numbers"))
        for bar, state, intent, n in zip(*columns, strict=True):
            numbers[bar, State(state), intent] += n
        some = unknown_parts(row, parts)
        if await _is_less_than_all(connection, spans_of(some), edges, numbers.total()):
            unknown = some
        else:
            numbers.clear()
    await _add_parts(connection, query, since, unknown, numbers, by_intent=by_intent)
    return +numbers


async def _is_less_than_all(
    connection: Connection, spans: Sequence[Span], edges: Sequence[datetime], matching: int
) -> bool:
    """Return whether it is less work to read some spans than all tasks that match a filter.

    In many spans, the tasks are read that do not match, too.
    """
    if len(spans) <= _FEW_SPANS:
        return True
    ends = (edges[0], edges[-1])
    row = await fetch_row(
        connection,
        statements.COUNT_BARS,
        service="",
        statuses=None,
        intents=None,
        edges=ends,
        parts=parts_of(ends),
        by_intent=False,
    )
    share = sum((end - start for start, end in spans), timedelta()) / (ends[1] - ends[0])
    return share * sum(row["numbers"] or ()) + _TASKS_OF_SPAN * len(spans) < matching


async def _add_parts(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    parts: Sequence[Part],
    numbers: Numbers,
    *,
    by_intent: bool,
) -> None:
    """Add the tasks of some parts of bars to the numbers, by reading them once."""
    edges = sorted({edge for part in parts for edge in (part.since, part.until)})
    spans = spans_of(parts)
    values = {**query.filter_values(since), "edges": edges, "by_intent": by_intent}
    if len(spans) > _FEW_SPANS:
        starts, ends = zip(*spans, strict=True)
        rows = await fetch_rows(
            connection, statements.COUNT_SPANS, **values, read_since=starts, read_until=ends
        )
    else:
        rows = [
            row
            for start, end in spans
            for row in await fetch_rows(
                connection, statements.COUNT_ROWS, **values, read_since=start, read_until=end
            )
        ]
    # A segment may be in several parts: added to one bar, and subtracted from the next one.
    segments: defaultdict[datetime, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        segments[edges[row["segment"] - 1]].append(row)
    for part in parts:
        for start in edges[bisect_left(edges, part.since) : bisect_left(edges, part.until)]:
            for row in segments[start]:
                numbers[part.bar, State(row["status"]), row["intent"]] += part.sign * row["n"]


async def count_tasks(connection: Connection, query: TaskFilter, since: datetime | None) -> int:
    """Return how many tasks match a filter whose window begins at `since`."""
    numbers = await count_bars(connection, query, since, whole_window(query, since))
    return numbers.total()


def whole_window(query: TaskFilter, since: datetime | None) -> tuple[datetime, datetime]:
    """Return the edges of one bar that covers the window of a filter."""
    start = since or BEGINNING
    return start, max(start, query.until or _END)


def unknown_parts(row: asyncpg.Record, parts: Sequence[Part]) -> list[Part]:
    """Return the parts that the counts do not know, according to a row that they returned."""
    return [parts[number - 1] for number in row["unknown"] or ()]


def spans_of(parts: Sequence[Part]) -> list[Span]:
    """Return the spans of time that some parts cover, in ascending order and without overlaps."""
    spans: list[Span] = []
    for since, until in sorted((part.since, part.until) for part in parts):
        if spans and since <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(until, spans[-1][1]))
        else:
            spans.append((since, until))
    return spans


def counted_values(query: TaskFilter) -> dict[str, object]:
    """Return the parameters of statements that ask the counts."""
    return {
        "service": query.service[0] if query.service else "",
        "statuses": query.statuses or None,
        "intents": query.intent or None,
    }
