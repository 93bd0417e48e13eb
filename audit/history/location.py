"""A request for one page, and where in time the tasks of the page are.

The database counts tasks by service, time, state and intent. `Counts` locates the pages of filters
by these. `audit.history.tallies` does the same for all other filters.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import asyncpg

from audit.history.cursor import Cursor
from audit.history.query import TaskQuery
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: PostgreSQL writes no longer text.
LONGEST: Final = 2**30
#: Before all tasks. A year begins here, so that no bucket of the counts is cut.
BEGINNING: Final = datetime(1999, 1, 1, tzinfo=UTC)
#: asyncpg sends this as `infinity`. No task is that late.
INFINITY: Final = datetime.max.replace(tzinfo=UTC)
#: A page is first sought where it was up to this time ago.
_KEEP_SECONDS: Final = 10
_MAX_KEPT: Final = 1000
#: Larger offsets could exceed a bigint in the statement, and no history has that many tasks.
_MAX_OFFSET: Final = 2**62


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page of `query`: tasks from `since` on, after its cursor if it has one."""

    query: TaskQuery
    since: datetime | None
    limit: int
    """The most tasks in the page; 0 if only the total is needed."""
    max_bytes: int = LONGEST
    """The most bytes that the documents of the page have together."""
    clock: datetime | None = None
    """The time that the window ends at, for the cursor of the next page; None without a window."""

    @property
    def position(self) -> Cursor | None:
        """The last task of the page before; None for a page without a cursor."""
        return self.query.position

    @property
    def offset(self) -> int:
        """How many matching tasks come before the page."""
        return self.query.offset or 0

    @property
    def known_total(self) -> int | None:
        """The total of the first page, which the cursor carries."""
        return self.position.total if self.position else None

    @property
    def key(self) -> Hashable:
        """Equal for requests of the same page."""
        return (self.query.fingerprint, self.position, self.offset, self.limit)

    def filter_values(self) -> dict[str, object]:
        """Return the named parameters of `sql/history/filter.sql`."""
        return self.query.filter_values(self.since)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a page is, and its total or how the database counts it."""

    since: datetime | None = None
    until: datetime | None = None
    """The page is in this half-open range; None: no bound."""
    is_sparse: bool = False
    """Whether so few tasks there match that all which do are read and sorted."""
    skipped: int = 0
    """How many matching tasks are at or after `until`."""
    edges: tuple[datetime | None, datetime | None] | None = None
    """The edges of the counts next to `since` and `until` of the filter; None: do not count."""
    total: int | None = None
    """How many tasks match; None if `list_tasks` counts them, or if the request needs no total."""
    snapshot: str | None = None
    """The snapshot in which `total` and `skipped` are exact; None: check them by the row."""

    def fits(self, request: PageRequest, row: asyncpg.Record) -> bool:
        """Return whether a row of `list_tasks` that was read here is the page, and its total."""
        if self.snapshot is not None:
            return bool(row["snapshot"] == self.snapshot)
        # They are NULL if the edges are not those of this database, as after a failover.
        if self.edges and (row["total"] is None or row["skipped"] != self.skipped):
            return False
        return (
            request.limit == 0
            or row["fetched"] > row["shown"]
            or (self.since is None and self.until is None)
            or (
                request.position is None
                and bool(row["fetched"] == max(0, row["total"] - request.offset))
            )
        )


#: Where no page is. No partition is opened for it.
NOWHERE: Final = Location(since=INFINITY)


class Counter(Protocol):
    """Counts the tasks that match a filter, and so knows where a page is."""

    async def locate(
        self, connection: Connection, request: PageRequest, *, anew: bool
    ) -> Location | None:
        """Return where the page is; None if this counter does not know the filter.

        The location may be remembered and out of date. With `anew`, it is the one in the snapshot
        of the transaction.
        """

    def keep(self, request: PageRequest, location: Location | None) -> None:
        """Remember where a page is, if this counter does."""


class Counts:
    """Remembers where the pages were that were asked for lately."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[float, Location | None]] = {}

    async def locate(
        self, connection: Connection, request: PageRequest, *, anew: bool
    ) -> Location | None:
        """Return where the page is; None if the counts do not know the filter."""
        query, position, known_total = request.query, request.position, request.known_total
        if not query.is_counted:
            return None
        good_until, location = self._kept.get(request.key, (0.0, None))
        if not anew and time.monotonic() < good_until and _is_after(request, location):
            return location
        row = await fetch_row(
            connection,
            statements.LOCATE_PAGE,
            service=query.service[0] if query.service else "",
            statuses=query.statuses or None,
            intents=query.intent or None,
            since=request.since,
            until=query.until,
            after_at=position.created_at if position else None,
            offset=min(request.offset, _MAX_OFFSET),
            limit=request.limit,
        )
        location = None
        if row["is_counted"]:
            location = Location(
                since=row["page_since"],
                until=row["page_until"],
                is_sparse=row["is_sparse"],
                skipped=row["skipped"],
                edges=None if known_total is not None else (row["since_edge"], row["until_edge"]),
                total=known_total,
            )
        self.keep(request, location)
        return location

    def keep(self, request: PageRequest, location: Location | None) -> None:
        """Remember where a page is."""
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        self._kept[request.key] = (time.monotonic() + _KEEP_SECONDS, location)


def _is_after(request: PageRequest, location: Location | None) -> bool:
    """Return whether the edge next to `since` is still after it: `since` moves with the clock."""
    since_edge = location.edges[0] if location and location.edges else None
    return request.since is None or since_edge is None or request.since <= since_edge
