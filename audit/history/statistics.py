"""Statistics: how many tasks match a filter, by time and value, and how long they took.

All numbers of an answer are of one snapshot. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeVar

from audit.errors import Invalid, TooMany
from audit.history.asking import Reading
from audit.history.bar_counts import Numbers, count_bars, find_window
from audit.history.bars import AUTO, Bars, TooManyBars, bars_between
from audit.history.facet_counts import FacetCounter, Values, is_counted
from audit.history.freshness import Version
from audit.history.query import TaskFilter
from audit.history.sources import Source, Sources
from audit.history.states import State
from audit.history.statistics_body import (
    Bucket,
    BucketDurations,
    Durations,
    FacetRefused,
    Facets,
    FacetValue,
    FacetValues,
    Histogram,
    IntentDurations,
    Statistic,
    rfc3339,
)
from audit.history.statistics_query import (
    DurationsQuery,
    FacetsQuery,
    HistogramQuery,
    StatisticsQuery,
)
from audit.postgres import statements
from audit.postgres.pool import fetch_row, fetch_rows
from audit.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from audit.postgres.pool import Connection

_PERCENTILES: Final = ("p50", "p90", "p95", "p99", "max")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)

_Result = TypeVar("_Result")


class Statistics:
    """Answers statistical queries from the database."""

    def __init__(self, sources: Sources, reading: Reading, settings: Settings) -> None:
        self._sources = sources
        self._reading = reading
        self._most_grouped = settings.most_grouped

    async def histogram(
        self,
        query: HistogramQuery,
        *,
        version: Version | None = None,
        clock: datetime | None = None,
    ) -> Statistic[Histogram]:
        """Return how many tasks match `query`, by time and state.

        Raises:
            Invalid: the histogram would have too many buckets.
            TooMany: the counts do not know the filter, and too many tasks match it.
        """
        if not query.is_counted and (problem := await self._too_many(query, version, clock)):
            raise problem

        async def count(connection: Connection, now: datetime) -> Statistic[Histogram]:
            since = query.window_start(now)
            window = await find_window(connection, query, since, now)
            if window is None:
                return Statistic(_empty(query))
            bars = _bars(query, *window)
            edges = _edges(query, since, bars)
            numbers = await count_bars(connection, query, since, edges)
            return Statistic(
                _histogram(query, bars, since, window[1], numbers),
                valid_until=_next_minute(now) if query.ends_now else None,
            )

        return await self._in_snapshot(query, version, clock, count)

    async def facets(
        self, query: FacetsQuery, *, version: Version | None = None, clock: datetime | None = None
    ) -> Statistic[Facets]:
        """Return the most frequent values of some members of the tasks that match `query`.

        A facet for which too many tasks would have to be read says so instead.
        """
        filters = {facet: query.filter_of(facet) for facet in dict.fromkeys(query.facet)}
        read = {
            facet: filtered
            for facet, filtered in filters.items()
            if not is_counted(filtered, facet)
        }
        # Many facets have the same filter.
        limited = {each.fingerprint: each for each in read.values()}
        if not query.is_counted:
            limited[query.fingerprint] = query
        problems = {
            fingerprint: await self._too_many(each, version, clock)
            for fingerprint, each in limited.items()
        }
        refused = {
            facet: problem
            for facet, filtered in read.items()
            if (problem := problems[filtered.fingerprint])
        }
        too_many = None if query.is_counted else problems[query.fingerprint]

        async def count(
            connection: Connection, now: datetime
        ) -> tuple[int, dict[str, Values | None]]:
            counter = FacetCounter(
                connection,
                query.window_start(now),
                most=query.top + 1,
                most_grouped=self._most_grouped,
            )
            total = too_many.matching if too_many else await counter.total(query)
            return total, {
                facet: await counter.values(filtered, facet)
                for facet, filtered in filters.items()
                if facet not in refused
            }

        total, found = await self._in_snapshot(query, version, clock, count)
        for facet, values in found.items():
            if values is None and (problem := await self._too_many(filters[facet], version, clock)):
                refused[facet] = problem
        return Statistic(
            Facets(
                total=total,
                facets={
                    facet: FacetRefused.model_validate(refused[facet].members)
                    if facet in refused
                    else _facet_values(found[facet] or [], query.top)
                    for facet in filters
                },
            )
        )

    async def durations(
        self,
        query: DurationsQuery,
        *,
        version: Version | None = None,
        clock: datetime | None = None,
    ) -> Statistic[Durations]:
        """Return how long the tasks took that match `query`.

        Raises:
            Invalid: there would be too many buckets.
            TooMany: too many tasks match.
        """
        if problem := await self._too_many(query, version, clock):
            raise problem

        async def measure(connection: Connection, now: datetime) -> Statistic[Durations]:
            since = query.window_start(now)
            bars = until = None
            if query.by == "interval" and (
                window := await find_window(connection, query, since, now)
            ):
                bars, until = _bars(query, *window), window[1]
            rows = await fetch_rows(
                connection,
                statements.MEASURE_DURATIONS,
                **query.filter_values(since),
                by_intent=query.by == "intent",
                edges=_edges(query, since, bars) if bars else None,
            )
            groups: list[IntentDurations | BucketDurations] = []
            if query.by == "intent":
                groups = _by_intent(rows)
            elif bars and until:
                groups = _by_bucket(rows, query, bars, since, until)
            (of_all,) = (row for row in rows if row["is_all"])
            return Statistic(
                Durations(
                    **_percentiles(of_all),
                    unfinished=of_all["matching"] - of_all["tasks"],
                    negative=of_all["negative"],
                    groups=groups,
                ),
                valid_until=(
                    _next_minute(now) if query.by == "interval" and query.ends_now else None
                ),
            )

        return await self._in_snapshot(query, version, clock, measure)

    async def _too_many(
        self, query: StatisticsQuery, version: Version | None, clock: datetime | None
    ) -> TooMany | None:
        """Return the problem if more tasks match than may be read one by one."""
        most = self._most_grouped
        page = await self._reading.list_tasks(
            query.page(offset=most, limit=1), version=version, clock=clock
        )
        if page.rows == 0:
            return None
        now = clock or (version.clock if version else datetime.now(UTC))
        fits = _fits(page.tasks[0].created_at, query.until or now)
        assert page.total is not None  # noqa: S101 - the query asks for it
        return TooMany.found(page.total, most, rfc3339(fits))

    async def _in_snapshot(
        self,
        query: TaskFilter,
        version: Version | None,
        clock: datetime | None,
        work: Callable[[Connection, datetime], Awaitable[_Result]],
    ) -> _Result:
        """Do work in a transaction whose statements see one snapshot; it also gets the clock."""

        async def run(source: Source) -> _Result:
            turn = source.reading(version) if query.is_counted else source.tallying(version)
            async with (
                turn as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                now = clock or (version.clock if version else None)
                if now is None:
                    now = (await fetch_row(connection, statements.READ_SNAPSHOT))["clock"]
                return await work(connection, now)

        return await self._sources.run(version, run)


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


def _bars(query: HistogramQuery, since: datetime, until: datetime) -> Bars:
    try:
        return bars_between(since, until, query.zone, interval=query.interval, most=query.most_bars)
    except TooManyBars as refused:
        field = "since" if query.interval == AUTO else "interval"
        detail = str(refused)
    except OverflowError:
        field, detail = "until", "a bucket would end outside of the years 1 to 9999"
    raise Invalid(f"{field}: {detail}", errors=[{"field": field, "detail": detail}])


def _edges(query: HistogramQuery, since: datetime | None, bars: Bars) -> list[datetime]:
    """Return the edges of bars as far as they are in the window of the filter."""
    return [since or bars.edges[0], *bars.edges[1:-1], query.until or bars.edges[-1]]


def _shown(
    query: HistogramQuery, bars: Bars, since: datetime | None, until: datetime
) -> tuple[datetime, datetime]:
    """Return the window that a response shows. Without limits, it is that of all bars."""
    has_end = query.until is not None or query.ends_now
    return since or bars.edges[0], until if has_end else bars.edges[-1]


def _spans(bars: Bars, since: datetime, until: datetime) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each bar, and its members in a response."""
    for bar, (start, end) in enumerate(pairwise(bars.edges), 1):
        yield bar, {"start": start, "end": end, "partial": start < since or end > until}


def _histogram(
    query: HistogramQuery, bars: Bars, since: datetime | None, until: datetime, numbers: Numbers
) -> Histogram:
    since, until = _shown(query, bars, since, until)
    buckets = [
        Bucket(**_totals({state: numbers[bar, state, None] for state in State}), **span)
        for bar, span in _spans(bars, since, until)
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


def _facet_values(found: Values, top: int) -> FacetValues:
    return FacetValues(
        values=[FacetValue(value=value, total=n) for value, n in found[:top]],
        more=len(found) > top,
    )


def _percentiles(row: asyncpg.Record | None) -> dict[str, Any]:
    """Return the members of durations; without a row, those of no tasks."""
    seconds = (row and row["percentiles"]) or [None] * len(_PERCENTILES)
    rounded = [None if each is None else round(each, 6) for each in seconds]
    return {"tasks": row["tasks"] if row else 0, **dict(zip(_PERCENTILES, rounded, strict=True))}


def _by_intent(rows: Sequence[asyncpg.Record]) -> list[IntentDurations | BucketDurations]:
    found = [row for row in rows if not row["is_all"] and row["tasks"]]
    found.sort(key=lambda row: (-row["tasks"], row["intent"] is None, row["intent"] or ""))
    return [IntentDurations(value=row["intent"], **_percentiles(row)) for row in found]


def _by_bucket(
    rows: Sequence[asyncpg.Record],
    query: HistogramQuery,
    bars: Bars,
    since: datetime | None,
    until: datetime,
) -> list[IntentDurations | BucketDurations]:
    found = {row["bar"]: row for row in rows if not row["is_all"]}
    spans = _spans(bars, *_shown(query, bars, since, until))
    return [BucketDurations(**_percentiles(found.get(bar)), **span) for bar, span in spans]
