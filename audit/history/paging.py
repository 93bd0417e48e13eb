"""Finds a page and its exact total in one snapshot of the database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import asyncpg

from audit.history.cursor import Cursor
from audit.history.location import LONGEST, Counter, Counts, Location, PageRequest
from audit.history.tallies import Tallies
from audit.history.task import TaskPage
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.history.tallies import Connect
    from audit.postgres.pool import Connection

#: The number of tasks in a portion of a tally. Even from a cold disk, PostgreSQL reads a portion
#: well within the time limit of a statement.
_PORTION: Final = 1_000_000
#: A history of so few tasks is tallied within some 20 milliseconds.
_SHORT: Final = 100_000


class Pager:
    """Finds pages by the first counter that knows the filter.

    A counter may remember where a page was. The pager reads there, and checks by what it read that
    this is the page. If not, it locates and reads the page anew in one snapshot.
    """

    def __init__(self, portion: int = _PORTION, short: int = _SHORT) -> None:
        self._tallies = Tallies(portion, short)
        self._counters: tuple[Counter, ...] = (Counts(), _Anywhere(), self._tallies)

    async def find(self, connection: Connection, request: PageRequest) -> TaskPage | None:
        """Return the page; None if its filter has to be tallied first.

        A page has at least one task if any match, however long that task is.
        """
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

    async def tally(self, connect: Connect, request: PageRequest) -> None:
        """Tally the filter, so that `find` finds its pages."""
        await self._tallies.tally(connect, request)


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
) -> TaskPage | None:
    """Read the page where it should be; None if it is elsewhere."""
    row = await _list_tasks(connection, request, location)
    skipped = row["skipped"]
    if skipped is not None and skipped != location.skipped and skipped <= request.offset:
        location = replace(location, skipped=skipped)
        counter.keep(request, location)
        row = await _list_tasks(connection, request, location)
    if not location.fits(request, row):
        return None
    if row["fetched"] and not row["shown"]:
        # The first task alone is too long.
        alone = replace(request, limit=1, max_bytes=LONGEST)
        return await _read(connection, alone, location, counter)
    return _page_of(request, row, row["total"] if location.total is None else location.total)


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


def _page_of(request: PageRequest, row: asyncpg.Record, total: int | None) -> TaskPage:
    """Return the page in a row of `list_tasks`."""
    query = request.query
    following = None
    if row["fetched"] > row["shown"]:
        following = Cursor(request.clock, row["last_at"], row["last_id"], total)
    return TaskPage(
        tasks_json=row["tasks"],
        total=total if query.total == "exact" else None,
        limit=query.limit,
        offset=None if request.position else request.offset,
        next_cursor=following.encode(query.fingerprint) if following else None,
        rows=row["shown"],
        snapshot=row["snapshot"],
    )
