"""Statistics: how many tasks match a filter, by time and state. Knows no HTTP.

All numbers of an answer are of one snapshot. Filters that the counts know are counted by them, and
the tasks themselves are read only where an edge of a bar cuts through a bucket of the counts. For
other filters all matching tasks are read, if there are not too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import asyncpg
from pydantic import BaseModel, PlainSerializer

from audit.errors import Invalid, TooMany
from audit.history.asking import Reading, require_server
from audit.history.bars import AUTO, Bars, TooManyBars, bars_between
from audit.history.query import TaskFilter
from audit.history.states import State
from audit.history.statistics_query import HistogramQuery, StatisticsQuery
from audit.history.task import Output
from audit.history.values import Timestamp
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import fetch_row
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: If more spans than this have to be read, they are read as one.
_MOST_READS: Final = 4
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_MINUTE: Final = timedelta(minutes=1)


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Time = Annotated[Timestamp, PlainSerializer(_rfc3339, return_type=str, when_used="json")]


class Numbers(Output):
    """How many tasks there are, by state."""

    total: int
    status: dict[State, int]
    """Always all six states."""


class Bucket(Numbers):
    """The tasks created from `start` on and before `end`."""

    start: Time
    end: Time
    partial: bool
    """Whether `since` or `until` cuts off a part of the bucket."""


class Histogram(Numbers):
    """How many tasks match, by time and state."""

    interval: str
    """The length of a bucket, also if `auto` was asked for."""
    tz: str
    since: Time | None
    until: Time | None
    """The window: `since` is in the first bucket, and `until` is the end of the last one or in it.
    null if no task matches a filter without a start."""
    failure_rate: float | None
    """The failed tasks divided by the failed and completed ones, with six decimals. null if there
    are none of either."""
    buckets: list[Bucket]
    """Ascending and without gaps: the `end` of one is the `start` of the next."""


Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Statistic(Generic[Body]):
    """The body of a response, and for how long it is current while no task changes."""

    body: Body
    valid_until: datetime | None = None
    rows: int = 0
    total: int | None = None
    next_cursor: str | None = None

    def to_json(self) -> bytes:
        """Return the body of the response."""
        return self.body.model_dump_json().encode()


class Statistics:
    """Answers statistical queries from the database."""

    def __init__(self, database: Database, reading: Reading, settings: Settings) -> None:
        self._database = database
        self._reading = reading
        self._most_grouped = settings.most_grouped

    async def histogram(
        self, query: HistogramQuery, *, clock: datetime | None = None, server: str | None = None
    ) -> Statistic[Histogram]:
        """Return how many tasks match `query`, by time and state.

        Raises:
            Invalid: the histogram would have too many buckets.
            TooMany: the counts do not know the filter, and too many tasks match it.
        """
        if not query.is_counted:
            await self._require_few(query, clock, server)
        async with self._snapshot(query, clock, server) as (connection, now):
            since = query.window_start(now)
            window = await _window(connection, query, since, now)
            if window is None:
                return Statistic(_empty(query))
            bars = _bars(query, *window)
            edges = [since or bars.edges[0], *bars.edges[1:-1], query.until or bars.edges[-1]]
            numbers = await _count_bars(connection, query, since, edges)
        until = window[1] if query.ends_now else edges[-1]
        return Statistic(
            _histogram(query, bars, edges[0], until, numbers),
            valid_until=_next_minute(now) if query.ends_now else None,
        )

    async def _require_few(
        self, query: StatisticsQuery, clock: datetime | None, server: str | None
    ) -> None:
        """Raise TooMany if more tasks match than may be read one by one."""
        most = self._most_grouped
        page = await self._reading.list_tasks(
            query.page(offset=most, limit=1), clock=clock, server=server
        )
        if page.rows == 0:
            return
        matching = page.total
        assert matching is not None  # noqa: S101 - the query asks for it
        fits = _fits(page.tasks[0].created_at, query.until or clock or datetime.now(UTC))
        raise TooMany(
            f"{matching:,} tasks match, and at most {most:,} can be grouped one by one:"
            f" ask for those since {_rfc3339(fits)}",
            members={"matching": matching, "at_most": most, "fits": _rfc3339(fits)},
        )

    @asynccontextmanager
    async def _snapshot(
        self, query: TaskFilter, clock: datetime | None, server: str | None
    ) -> AsyncIterator[tuple[Connection, datetime]]:
        """Open a transaction whose statements see one snapshot; yield it with the clock."""
        turn = (
            self._database.reading() if query.is_counted else self._database.tallying(again=False)
        )
        async with turn as connection:
            require_server(connection, server)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                if clock is None:
                    clock = (await fetch_row(connection, statements.READ_SNAPSHOT))["clock"]
                yield connection, clock


def _fits(created_at: datetime, end: datetime) -> datetime:
    """Return the start of a day, hour, minute or second after a time, but before `end`."""
    for step in (timedelta(days=1), timedelta(hours=1), _MINUTE):
        fits = created_at - (created_at - _EPOCH) % step + step
        if fits < end:
            return fits
    return created_at.replace(microsecond=0) + _SECOND


def _next_minute(clock: datetime) -> datetime:
    """Return when bars that end now may come or go: all edges are whole minutes."""
    return clock.replace(second=0, microsecond=0) + _MINUTE


async def _window(
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
        connection, statements.OUTERMOST_BUCKET, **_counted_values(query), is_newest=is_newest
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


def _bars(query: HistogramQuery, since: datetime, until: datetime) -> Bars:
    try:
        return bars_between(since, until, query.zone, interval=query.interval, most=query.most_bars)
    except TooManyBars as refused:
        field = "since" if query.interval == AUTO else "interval"
        detail = str(refused)
    except OverflowError:
        field, detail = "until", "a bucket would end outside of the years 1 to 9999"
    raise Invalid(f"{field}: {detail}", errors=[{"field": field, "detail": detail}])


async def _count_bars(
    connection: Connection, query: TaskFilter, since: datetime | None, edges: list[datetime]
) -> Mapping[tuple[int, str], int]:
    """Return how many tasks match in each bar, by the number of the bar from 1 on and the state."""
    numbers: Counter[tuple[int, str]] = Counter()
    reads = [(edges[0], edges[-1])]
    if query.is_counted:
        row = await fetch_row(
            connection,
            statements.COUNT_BARS,
            **_counted_values(query),
            edges=edges,
            by_intent=False,
            most_reads=_MOST_READS,
        )
        for bar, state, n in zip(
            row["bars"] or (), row["statuses"] or (), row["numbers"] or (), strict=True
        ):
            numbers[bar, state] += n
        reads = list(zip(row["read_since"] or (), row["read_until"] or (), strict=True))
    for read_since, read_until in reads:
        values = statements.COUNT_ROWS.values(
            {
                **query.filter_values(since),
                "edges": edges,
                "by_intent": False,
                "read_since": read_since,
                "read_until": read_until,
            }
        )
        for row in await connection.fetch(statements.COUNT_ROWS, *values):
            numbers[row["bar"], row["status"]] += row["n"]
    return numbers


def _counted_values(query: TaskFilter) -> dict[str, object]:
    """Return the parameters of statements that ask the counts."""
    return {
        "service": query.service[0] if query.service else "",
        "statuses": query.statuses or None,
        "intents": query.intent or None,
    }


def _histogram(
    query: HistogramQuery,
    bars: Bars,
    since: datetime,
    until: datetime,
    numbers: Mapping[tuple[int, str], int],
) -> Histogram:
    buckets = [
        Bucket(
            **_totals({state: numbers.get((bar, state), 0) for state in State}),
            start=start,
            end=end,
            partial=start < since or end > until,
        )
        for bar, (start, end) in enumerate(pairwise(bars.edges), 1)
    ]
    status = {state: sum(bucket.status[state] for bucket in buckets) for state in State}
    ended = status[State.FAILED] + status[State.COMPLETED]
    return Histogram(
        **_totals(status),
        interval=bars.interval,
        tz=query.tz,
        since=since,
        until=until,
        failure_rate=round(status[State.FAILED] / ended, 6) if ended else None,
        buckets=buckets,
    )


def _empty(query: HistogramQuery) -> Histogram:
    """Return the histogram of a filter without a start that no task matches."""
    return Histogram(
        **_totals(dict.fromkeys(State, 0)),
        interval=query.interval,
        tz=query.tz,
        since=None,
        until=None,
        failure_rate=None,
        buckets=[],
    )


def _totals(status: dict[State, int]) -> dict[str, Any]:
    return {"total": sum(status.values()), "status": status}
