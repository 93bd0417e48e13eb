"""Counts the most frequent values of a member of tasks, in one snapshot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from audit.history.bar_counts import (
    FEW_TASKS,
    count_bars,
    counted_values,
    spans_of,
    unknown_parts,
    whole_window,
)
from audit.history.bar_parts import parts_of
from audit.history.query import TaskFilter
from audit.postgres import statements
from audit.postgres.pool import fetch_rows

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: At most this number of services is counted one by one to find the most frequent ones.
_MOST_SERVICES: Final = 1000
#: The fewest services that one statement counts.
_FEW_SERVICES: Final = 16

#: How many tasks each value has, the most frequent value first.
Values = list[tuple[str | None, int]]


def is_counted(query: TaskFilter, facet: str) -> bool:
    """Return whether the counts know the values of a facet under a filter."""
    if facet == "service":
        return query.is_counted and not query.service
    return query.is_counted and facet in ("status", "intent")


async def count_values(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    facet: str,
    *,
    total: int,
    most: int,
    most_grouped: int,
) -> Values | None:
    """Return the `most` most frequent values.

    `since` is the start of the window of the filter. `total` is how many tasks match all filters of
    the request. The result is None if too many services would have to be counted one by one, and
    more tasks than `most_grouped` match.
    """
    if not is_counted(query, facet):
        return await _group_rows(connection, query, since, facet, most)
    if facet == "service":
        return await _top_services(connection, query, since, total, most, most_grouped)
    edges = whole_window(query, since)
    numbers = await count_bars(connection, query, since, edges, by_intent=facet == "intent")
    totals: Counter[str | None] = Counter()
    for (_, state, intent), n in numbers.items():
        totals[state.value if facet == "status" else intent] += n
    return _most_frequent(totals, most)


async def _group_rows(
    connection: Connection, query: TaskFilter, since: datetime | None, facet: str, most: int
) -> Values:
    if facet == "service":
        return await _group_services(connection, query, since, most=most)
    rows = await fetch_rows(
        connection,
        statements.GROUP_ROWS,
        **query.filter_values(since),
        member=facet,
        most=most,
    )
    return [(row["value"], row["n"]) for row in rows]


async def _group_services(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    *,
    read: tuple[datetime, datetime] | None = None,
    candidates: Sequence[str] | None = None,
    most: int,
) -> Values:
    """Return how many tasks each service has, by reading tasks: all, or those of a span."""
    rows = await fetch_rows(
        connection,
        statements.GROUP_SERVICES,
        **query.filter_values(since),
        read_since=read[0] if read else None,
        read_until=read[1] if read else None,
        candidates=candidates,
        most=most,
    )
    return [(row["value"], row["n"]) for row in rows]


async def _top_services(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    total: int,
    most: int,
    most_grouped: int,
) -> Values | None:
    """Return the services with the most tasks, by the counts.

    If few tasks match, they are read. Otherwise services are counted in the order of an upper bound
    of their numbers, until the next bound is below the number of the last service to return.
    """
    if total <= FEW_TASKS:
        return await _group_services(connection, query, since, most=most)
    edges = whole_window(query, since)
    rows = await fetch_rows(
        connection,
        statements.BOUND_SERVICES,
        **counted_values(query),
        window_since=edges[0],
        window_until=edges[1],
        whole=[part for part in parts_of(edges) if part.grain in ("month", "year")],
    )
    bounds = [(row["service"], row["bound"]) for row in rows]
    totals: Counter[str | None] = Counter()
    remaining = iter(bounds)
    for begun in range(0, len(bounds), max(most, _FEW_SERVICES)):
        top = _most_frequent(totals, most)
        if len(top) == most and bounds[begun][1] < top[-1][1]:
            return top
        if begun >= _MOST_SERVICES:
            if total > most_grouped:
                return None
            return await _group_services(connection, query, since, most=most)
        candidates = [service for service, _ in islice(remaining, max(most, _FEW_SERVICES))]
        totals += await _count_services(connection, query, since, edges, candidates)
    return _most_frequent(totals, most)


async def _count_services(
    connection: Connection,
    query: TaskFilter,
    since: datetime | None,
    edges: Sequence[datetime],
    candidates: Sequence[str],
) -> Counter[str | None]:
    """Return how many tasks these services have."""
    totals: Counter[str | None] = Counter()
    parts = parts_of(edges)
    #: The counts of many services lack the same span. It is read once for all of them.
    lacking: defaultdict[tuple[datetime, datetime], list[str]] = defaultdict(list)
    rows = await fetch_rows(
        connection,
        statements.COUNT_SERVICES,
        **counted_values(query),
        candidates=candidates,
        edges=edges,
        parts=parts,
    )
    for row in rows:
        totals[row["service"]] += sum(row["numbers"] or ())
        for span in spans_of(unknown_parts(row, parts)):
            lacking[span].append(row["service"])
    for span, services in lacking.items():
        found = await _group_services(
            connection, query, since, read=span, candidates=services, most=len(services)
        )
        for service, n in found:
            totals[service] += n
    return totals


def _most_frequent(totals: Counter[str | None], most: int) -> Values:
    """Return the most frequent values; those of the same number by name, and None last."""
    found = [(value, n) for value, n in totals.items() if n > 0]
    found.sort(key=lambda each: (-each[1], each[0] is None, each[0] or ""))
    return found[:most]
