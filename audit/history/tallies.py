"""How many tasks match a filter that the counts do not know, day by day.

A tally is made in portions, the newest days first. From then on the events of the log keep it up to
date. It gives the total and the location of a page. The tally of a long history is saved in the
database, so it is made once for all processes and restarts.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from audit.errors import Unavailable
from audit.history.location import BEGINNING, NOWHERE, Location, PageRequest
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
#: The tallies that are saved in the database; each has some kilobytes.
_MAX_SAVED: Final = 1000
#: If more days than this have to be counted again, a tally is made anew in portions.
_MAX_RECOUNTED: Final = 100
#: A place with fewer matches than this for each task of the page is searched faster by reading all
#: its matches than by walking the newest tasks.
_CROWDED: Final = 10


class _Counted(NamedTuple):
    days: Mapping[datetime, int]
    position: int
    server: str


@dataclass(slots=True)
class Tally:
    """How many tasks match a filter, by day.

    It is kept up to date by the events of the log. If the filter has an `outcome`, which events do
    not contain, the days that they change are counted again.
    """

    days: Mapping[datetime, int]
    """By the start of the day; without the events from `position` on."""
    position: int
    """The size of the log of which `days` contains the events."""
    server: str
    since: datetime = BEGINNING
    """The days before it are not tallied yet."""
    window_start: datetime | None = None
    """`since` of the request, if it moves with the clock: it cuts off a part of its day."""
    saved: int = 0
    """`position` of the tally that was saved in the database."""
    queued: Mapping[datetime, int] = field(default_factory=dict)
    """What the events that had no position change of `days`."""
    snapshot: str = ""
    """The snapshot of the last update, in which `newest_first` is exact."""
    is_changing: bool = False
    """Whether the last update had another snapshot than the one before it."""
    newest_first: Mapping[datetime, int] = field(init=False)
    """`days` and `queued` together, without the days on which no task matches."""

    def __post_init__(self) -> None:
        summed = Counter(self.days)
        summed.update(self.queued)
        self.newest_first = {day: n for day, n in sorted(summed.items(), reverse=True) if n}

    @property
    def is_whole(self) -> bool:
        """Whether all days are tallied."""
        return self.since == BEGINNING

    @property
    def total(self) -> int:
        """How many tasks match."""
        return sum(self.newest_first.values())

    def location_of(self, offset: int, limit: int) -> Location:
        """Return where the page is that comes after `offset` tasks."""
        skipped = 0
        for day, n in self.newest_first.items():
            if skipped + n > offset:
                location = self._location_from(day, offset - skipped + limit + 1)
                return replace(location, until=day + _DAY, skipped=skipped)
            skipped += n
        return NOWHERE

    def location_after(self, last_at: datetime, limit: int) -> Location:
        """Return where the page is that a cursor leads to."""
        # Any number of the tasks on the cursor's day may come before it. Other days are whole.
        day = start_of_day(last_at)
        return self._location_from(day, self.newest_first.get(day, 0) + limit + 1)

    def _location_from(self, newest: datetime, wanted: int) -> Location:
        """Return the shortest range of days, from `newest` back, with `wanted` matching tasks."""
        found = 0
        for day, n in self.newest_first.items():
            if day > newest:
                continue
            found += n
            if found >= wanted:
                return Location(day, is_sparse=found < _CROWDED * wanted)
        return Location(is_sparse=found < _CROWDED * wanted)


class Tallies:
    """Keeps the tallies of the most recently used filters, and makes them in portions of tasks."""

    def __init__(self, portion: int, short: int) -> None:
        """A history of up to `short` tasks is tallied at once, and its tallies are not saved."""
        self._portion = portion
        self._short = short
        #: If more events have to be added, a tally is made anew, which takes about as long.
        self._max_behind = portion
        #: After this number of further events, a tally is saved again. A process that loads it then
        #: has fewer events to add.
        self._save_every = portion // 100
        self._kept: OrderedDict[bytes, Tally] = OrderedDict()
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._can_save = False

    async def locate(
        self, connection: Connection, request: PageRequest, *, anew: bool
    ) -> Location | None:
        """Return where the page is; None if the filter has to be tallied first."""
        tally = self._find(request)
        if tally is None or not tally.is_whole:
            return None
        position = request.position
        # A full page after a cursor is the page in any snapshot.
        needs_snapshot = position is None or position.total is None
        if (
            anew
            or tally.window_start != _window_start(request)
            or (needs_snapshot and (tally.is_changing or not tally.snapshot))
        ):
            tally = await self._update(connection, request, tally, saves=not anew)
            if tally is None:
                return None
        if position is None:
            location = tally.location_of(request.offset, request.limit)
        else:
            location = tally.location_after(position.created_at, request.limit)
            if position.total is not None and not anew:
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
                    tally = None if known else await self._tally_short(connection, request)
                    if tally is None:
                        async with connection.transaction():
                            tally = await self._tally_portion(connection, request, known)
                self._keep(_key(request), tally)
        raise Unavailable(NOT_COUNTED, retry_after_seconds=1)

    async def _tally_short(self, connection: Connection, request: PageRequest) -> Tally | None:
        """Return the tally of a short history, without saving it; None if the history is long.

        To make it takes about as long as to load and to save one.
        """
        if not self._short or await self._portion_start(
            connection, request, request.query.until, self._short
        ):
            return None
        counted = await self._count(
            connection, request, position=None, first_day=BEGINNING, last_day=None
        )
        return Tally(
            days=counted.days,
            position=counted.position,
            server=counted.server,
            window_start=_window_start(request),
            saved=counted.position,
        )

    async def _portion_start(
        self, connection: Connection, request: PageRequest, until: datetime | None, most: int
    ) -> datetime | None:
        """Return where a portion of tasks before `until` begins; None if it has all the rest."""
        portion = await fetch_row(connection, statements.LOCATE_PORTION, until=until, most=most)
        since: datetime | None = portion["since"]
        return None if since and request.since and since <= request.since else since

    async def _tally_portion(
        self, connection: Connection, request: PageRequest, known: Tally | None
    ) -> Tally:
        """Return a tally with one portion more than the one that is known, and save it.

        If another process has saved a better one, return that. Other processes that need the same
        tally wait in the meantime.
        """
        key = _key(request)
        await fetch_row(connection, statements.LOCK_TALLY, tally=key)
        saved = await fetch_row(connection, statements.READ_TALLY, tally=key, most=self._max_behind)
        self._can_save = saved["can_save"]
        if known is not None and known.server != saved["server"]:
            known = None
        if saved["days"] is not None and (
            known is None
            or saved["position"] > known.position
            or (saved["position"] == known.position and saved["since"] < known.since)
        ):
            return Tally(
                days=_days_of(saved["days"]),
                position=saved["position"],
                server=saved["server"],
                since=saved["since"],
                saved=saved["position"],
            )
        until = known.since if known else request.query.until
        since = await self._portion_start(connection, request, until, self._portion) or BEGINNING
        counted = await self._count(
            connection,
            request,
            position=known.position if known else None,
            first_day=since,
            last_day=known.since if known else None,
        )
        tally = Tally(
            days={**known.days, **counted.days} if known else counted.days,
            position=counted.position,
            server=counted.server,
            since=since,
            window_start=_window_start(request),
        )
        return await self._save(connection, request, tally)

    async def _update(
        self, connection: Connection, request: PageRequest, known: Tally, *, saves: bool
    ) -> Tally | None:
        """Bring a tally up to date, and keep it.

        If it is of another server, or if too much has changed, it has to be made anew: None.
        """
        key = _key(request)
        changes = await fetch_row(
            connection,
            statements.TALLY_CHANGES,
            **request.filter_values(),
            position=known.position,
            most=self._max_behind,
        )
        if changes["server"] != known.server or changes["logged"] is None:
            self._kept.pop(key, None)
            return None
        days, queued = Counter(known.days), _days_of(changes["queued"])
        logged = _days_of(changes["logged"])
        recounted = set[datetime]()
        if request.query.outcome is None:
            days.update(logged)
        else:
            recounted = {*logged, *queued}
            queued = {}
            if len(logged) > _MAX_RECOUNTED:
                # No task may be created later than tomorrow.
                end = start_of_day(datetime.now(UTC)) + 3 * _DAY
                self._keep(key, Tally({}, changes["position"], known.server, since=end))
                return None
        cut_day = _cut_day(request)
        if cut_day and known.window_start != request.since:
            recounted.add(cut_day)
        for day in recounted:
            counted = await self._count(
                connection,
                request,
                position=changes["position"],
                first_day=day,
                last_day=day + _DAY,
            )
            days[day] = counted.days.get(day, 0)
        tally = Tally(
            days=days,
            position=changes["position"],
            server=known.server,
            window_start=_window_start(request),
            saved=known.saved,
            queued=queued,
            snapshot=changes["snapshot"],
            is_changing=known.snapshot not in ("", changes["snapshot"]),
        )
        if saves and tally.position - tally.saved >= self._save_every:
            tally = await self._save(connection, request, tally)
        self._keep(key, tally)
        return tally

    async def _count(
        self,
        connection: Connection,
        request: PageRequest,
        *,
        position: int | None,
        first_day: datetime,
        last_day: datetime | None,
    ) -> _Counted:
        """Count the tasks of some days, without the events from a position on.

        If the position is None, all events up to now are contained.
        """
        row = await fetch_row(
            connection,
            statements.TALLY_DAYS,
            **request.filter_values(),
            position=position,
            first_day=first_day,
            last_day=last_day,
        )
        return _Counted(_days_of(row["days"]), row["position"], row["server"])

    async def _save(self, connection: Connection, request: PageRequest, tally: Tally) -> Tally:
        """Save a tally for other processes, if this one may."""
        if self._can_save:
            days = {int(day.timestamp()): n for day, n in tally.days.items() if n}
            await fetch_row(
                connection,
                statements.SAVE_TALLY,
                tally=_key(request),
                tallied_since=tally.since,
                position=tally.position,
                days=json.dumps(days),
                most_kept=_MAX_SAVED,
            )
        return replace(tally, saved=tally.position)

    def _find(self, request: PageRequest) -> Tally | None:
        key = _key(request)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: bytes, tally: Tally) -> None:
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


def _key(request: PageRequest) -> bytes:
    """Return what a tally is kept under.

    Each day that is cut has its own tally: requests may come in another order than their clocks,
    and what one clock cuts off, an earlier one needs.
    """
    cut_day = _cut_day(request)
    return request.query.fingerprint + (cut_day.isoformat().encode() if cut_day else b"")


def _days_of(text: str) -> dict[datetime, int]:
    return {datetime.fromtimestamp(int(second), UTC): n for second, n in json.loads(text).items()}


def start_of_day(time: datetime) -> datetime:
    """Return the start of the day that holds a time, in UTC."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
