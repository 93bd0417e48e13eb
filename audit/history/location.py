"""A request for one page, and where in time the tasks of the page are."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import asyncpg

from audit.history.cursor import Cursor
from audit.history.query import TaskQuery

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: PostgreSQL writes no longer text.
LONGEST: Final = 2**30
#: asyncpg sends this as `infinity`. No task is that late.
INFINITY: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page of `query`: tasks from `since` on, after its cursor if it has one."""

    query: TaskQuery
    since: datetime | None
    limit: int
    """The most tasks in the page; 0 if only the total is needed."""
    max_bytes: int = LONGEST
    """The most bytes that the documents of the page have together."""

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
        """Return where the page is; None if this counter cannot tell.

        The location may be remembered and out of date. With `anew`, it is the one in the snapshot
        of the transaction.
        """

    def keep(self, request: PageRequest, location: Location | None) -> None:
        """Remember where a page is, if this counter does."""
