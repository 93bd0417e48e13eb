"""Counts the tasks in bars of time, and finds the window that bars cover, in one snapshot.

Filters that the counts know are counted by them, and tasks are read only where an edge of a bar
cuts through a bucket of the counts. Other filters are counted by reading all tasks that match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import asyncpg

from audit.history.bar_parts import parts_of
from audit.history.location import BEGINNING
from audit.history.query import TaskFilter
from audit.history.states import State
from audit.history.statistics_query import HistogramQuery
from audit.postgres import statements
from audit.postgres.pool import fetch_row, fetch_rows

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: If more spans than this have to be read, it may be faster to read all matching tasks at once.
_FEW_READS: Final = 4
#: Reading this number of tasks takes PostgreSQL about as long as one more statement.
FEW_TASKS: Final = 5000
#: After all tasks. A year begins here, so that no bucket of the counts is cut.
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)

#: How many tasks there are, by the number of the bar from 1 on, the state and the intent.
Numbers = Counter[tuple[int, State, str | None]]


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
    reads = [(edges[0], edges[-1])]
    if query.is_counted:
        row = await fetch_row(
            connection,
            statements.COUNT_BARS,
            **counted_values(query),
            edges=edges,
            parts=parts_of(edges),
            by_intent=by_intent,
        )
        columns = (row[name] or () for name in ("bars", "statuses", "intents", "numbers"))
        for bar, state, intent, n in zip(*columns, strict=True):
            numbers[bar, State(state), intent] += n
        lacking = spans(row)
        if len(lacking) <= _FEW_READS or numbers.total() > FEW_TASKS * len(lacking):
            reads = lacking
        else:
            numbers.clear()
    for read_since, read_until in reads:
        rows = await fetch_rows(
            connection,
            statements.COUNT_ROWS,
            **query.filter_values(since),
            edges=edges,
            by_intent=by_intent,
            read_since=read_since,
            read_until=read_until,
        )
        for row in rows:
            numbers[row["bar"], State(row["status"]), row["intent"]] += row["n"]
    return numbers


async def count_tasks(connection: Connection, query: TaskFilter, since: datetime | None) -> int:
    """Return how many tasks match a filter whose window begins at `since`."""
    numbers = await count_bars(connection, query, since, whole_window(query, since))
    return numbers.total()


def whole_window(query: TaskFilter, since: datetime | None) -> tuple[datetime, datetime]:
    """Return the edges of one bar that covers the window of a filter."""
    start = since or BEGINNING
    return start, max(start, query.until or _END)


def spans(row: asyncpg.Record) -> list[tuple[datetime, datetime]]:
    """Return the spans that a row of the counts leaves to be read."""
    return list(zip(row["read_since"] or (), row["read_until"] or (), strict=True))


def counted_values(query: TaskFilter) -> dict[str, object]:
    """Return the parameters of statements that ask the counts."""
    return {
        "service": query.service[0] if query.service else "",
        "statuses": query.statuses or None,
        "intents": query.intent or None,
    }
