"""Finds a page and its total in one snapshot, wherever in the history it lies.

Both ways of counting first tell where the page should be; `list_tasks` then reads there, and tells
what it found. Where writers have moved the page meanwhile, the next attempt looks again. So what
is remembered here decides how fast an answer is, never what it says.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from uuid import UUID

import asyncpg

from audit.errors import Unavailable
from audit.history import tallies
from audit.history.cursor import Cursor
from audit.history.query import TaskQuery
from audit.history.tallies import BEGINNING, Place, Tallies, Tally, start_of_day
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

    class Connect(Protocol):
        """Waits in the queue of tallies for a connection; `again` for a portion but the first."""

        def __call__(  # noqa: D102 - the class says it
            self, *, again: bool
        ) -> AbstractAsyncContextManager[Connection]: ...


_ATTEMPTS: Final = 5
#: So long a page is sought first where it was.
_PLACE_SECONDS: Final = 10
_MOST_PLACES: Final = 1000
#: So many tasks are read well within a statement's time, in the worst case and from a cold disk.
_PORTION: Final = 1_000_000
_MOST_PORTIONS: Final = 10_000
_DAY: Final = timedelta(days=1)
#: Where no page is sought, so that no partition is opened for it.
_NOWHERE: Final = Place(BEGINNING, BEGINNING)
#: PostgreSQL writes no longer text.
_LONGEST: Final = 2**30


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page of `query`: tasks from `since` on, after `position` if there is one."""

    query: TaskQuery
    since: datetime | None
    position: Cursor | None
    limit: int
    """0: only the total is wanted."""
    max_bytes: int = _LONGEST
    """A page ends before the task that would make it longer."""

    @property
    def offset(self) -> int:
        """Matching tasks to skip."""
        return self.query.offset or 0

    @property
    def cut_day(self) -> datetime | None:
        """The day of which `days` cuts off more each second; None: it does not."""
        return start_of_day(self.since) if self.since and self.query.span else None

    @property
    def tally_name(self) -> Hashable:
        """What the tally is remembered by.

        Another day that is cut is another tally: clocks may be asked out of order, and what one
        cut off the next one wants whole.
        """
        return (self.query.fingerprint, self.cut_day)

    def values(self, limit: int, offset: int) -> tuple[Any, ...]:
        """Return the first parameters of `list_tasks`."""
        query, position = self.query, self.position
        return (
            *(query.statuses or None, query.service or None, query.intent or None),
            *(self.since, query.until, query.created_by, query.project_id, query.outcome),
            *(position and position.created_at, position and position.task_id),
            *(limit, offset),
        )


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

    @classmethod
    def of(cls, row: asyncpg.Record, total: int | None) -> Self:
        """Return the page in a row of `list_tasks`."""
        last = (row["last_at"], row["last_id"]) if row["fetched"] > row["shown"] else None
        return cls(row["tasks"], row["shown"], total, last)


class Pager:
    """Remembers of the requests made lately where their pages lay, and what matched by day."""

    def __init__(self, portion: int = _PORTION) -> None:
        self._portion = portion
        self._places = _Places()
        self._tallies = Tallies()

    async def find(self, connection: Connection, request: PageRequest) -> Page | None:
        """Return the page, and the exact total in the same snapshot; None: `tally` it first.

        A page has one task at least, however long that is.
        """
        found = await self._find(connection, request)
        if found and found.last and not found.rows:
            return await self._find(connection, replace(request, limit=1, max_bytes=_LONGEST))
        return found

    async def _find(self, connection: Connection, request: PageRequest) -> Page | None:
        if request.query.is_counted:
            found = await self._counted(connection, request)
            if found:
                return found
        if request.query.total == "none":
            return await self._uncounted(connection, request)
        return await self._tallied(connection, request)

    async def _uncounted(self, connection: Connection, request: PageRequest) -> Page:
        """Read the page without counting what matches: PostgreSQL alone decides where it looks."""
        position = request.position
        row = await fetch_row(
            connection,
            statements.LIST_TASKS,
            *request.values(request.limit, request.offset),
            *(None, None, None, None),
            *(None, None, False),
            *(None, None, None, None, request.max_bytes, None, None),
        )
        return Page.of(row, position.total if position else None)

    async def _counted(self, connection: Connection, request: PageRequest) -> Page | None:
        """Go by the database's counts; None: they are of no use here."""
        query, position = request.query, request.position
        counted = query.service[0] if query.service else ""
        page = (query.fingerprint, position, request.offset, request.limit)
        for _ in range(_ATTEMPTS):
            at = self._places.find(page, request.since)
            if at is None:
                at = await fetch_row(
                    connection,
                    statements.LOCATE_PAGE,
                    *(counted, query.statuses or None, query.intent or None),
                    *(request.since, query.until, position and position.created_at),
                    *(request.offset, request.limit),
                )
                self._places.keep(page, at)
            if not at["is_counted"]:
                return None
            row = await fetch_row(
                connection,
                statements.LIST_TASKS,
                *request.values(request.limit, request.offset),
                position and position.total,
                *(counted, at["since_edge"], at["until_edge"]),
                *(at["page_since"], at["page_until"], at["is_sparse"]),
                *(None, None, None, None, request.max_bytes, None, None),
            )
            total, skipped = row["total"], row["skipped"]
            place = Place(at["page_since"], at["page_until"])
            # NULL: an edge is none, as after a failover to a server that is behind.
            is_there = None not in (total, skipped) and skipped <= request.offset
            if is_there and _is_whole(request, row, total, place):
                return Page.of(row, total)
            self._places.forget(page)
        return None

    async def _tallied(self, connection: Connection, request: PageRequest) -> Page | None:
        """Go by the tally that is remembered; the tasks of the days that changed are counted."""
        position, limit = request.position, request.limit
        for attempts_left in reversed(range(_ATTEMPTS)):
            known = self._tallies.find(request.tally_name)
            if known is None or not known.is_whole:
                return None
            place = Place()
            if attempts_left:
                place = (
                    known.place_after(position.created_at, limit)
                    if position
                    else known.place_of(request.offset, limit)
                )
            row, tally = await self._update(connection, request, known, BEGINNING, place)
            if tally is None:
                return None
            skipped = tally.at_or_after(place.page_until) if place.page_until else 0
            if skipped == place.skipped and _is_whole(request, row, tally.total, place):
                known_total = position.total if position else None
                return Page.of(row, tally.total if known_total is None else known_total)
        raise AssertionError("the last attempt looks everywhere")

    async def tally(self, connect: Connect, request: PageRequest) -> None:
        """Tally what matches, in portions: what is done is kept, whatever becomes of the rest.

        No connection is held between two portions, nor by those who wait for the same tally.
        """
        async with self._tallies.turn(request.tally_name):
            await self._tally(connect, request)

    async def _tally(self, connect: Connect, request: PageRequest) -> None:
        for portion in range(_MOST_PORTIONS):
            known = self._tallies.find(request.tally_name)
            if known is not None and known.is_whole:
                return
            async with connect(again=portion > 0) as connection:
                until = known.since if known else request.query.until
                at = await fetch_row(connection, statements.LOCATE_PORTION, until, self._portion)
                since = at["since"]
                if since is None or (request.since and since <= request.since):
                    since = BEGINNING
                await self._update(connection, request, known, since, None)
        raise Unavailable("other servers answer all the time", retry_after_seconds=1)

    async def _update(
        self,
        connection: Connection,
        request: PageRequest,
        known: Tally | None,
        since: datetime,
        place: Place | None,
    ) -> tuple[asyncpg.Record, Tally | None]:
        """Bring a tally up to date, and on to the days from `since`, and read the page at `place`.

        The tally that is returned, and kept, is None where the server is another one by now.
        """
        name = request.tally_name
        limit, offset = (request.limit, request.offset - place.skipped) if place else (0, 0)
        place = place or _NOWHERE
        # Most changes are recent. What of them lies elsewhere is tallied by another attempt.
        today = start_of_day(datetime.now(UTC))
        fresh_since = min(today - _DAY, request.cut_day or today)
        fresh_until = today + 2 * _DAY
        try:
            while True:
                row = await fetch_row(
                    connection,
                    statements.LIST_TASKS,
                    *request.values(limit, offset),
                    *(None, None, None, None),
                    *(place.page_since, place.page_until, place.is_sparse),
                    *(known and known.fold, request.cut_day, known and known.since, since),
                    *(request.max_bytes, fresh_since, fresh_until),
                )
                changed = tallies.changed_days(row, known)
                if all(fresh_since <= day < fresh_until for day in changed):
                    break
                fresh_since = min(fresh_since, *changed)
                fresh_until = max(fresh_until, max(changed) + _DAY)
        except asyncpg.QueryCanceledError:
            # So many days may have changed that to tally all anew is faster.
            self._tallies.forget(name)
            raise
        tally = tallies.updated(known, row, since)
        if tally is None:
            self._tallies.forget(name)
        else:
            self._tallies.keep(name, tally)
        return row, tally


def _is_whole(request: PageRequest, row: asyncpg.Record, total: int, place: Place) -> bool:
    """Whether nothing of the page lies outside of where it was sought."""
    if request.limit == 0 or row["fetched"] > row["shown"] or place.is_anywhere:
        return True
    return request.position is None and row["fetched"] == max(0, total - request.offset)


class _Places:
    """Where pages lay, as `locate_page` told, for some seconds."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[float, asyncpg.Record]] = {}

    def find(self, page: Hashable, since: datetime | None) -> asyncpg.Record | None:
        """Return the place of a page; None: not known, or `since` has moved past its edge."""
        good_until, place = self._kept.get(page, (0.0, None))
        if place is None or good_until < time.monotonic():
            return None
        return place if since is None or since <= place["since_edge"] else None

    def keep(self, page: Hashable, place: asyncpg.Record) -> None:
        """Note the place of a page."""
        if len(self._kept) >= _MOST_PLACES:
            self._kept.clear()
        self._kept[page] = (time.monotonic() + _PLACE_SECONDS, place)

    def forget(self, page: Hashable) -> None:
        """Let the page be located anew: it does not lie there."""
        self._kept.pop(page, None)
