"""How many tasks match a filter that the counts do not know, day by day, in this process.

A tally is made in portions, the newest days first. The database notes which days change, so a tally
is brought up to date by counting only these days. It gives the total and the location of a page.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

import asyncpg

from audit.errors import Unavailable
from audit.history.location import NOWHERE, Location, PageRequest
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

    class Connect(Protocol):
        """Waits in the queue of tallies for a connection; `again` after the first portion."""

        def __call__(  # noqa: D102 - the class says it
            self, *, again: bool
        ) -> AbstractAsyncContextManager[Connection]: ...


_DAY: Final = timedelta(days=1)
_MAX_KEPT: Final = 100
_MAX_PORTIONS: Final = 10_000
#: A place with fewer matches than this for each task of the page is searched faster by reading all
#: its matches than by walking the newest tasks.
_CROWDED: Final = 10
#: Before all tasks.
BEGINNING: Final = datetime(1999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many tasks match a filter, by day, in one snapshot."""

    days: Mapping[datetime, int]
    """By the start of the day, the newest first; days without a match are left out."""
    fold: int
    """The last fold in the snapshot. Days that later folds change are counted anew."""
    server: str
    snapshot: str
    since: datetime = BEGINNING
    """The days before it are not tallied yet."""
    window_start: datetime | None = None
    """`since` of the request, if it moves with the clock: it cuts off a part of its day."""

    @property
    def is_whole(self) -> bool:
        """Whether all days are tallied."""
        return self.since == BEGINNING

    @property
    def total(self) -> int:
        """How many tasks match."""
        return sum(self.days.values())

    def location_of(self, offset: int, limit: int) -> Location:
        """Return where the page is that comes after `offset` tasks."""
        skipped = 0
        for day, n in self.days.items():
            if skipped + n > offset:
                location = self._location_from(day, offset - skipped + limit + 1)
                return replace(location, until=day + _DAY, skipped=skipped)
            skipped += n
        return NOWHERE

    def location_after(self, last_at: datetime, limit: int) -> Location:
        """Return where the page is that a cursor leads to."""
        # Any number of the tasks on the cursor's day may come before it. Other days are whole.
        day = start_of_day(last_at)
        return self._location_from(day, self.days.get(day, 0) + limit + 1)

    def _location_from(self, newest: datetime, wanted: int) -> Location:
        """Return the shortest range of days, from `newest` back, with `wanted` matching tasks."""
        found = 0
        for day, n in self.days.items():
            if day > newest:
                continue
            found += n
            if found >= wanted:
                return Location(day, is_sparse=found < _CROWDED * wanted)
        return Location(is_sparse=found < _CROWDED * wanted)


class Tallies:
    """Keeps the tallies of the most recently used filters, and makes them in portions of tasks."""

    def __init__(self, portion: int) -> None:
        self._portion = portion
        self._kept: OrderedDict[Hashable, Tally] = OrderedDict()
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def locate(
        self, connection: Connection, request: PageRequest, *, anew: bool
    ) -> Location | None:
        """Return where the page is; None if the filter has to be tallied first."""
        tally = self._find(request)
        if tally is None or not tally.is_whole:
            return None
        if anew or tally.window_start != _window_start(request):
            tally = await self._update(connection, request, tally, BEGINNING)
            if tally is None:
                return None
        position = request.position
        if position is None:
            location = tally.location_of(request.offset, request.limit)
        else:
            location = tally.location_after(position.created_at, request.limit)
            if position.total is not None and not anew:
                # A full page after a cursor is the page in any snapshot.
                return replace(location, total=position.total)
        total = tally.total if request.known_total is None else request.known_total
        return replace(location, total=total, snapshot=tally.snapshot)

    def keep(self, request: PageRequest, location: Location | None) -> None:
        """Remember nothing: the tally gives each location."""

    async def tally(self, connect: Connect, request: PageRequest) -> None:
        """Tally a filter in portions, and keep what is done if a later portion fails.

        It holds no connection between two portions. Others who need the same tally wait for it.
        """
        async with self._locks.setdefault(_key(request), asyncio.Lock()):
            for portion in range(_MAX_PORTIONS):
                known = self._find(request)
                if known is not None and known.is_whole:
                    return
                async with connect(again=portion > 0) as connection:
                    until = known.since if known else request.query.until
                    at = await fetch_row(
                        connection, statements.LOCATE_PORTION, until=until, most=self._portion
                    )
                    since = at["since"]
                    if since is None or (request.since and since <= request.since):
                        since = BEGINNING
                    await self._update(connection, request, known, since)
        raise Unavailable(NOT_COUNTED, retry_after_seconds=1)

    async def _update(
        self, connection: Connection, request: PageRequest, known: Tally | None, since: datetime
    ) -> Tally | None:
        """Bring a tally up to date, continue it to the days from `since`, and keep it.

        It is dropped, and None, if `known` is of another server, or of a later time than this one.
        """
        key = _key(request)
        # Most changes are recent. Days outside of this range are counted by another statement.
        today = start_of_day(datetime.now(UTC))
        fresh_since = min(today - _DAY, _cut_day(request) or today)
        fresh_until = today + 2 * _DAY
        try:
            while True:
                row = await fetch_row(
                    connection,
                    statements.TALLY_DAYS,
                    **request.filter_values(),
                    known_fold=known.fold if known else None,
                    known_since=known.since if known else None,
                    cut_day=_cut_day(request),
                    tally_since=since,
                    fresh_since=fresh_since,
                    fresh_until=fresh_until,
                )
                days = _days_of(row)
                changed = [day for day in days if known and day >= known.since]
                if all(fresh_since <= day < fresh_until for day in changed):
                    break
                fresh_since = min(fresh_since, *changed)
                fresh_until = max(fresh_until, max(changed) + _DAY)
        except asyncpg.QueryCanceledError:
            # If most days have changed, a new tally in portions is faster than this update.
            self._kept.pop(key, None)
            raise
        if known is not None:
            if row["server"] != known.server or row["fold"] < known.fold:
                self._kept.pop(key, None)
                return None
            days = {**known.days, **days}
        newest_first = {day: n for day, n in sorted(days.items(), reverse=True) if n}
        tally = Tally(
            days=newest_first,
            fold=row["fold"],
            server=row["server"],
            snapshot=row["snapshot"],
            since=since,
            window_start=_window_start(request),
        )
        self._keep(key, tally)
        return tally

    def _find(self, request: PageRequest) -> Tally | None:
        key = _key(request)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: Hashable, tally: Tally) -> None:
        """Keep a tally; drop the one that was not asked for the longest if there are too many."""
        self._kept[key] = tally
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)


NOT_COUNTED: Final = (
    "the tasks that match could not be counted, because the service moves between database"
    " servers; send the request again, or with total=none"
)


def _window_start(request: PageRequest) -> datetime | None:
    """Return `since` if it moves with the clock."""
    return request.since if request.query.span else None


def _cut_day(request: PageRequest) -> datetime | None:
    """Return the day of which a moving `since` cuts off more each second."""
    start = _window_start(request)
    return start_of_day(start) if start else None


def _key(request: PageRequest) -> Hashable:
    """Return what a tally is kept under.

    Each day that is cut has its own tally: requests may come in another order than their clocks,
    and what one clock cuts off, an earlier one needs.
    """
    return (request.query.fingerprint, _cut_day(request))


def _days_of(row: asyncpg.Record) -> dict[datetime, int]:
    return {
        datetime.fromtimestamp(int(second), UTC): n for second, n in json.loads(row["days"]).items()
    }


def start_of_day(time: datetime) -> datetime:
    """Return the start of the day that holds a time, in UTC."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
