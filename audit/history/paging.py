"""Finds a page and its exact total in one snapshot of the database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

import asyncpg

from audit.history.counts import Counts
from audit.history.location import LONGEST, Counter, Location, PageRequest
from audit.history.tallies import Tallies
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.history.tallies import Connect
    from audit.postgres.pool import Connection

#: The number of tasks in a portion of a tally. Even from a cold disk, PostgreSQL reads a portion
#: well within the time limit of a statement.
_PORTION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its total, both of one snapshot."""

    tasks_json: str
    """The tasks as a JSON array."""
    rows: int
    """How many tasks the page has."""
    total: int | None
    """How many tasks match; None if the request did not ask for it."""
    last: tuple[datetime, UUID] | None
    """`created_at` and `task_id` of the last task; None if no tasks follow the page."""
    snapshot: str

    @classmethod
    def of(cls, row: asyncpg.Record, total: int | None) -> Self:
        """Return the page in a row of `list_tasks`."""
        last = (row["last_at"], row["last_id"]) if row["fetched"] > row["shown"] else None
        return cls(row["tasks"], row["shown"], total, last, row["snapshot"])


class Pager:
    """Finds pages by the first counter that knows the filter.

    A counter may remember where a page was. The pager reads there, and checks by what it read that
    this is the page. If not, it locates and reads the page anew in one snapshot.
    """

    def __init__(self, portion: int = _PORTION) -> None:
        self._tallies = Tallies(portion)
        self._counters: tuple[Counter, ...] = (Counts(), _Anywhere(), self._tallies)

    async def find(self, connection: Connection, request: PageRequest) -> Page | None:
        """Return the page; None if its filter has to be tallied first.

        A page has at least one task if any match, however long that task is.
        """
        page = await self._find(connection, request)
        if page and page.last and not page.rows:
            return await self._find(connection, replace(request, limit=1, max_bytes=LONGEST))
        return page

    async def tally(self, connect: Connect, request: PageRequest) -> None:
        """Tally the filter, so that `find` finds its pages."""
        await self._tallies.tally(connect, request)

    async def _find(self, connection: Connection, request: PageRequest) -> Page | None:
        for counter in self._counters:
            location = await counter.locate(connection, request, anew=False)
            if location is None:
                continue
            page = await _read(connection, request, location, counter)
            if page is not None:
                return page
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                location = await counter.locate(connection, request, anew=True)
                page = await _read(connection, request, location, counter) if location else None
            if page is not None:
                return page
        return None


class _Anywhere:
    """Lets PostgreSQL alone decide where to look, for pages that need no total."""

    async def locate(self, _: Connection, request: PageRequest, *, anew: bool) -> Location | None:
        """Return the whole history."""
        del anew
        return Location(total=request.known_total) if request.query.total == "none" else None

    def keep(self, request: PageRequest, location: Location | None) -> None:
        """Remember nothing."""


async def _read(
    connection: Connection, request: PageRequest, location: Location, counter: Counter
) -> Page | None:
    """Read the page where it should be; None if it is elsewhere."""
    row = await _list_tasks(connection, request, location)
    skipped = row["skipped"]
    if skipped is not None and skipped != location.skipped and skipped <= request.offset:
        location = replace(location, skipped=skipped)
        counter.keep(request, location)
        row = await _list_tasks(connection, request, location)
    if not location.fits(request, row):
        return None
    return Page.of(row, row["total"] if location.total is None else location.total)


async def _list_tasks(
    connection: Connection, request: PageRequest, location: Location
) -> asyncpg.Record:
    position = request.position
    return await fetch_row(
        connection,
        statements.LIST_TASKS,
        **request.filter_values(),
        after_at=position.created_at if position else None,
        after_id=position.task_id if position else None,
        limit=request.limit,
        offset=request.offset - location.skipped,
        max_bytes=request.max_bytes,
        place=(location.since, location.until),
        is_sparse=location.is_sparse,
        edges=location.edges,
    )
