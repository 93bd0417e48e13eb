"""Positions: what was written, in a form that every server of a cluster can look for.

A position names a transaction that was committed, with the timeline and the place in the WAL where
it ran. A primary has everything that was written on its timeline, so it looks for nothing. A
standby has replayed a transaction once `pg_xact_status` says that it is committed. A failover
begins a timeline. Transactions after the place where it left the timeline before it are lost, and
PostgreSQL gives their numbers to others, so the table `task_timelines` says where that was.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import asyncpg

from audit.errors import Invalid, Unavailable, UnknownPosition
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import cluster_of, fetch_row
from audit.settings import Settings

if TYPE_CHECKING:
    from audit.postgres.pool import Connection

_FORM: Final = re.compile(
    r"(\d{1,20})-([0-9A-F]{8})-([0-9A-F]{1,8}/[0-9A-F]{1,8})-(\d{1,18})", re.ASCII
)
#: Between two looks at a standby. The first pause is the shortest, and each further one is twice as
#: long as the one before.
_SHORTEST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05
#: How many positions that a standby has are remembered.
_MOST_FOUND: Final = 1000


class Position(NamedTuple):
    """A committed transaction."""

    cluster: str
    timeline: str
    place: str
    """In the WAL, before the commit."""
    transaction: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse a position.

        Raises:
            ValueError: it is not one.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError("must be the Audit-Position of a response")
        return cls(*found.groups())


def parse_positions(given: Iterable[str]) -> list[Position]:
    """Parse the `Audit-Position-At-Least` headers of a request, which may be lists.

    Raises:
        Invalid: one is not a list of positions.
    """
    try:
        return [Position.of(text.strip()) for text in ",".join(given).split(",")]
    except ValueError as error:
        name = "Audit-Position-At-Least"
        raise Invalid(f"{name}: {error}", errors=[{"field": name, "detail": str(error)}]) from None


def position_in(row: asyncpg.Record, connection: Connection) -> str:
    """Return the position in a row of a statement that has written, as text."""
    return f"{cluster_of(connection)}-{row['position']}"


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request that waits for positions."""

    positions: Sequence[Position]
    until: float
    found: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Set to the identity of the server that has them."""


class Positions:
    """Looks for positions, with one statement at a time for all requests that wait."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._wait_seconds = settings.staleness_wait_seconds
        #: Those that a server has, with its identity; the one that was found last is the last.
        self._found: OrderedDict[tuple[str, Position], None] = OrderedDict()
        #: A standby that was promoted after a session began, and its timeline.
        self._promoted: tuple[str, str | None] | None = None
        self._waiters: list[_Waiter] = []
        self._has_arrived = asyncio.Event()
        self._search: asyncio.Task[None] | None = None

    async def require(self, positions: Sequence[Position]) -> str:
        """Wait until the server has all of the positions; return the identity of the server.

        Raises:
            UnknownPosition: it will never have one of them.
            Unavailable: it does not have them in time, or the database does not answer.
        """
        server = self._database.server
        if server is not None:
            timeline = server.timeline
            if self._promoted is not None and self._promoted[0] == server.identity:
                timeline = self._promoted[1]
            if all(
                position[:2] == (server.cluster, timeline)
                or (server.identity, position) in self._found
                for position in positions
            ):
                return server.identity
        waiter = _Waiter(positions, time.monotonic() + self._wait_seconds)
        self._waiters.append(waiter)
        self._has_arrived.set()
        if self._search is None:
            self._search = asyncio.create_task(self._search_while_waited_for())
        return await waiter.found

    def require_same(self, identity: str) -> None:
        """Raise Unavailable if the service has moved away from a server that had the positions."""
        server = self._database.server
        if server is None or server.identity != identity:
            raise Unavailable(
                "the service has moved to another database server", retry_after_seconds=1
            )

    async def read(self) -> str:
        """Return a position that contains all that is committed now."""
        async with self._database.connection() as connection:
            row = await fetch_row(connection, statements.READ_POSITION)
            return position_in(row, connection)

    async def _search_while_waited_for(self) -> None:
        pause = _SHORTEST_PAUSE
        while waiters := [waiter for waiter in self._waiters if not waiter.found.done()]:
            self._waiters = [*waiters]  # those that arrive from here on are not looked for yet
            self._has_arrived.clear()
            try:
                await self._look(waiters)
            except Exception as failure:  # noqa: BLE001 - the requests that wait raise it
                for waiter in waiters:
                    if not waiter.found.done():
                        waiter.found.set_exception(failure)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._has_arrived.wait()
            pause = (
                _SHORTEST_PAUSE if self._has_arrived.is_set() else min(2 * pause, _LONGEST_PAUSE)
            )
        self._waiters = []
        self._search = None

    async def _look(self, waiters: Sequence[_Waiter]) -> None:
        """Tell the requests whose positions the server has, or never will have."""
        positions = list({position for waiter in waiters for position in waiter.positions})
        async with self._database.connection() as connection:
            server = self._database.server
            assert server is not None  # noqa: S101 - that of the connection
            row = await fetch_row(
                connection,
                statements.FIND_POSITIONS,
                timelines=[position.timeline for position in positions],
                places=[position.place for position in positions],
                transactions=[position.transaction for position in positions],
            )
        states = dict(zip(positions, row["states"], strict=True))
        states |= dict.fromkeys((p for p in positions if p.cluster != server.cluster), "unknown")
        self._promoted = server.identity, row["timeline"]
        for position in [position for position in positions if states[position] == "contained"]:
            self._found[server.identity, position] = None
        while len(self._found) > _MOST_FOUND:
            self._found.popitem(last=False)
        now = time.monotonic()
        for waiter in waiters:
            if waiter.found.done():
                continue
            own = {states[position] for position in waiter.positions}
            if "unknown" in own:
                waiter.found.set_exception(
                    UnknownPosition(
                        "Audit-Position-At-Least: this history does not have the position; a"
                        " failover has lost the write, or a backup from before it was restored;"
                        " ask without the header"
                    )
                )
            elif own == {"contained"}:
                waiter.found.set_result(server.identity)
            elif now >= waiter.until:
                waiter.found.set_exception(
                    Unavailable(
                        f"the database server has not reached the position within"
                        f" {self._wait_seconds:g} seconds (staleness_wait_seconds); ask the"
                        " service on the primary, or again later",
                        retry_after_seconds=1,
                    )
                )
