"""How many tasks match the filters that the database's counts do not know, day by day.

A tally is made in portions, the newest days first. The database tells which days have changed since
(`task_day_changes`, and the deltas not folded yet), so one that is remembered is brought up to date
by counting these alone. It gives the exact total, and where a page lies.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import asyncpg

_DAY: Final = timedelta(days=1)
_MOST: Final = 100
#: A page in a place with fewer matches than this for each task of it is found faster by reading
#: all that match than by walking the newest tasks.
_CROWDED: Final = 10
#: Before all tasks.
BEGINNING: Final = datetime(1999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to seek a page: half-open; None: unbounded."""

    page_since: datetime | None = None
    page_until: datetime | None = None
    is_sparse: bool = False
    skipped: int = 0
    """How many tasks that match are at or after `page_until`."""

    @property
    def is_anywhere(self) -> bool:
        """Whether it is the whole history."""
        return self.page_since is None and self.page_until is None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many tasks match a filter, by day, as of one fold."""

    days: Mapping[datetime, int]
    """By the start of the day, the newest first; days of none are left out."""
    fold: int
    server: str
    since: datetime = BEGINNING
    """The days before it are not tallied yet."""

    @property
    def is_whole(self) -> bool:
        """Whether all days are tallied."""
        return self.since == BEGINNING

    @property
    def total(self) -> int:
        """All that match."""
        return sum(self.days.values())

    def at_or_after(self, time: datetime) -> int:
        """Return how many match from the start of a day on."""
        return sum(n for day, n in self.days.items() if day >= time)

    def place_of(self, offset: int, limit: int) -> Place:
        """Return where the page lies that skips `offset` tasks."""
        if offset >= self.total:
            return Place(BEGINNING, BEGINNING, skipped=self.total)
        skipped = 0
        for day, n in self.days.items():
            if skipped + n > offset:
                place = self._place_from(day, offset - skipped + limit + 1)
                return Place(place.page_since, day + _DAY, place.is_sparse, skipped)
            skipped += n
        raise AssertionError("the total is the sum of the days")

    def place_after(self, last_at: datetime, limit: int) -> Place:
        """Return where the page lies that a cursor leads to."""
        # How many of that day come after the cursor is not known; the days before hold enough.
        place = self._place_from(start_of_day(last_at), limit + 1, is_cut=True)
        return Place(place.page_since, None, place.is_sparse)

    def _place_from(self, newest: datetime, wanted: int, *, is_cut: bool = False) -> Place:
        """Return where so many tasks are, from a day back; of a day that is cut, none may be."""
        found = 0
        for day, n in self.days.items():
            if day > newest:
                continue
            found += n
            if is_cut and day == newest:
                wanted += n
            if found >= wanted:
                return Place(day, is_sparse=found < _CROWDED * wanted)
        return Place(is_sparse=found < _CROWDED * wanted)


class Tallies:
    """The tallies of the filters asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Tally] = OrderedDict()
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def turn(self, name: Hashable) -> asyncio.Lock:
        """Return what is to be held to tally a filter: the others wait, and find it done."""
        return self._turns.setdefault(name, asyncio.Lock())

    def find(self, name: Hashable) -> Tally | None:
        """Return what is known of a filter."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def keep(self, name: Hashable, tally: Tally) -> None:
        """Remember a tally instead of those not asked for the longest."""
        self._kept[name] = tally
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def forget(self, name: Hashable) -> None:
        """Have the filter tallied anew."""
        self._kept.pop(name, None)


def updated(known: Tally | None, row: asyncpg.Record, since: datetime) -> Tally | None:
    """Return the tally that `known` and a row of `list_tasks` make up, down to `since`.

    None: another server answered, or one that is behind, so that they do not fit together.
    """
    days = _days_of(row)
    if known is not None:
        if row["server"] != known.server or row["fold"] < known.fold:
            return None
        if not days:
            return replace(known, fold=row["fold"], since=since)
        days = {**known.days, **days}
    newest_first = {day: n for day, n in sorted(days.items(), reverse=True) if n}
    return Tally(newest_first, row["fold"], row["server"], since)


def changed_days(row: asyncpg.Record, known: Tally | None) -> list[datetime]:
    """Return which days of `known` a row of `list_tasks` found changed."""
    return [day for day in _days_of(row) if known is not None and day >= known.since]


def _days_of(row: asyncpg.Record) -> dict[datetime, int]:
    return {
        datetime.fromtimestamp(int(second), UTC): n
        for second, n in json.loads(row["tally"]).items()
    }


def start_of_day(time: datetime) -> datetime:
    """Return the start of the day that holds a time, in UTC."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
