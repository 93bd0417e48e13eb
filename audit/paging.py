"""Finds a page and its total in one snapshot, wherever in the history it lies.

Both ways of counting first tell where the page should be; `list_tasks` then reads there, and tells
what it found. Where writers have moved the page meanwhile, the next attempt looks again. So what
is remembered here decides how fast an answer is, never what it says.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from audit import statements, tallies
from audit.cursor import Cursor
from audit.database import fetch_row
from audit.errors import Unavailable
from audit.models import TaskQuery
from audit.tallies import Place, Tallies

if TYPE_CHECKING:
    from audit.database import Connection

_ATTEMPTS: Final = 5
#: So long a page is sought first where it was.
_PLACE_SECONDS: Final = 10
_MOST_PLACES: Final = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A page that is asked for: `query` from `since` on, after `position` if there is one."""

    query: TaskQuery
    since: datetime | None
    position: Cursor | None
    limit: int
    """0: only the total is wanted."""

    @property
    def offset(self) -> int:
        """Matching tasks to skip."""
        return self.query.offset or 0

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
class Found:
    """A page and its total."""

    total: int
    row: asyncpg.Record
    """As `list_tasks` gave it."""


class Pager:
    """Remembers of the questions asked lately where their pages lay, and what matched by day."""

    def __init__(self) -> None:
        self._places = _Places()
        self._tallies = Tallies()

    async def find(self, connection: Connection, question: Question) -> Found:
        """Return the page, and the exact total in the same snapshot."""
        found = await self._counted(connection, question) if question.query.is_counted else None
        return found or await self._tallied(connection, question)

    async def _counted(self, connection: Connection, question: Question) -> Found | None:
        """Go by the database's counts; None: they are of no use here."""
        query, position = question.query, question.position
        counted = query.service[0] if query.service else ""
        page = (query.fingerprint, position, question.offset, question.limit)
        for _ in range(_ATTEMPTS):
            at = self._places.find(page, question.since)
            if at is None:
                at = await fetch_row(
                    connection,
                    statements.LOCATE_PAGE,
                    *(counted, query.statuses or None, query.intent or None),
                    *(question.since, query.until, position and position.created_at),
                    *(question.offset, question.limit),
                )
                self._places.keep(page, at)
            if not at["is_counted"]:
                return None
            row = await fetch_row(
                connection,
                statements.LIST_TASKS,
                *question.values(question.limit, question.offset),
                position and position.total,
                *(counted, at["since_edge"], at["until_edge"]),
                *(at["page_since"], at["page_until"], at["is_sparse"]),
                *(None, None),
            )
            total, skipped = row["total"], row["skipped"]
            place = Place(at["page_since"], at["page_until"])
            # NULL: an edge is none, as after a failover to a server that is behind.
            is_there = None not in (total, skipped) and skipped <= question.offset
            if is_there and _is_whole(question, row, total, place):
                return Found(total, row)
            self._places.forget(page)
        return None

    async def _tallied(self, connection: Connection, question: Question) -> Found:
        """Go by the tally that is remembered; the tasks of the days that changed are counted."""
        query, since, position = question.query, question.since, question.position
        # With `days`, the window cuts off more of a day each second. Another day is another
        # tally: clocks may be asked out of order, and what one cut off the next one wants whole.
        cut_day = tallies.start_of_day(since) if since and query.days else None
        name = (query.fingerprint, cut_day)
        for attempts_left in reversed(range(_ATTEMPTS)):
            known = self._tallies.find(name)
            place, limit = Place(), question.limit
            if known is None:
                # Nothing tells where the page may be: first comes the tally alone.
                limit = 0 if attempts_left else limit
            elif attempts_left:
                place = (
                    known.place_after(position.created_at, limit)
                    if position
                    else known.place_of(question.offset, limit)
                )
            try:
                row = await fetch_row(
                    connection,
                    statements.LIST_TASKS,
                    *question.values(limit, question.offset - place.skipped),
                    *(None, None, None, None),
                    *(place.page_since, place.page_until, place.is_sparse),
                    *(known and known.fold, cut_day),
                )
            except asyncpg.QueryCanceledError:
                # So many days may have changed that to tally all at once is faster.
                self._tallies.forget(name)
                raise
            tally = tallies.updated(known, row)
            if tally is None:
                self._tallies.forget(name)
                continue
            self._tallies.keep(name, tally)
            skipped = tally.at_or_after(place.page_until) if place.page_until else 0
            is_there = limit == question.limit and skipped == place.skipped
            if is_there and _is_whole(question, row, tally.total, place):
                return Found(position.total if position else tally.total, row)
        raise Unavailable("other servers answer all the time", retry_after_seconds=1)


def _is_whole(question: Question, row: asyncpg.Record, total: int, place: Place) -> bool:
    """Whether nothing of the page lies outside of where it was sought."""
    limit = question.limit
    if row["fetched"] == limit + (limit > 0) or place.is_anywhere:
        return True
    return question.position is None and row["fetched"] == max(0, total - question.offset)


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
