"""Counts the most frequent values of members of tasks, in one snapshot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from audit.history.bar_counts import (
    Numbers,
    Span,
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
#: Reading this number of tasks takes PostgreSQL about as long as finding bounds for all services.
_TASKS_OF_BOUNDS: Final = 20_000
#: Reading this number of tasks takes PostgreSQL about as long as counting one service.
_TASKS_OF_SERVICE: Final = 500

#: How many tasks each value has, the most frequent value first.
Values = list[tuple[str | None, int]]


def is_counted(query: TaskFilter, facet: str) -> bool:
    """Return whether the counts know the values of a facet under a filter."""
    if facet == "service":
        return query.is_counted and not query.service
    return query.is_counted and facet in ("status", "intent")


class FacetCounter:
    """Counts the tasks that match a filter, and the most frequent values of their members.

    The filters have windows that begin at the same time. Those that are equal are counted once.
    """

    def __init__(
        self, connection: Connection, since: datetime | None, *, most: int, most_grouped: int
    ) -> None:
        """`most` is how many values to return, and `most_grouped` how many tasks may be read."""
        self._connection = connection
        self._since = since
        self._most = most
        self._most_grouped = most_grouped
        self._numbers: dict[bytes, Numbers] = {}

    async def total(self, query: TaskFilter) -> int:
        """Return how many tasks match a filter."""
        return (await self._count(query)).total()

    async def values(self, query: TaskFilter, facet: str) -> Values | None:
        """Return the most frequent values of a facet among the tasks that match a filter.

        The result is None if too many services would have to be counted one by one, and too many
        tasks match to be read.
        """
        if not is_counted(query, facet):
            return await self._group_rows(query, facet)
        if facet == "service":
            return await self._top_services(query)
        totals: Counter[str | None] = Counter()
        for (_, state, intent), n in (await self._count(query)).items():
            totals[state.value if facet == "status" else intent] += n
        return _most_frequent(totals, self._most)

    async def _count(self, query: TaskFilter) -> Numbers:
        numbers = self._numbers.get(query.fingerprint)
        if numbers is None:
            numbers = self._numbers[query.fingerprint] = await count_bars(
                self._connection,
                query,
                self._since,
                whole_window(query, self._since),
                by_intent=query.is_counted,
            )
        return numbers

    async def _group_rows(self, query: TaskFilter, facet: str) -> Values:
        if facet == "service":
            return await self._group_services(query, most=self._most)
        rows = await fetch_rows(
            self._connection,
            statements.GROUP_ROWS,
            **query.filter_values(self._since),
            member=facet,
            most=self._most,
        )
        return [(row["value"], row["n"]) for row in rows]

    async def _group_services(
        self,
        query: TaskFilter,
        *,
        read: Span | None = None,
        candidates: Sequence[str] | None = None,
        most: int,
    ) -> Values:
        """Return how many tasks each service has, by reading tasks: all, or those of a span."""
        rows = await fetch_rows(
            self._connection,
            statements.GROUP_SERVICES,
            **query.filter_values(self._since),
            read_since=read[0] if read else None,
            read_until=read[1] if read else None,
            candidates=candidates,
            most=most,
        )
        return [(row["value"], row["n"]) for row in rows]

    async def _top_services(self, query: TaskFilter) -> Values | None:
        """Return the services with the most tasks, by the counts.

        Services are counted in the order of an upper bound of their numbers, until the next bound
        is below the number of the last service to return. If it is less work, all tasks are read.
        In a short window, the bounds of rare services are far too high, and many are to be counted.
        """
        total = await self.total(query)
        if total <= _TASKS_OF_BOUNDS:
            return await self._group_services(query, most=self._most)
        edges = whole_window(query, self._since)
        rows = await fetch_rows(
            self._connection,
            statements.BOUND_SERVICES,
            **counted_values(query),
            window_since=edges[0],
            window_until=edges[1],
            whole=[part for part in parts_of(edges) if part.grain in ("month", "year")],
        )
        bounds = [(row["service"], row["bound"]) for row in rows]
        totals: Counter[str | None] = Counter()
        remaining = iter(bounds)
        for begun in range(0, len(bounds), max(self._most, _FEW_SERVICES)):
            top = _most_frequent(totals, self._most)
            if len(top) == self._most and bounds[begun][1] < top[-1][1]:
                return top
            if begun >= min(total / _TASKS_OF_SERVICE, _MOST_SERVICES):
                if total <= self._most_grouped:
                    return await self._group_services(query, most=self._most)
                if begun >= _MOST_SERVICES:
                    return None
            some = islice(remaining, max(self._most, _FEW_SERVICES))
            totals += await self._count_services(query, edges, [service for service, _ in some])
        return _most_frequent(totals, self._most)

    async def _count_services(
        self, query: TaskFilter, edges: Sequence[datetime], candidates: Sequence[str]
    ) -> Counter[str | None]:
        """Return how many tasks these services have."""
        totals: Counter[str | None] = Counter()
        parts = parts_of(edges)
        #: The counts of many services lack the same span. It is read once for all of them.
        lacking: defaultdict[Span, list[str]] = defaultdict(list)
        rows = await fetch_rows(
            self._connection,
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
            found = await self._group_services(
                query, read=span, candidates=services, most=len(services)
            )
            for service, n in found:
                totals[service] += n
        return totals


def _most_frequent(totals: Counter[str | None], most: int) -> Values:
    """Return the most frequent values; those of the same number by name, and None last."""
    found = [(value, n) for value, n in totals.items() if n > 0]
    found.sort(key=lambda each: (-each[1], each[0] is None, each[0] or ""))
    return found[:most]
