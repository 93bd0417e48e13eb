"""Locates pages by the counts in the database, for filters by service, time, state and intent."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from audit.history.location import Location, PageRequest
from audit.postgres import statements
from audit.postgres.pool import fetch_row

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

#: A page is first sought where it was up to this time ago.
_KEEP_SECONDS: Final = 10
_MAX_KEPT: Final = 1000
#: Larger offsets could exceed a bigint in the statement, and no history has that many tasks.
_MAX_OFFSET: Final = 2**62


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
