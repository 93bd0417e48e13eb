"""The servers that queries run on: the primary, and standbys that are fresh enough.

A query for a version of the history may run on a standby that has replayed the WAL up to the place
of this version. So the primary only has to return versions, which is cheap, and standbys compute
pages and statistics. A standby that does not get there in time, or does not answer, is out of use
until a check finds that it does, and its queries run on the primary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import asyncpg

from audit.deadlines import stop
from audit.errors import Problem, Unavailable
from audit.history.freshness import Version
from audit.history.paging import Pager
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import no_answer
from audit.postgres.pool import cluster_of, fetch_row, note_replayed, replayed_by, server_of
from audit.postgres.sessions import Place
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from audit.telemetry.throttle import Recurring

if TYPE_CHECKING:
    from audit.postgres.pool import Connection, Pool

#: How long a query waits for a standby to replay what it needs, usually some milliseconds.
_WAIT_SECONDS: Final = 0.05
#: The first pause between two reads of what a standby has replayed. Each further one is twice as
#: long.
_SHORTEST_PAUSE: Final = 0.002
CHECK_EVERY_SECONDS: Final = 1.0
#: The same for a standby that is out of use.
_CHECK_AGAIN_SECONDS: Final = 0.25
#: The time limit of a check. A standby that exceeds it is taken out of use.
CHECK_SECONDS: Final = 2.0

_Result = TypeVar("_Result")


class Source:
    """A server that queries run on, and what is remembered of the locations of pages on it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.pager = Pager()

    @asynccontextmanager
    async def reading(
        self, version: Version | None, *, again: bool = False
    ) -> AsyncIterator[Connection]:
        """Wait in the queue of reads, then take a connection whose snapshots contain a version.

        `again` is for a request that had its turn before.

        Raises:
            Unavailable: also if the server does not have the version.
        """
        lane = self.database.queues.reading
        async with lane.slot(again=again), self._connection(version) as connection:
            yield connection

    @asynccontextmanager
    async def tallying(
        self, version: Version | None, *, again: bool = False
    ) -> AsyncIterator[Connection]:
        """Wait in the queue of tallies, then take a connection; like `reading`."""
        lane = self.database.queues.tallying
        async with lane.slot(again=again), self._connection(version) as connection:
            yield connection

    @asynccontextmanager
    async def _connection(self, version: Version | None) -> AsyncIterator[Connection]:
        async with self.database.connection() as connection:
            if version is not None and server_of(connection) != version.server:
                raise Unavailable(
                    "the service has moved to another database server", retry_after_seconds=1
                )
            yield connection


class _Unfit(Unavailable):
    """A standby answers, but cannot be used."""

    def __init__(self, state: Literal["behind", "primary", "unsuitable"], detail: str) -> None:
        super().__init__(detail, retry_after_seconds=1)
        self.state = state


class Standby(Source):
    """A standby. It is in use while it is fresh enough and answers."""

    def __init__(self, name: str, database: Database, metrics: Metrics) -> None:
        """`name` is its host and port, for the log and the metrics."""
        super().__init__(database)
        self.name = name
        self.is_in_use = False
        self._metrics = metrics
        self._attempts = Recurring(f"reading from the standby {name}")
        self._running: set[asyncio.Timeout] = set()
        self._lent: set[Connection] = set()

    @property
    def load(self) -> int:
        """The number of queries that it runs."""
        return len(self._running)

    async def run(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return the result of `work`. It is cancelled when a check finds that nothing answers.

        Raises:
            Unavailable: the standby cannot do it.
        """
        try:
            async with asyncio.timeout(None) as running:
                self._running.add(running)
                try:
                    return await work()
                finally:
                    self._running.discard(running)
        except TimeoutError as failure:
            raise no_answer() from failure

    async def keep_checking(self, wanted: Callable[[], Place | None]) -> None:
        """Without end, check whether it answers and has replayed the place that is wanted."""
        while True:
            try:
                async with (
                    asyncio.timeout(CHECK_SECONDS),
                    self.database.connection() as connection,
                ):
                    await _wait_for_replay(connection, wanted())
            except TimeoutError:
                self._failed(no_answer())
                self._end_queries()
            except Exception as failure:  # noqa: BLE001 - it is logged
                self._failed(failure)
            else:
                self.is_in_use = True
                self._attempts.succeeded()
                self._metrics.standby(self.name, "in_use")
            await asyncio.sleep(CHECK_EVERY_SECONDS if self.is_in_use else _CHECK_AGAIN_SECONDS)

    @asynccontextmanager
    async def _connection(self, version: Version | None) -> AsyncIterator[Connection]:
        assert version is not None  # noqa: S101 - `Sources` chooses a standby by it
        assert version.place is not None  # noqa: S101
        if not self.is_in_use:  # it was taken out while the query waited
            raise no_answer()
        try:
            async with self.database.connection() as connection:
                known = replayed_by(connection)
                if known is None or not known.contains(version.place):
                    await _wait_for_replay(connection, version.place)
                self._lent.add(connection)
                try:
                    yield connection
                finally:
                    self._lent.discard(connection)
        except (Unavailable, asyncpg.PostgresError) as failure:  # as from a disk with errors
            self._take_out(failure)
            raise

    def _end_queries(self) -> None:
        """End all queries, because nothing answers. They then run on other servers."""
        for connection in self._lent:
            connection.terminate()  # otherwise a query that is cancelled waits for its ROLLBACK
        now = asyncio.get_running_loop().time()
        for running in self._running:
            if running.when() is None:  # it was not ended by an earlier check
                running.reschedule(now)

    def _failed(self, failure: Exception) -> None:
        """Take it out of use after a check, and log why."""
        self._take_out(failure)
        if isinstance(failure, _Unfit) and failure.state == "primary":
            return  # --read-dsn may name all servers
        detail = failure.detail if isinstance(failure, Problem) else type(failure).__name__
        self._attempts.failed(f"{detail}; other servers compute responses")

    def _take_out(self, failure: Exception) -> None:
        """Take it out of use until a check succeeds."""
        self.is_in_use = False
        self._metrics.standby(self.name, failure.state if isinstance(failure, _Unfit) else "failed")


class Sources:
    """The primary and its standbys."""

    def __init__(
        self,
        database: Database,
        standbys: Mapping[str, Pool],
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        """`database` is that of the primary. `standbys` are the pools, by host and port."""
        self.primary = Source(database)
        self._standbys = [
            Standby(name, Database(pool, settings, metrics), metrics)
            for name, pool in standbys.items()
        ]
        self._metrics = metrics
        #: The newest place that was asked for.
        self._wanted: Place | None = None

    async def run(
        self, version: Version | None, work: Callable[[Source], Awaitable[_Result]]
    ) -> _Result:
        """Run a query on a standby that has the version, or else on the primary.

        Without a version, it runs on the primary.
        """
        standby = self._choose(version)
        if standby is not None:
            try:
                result = await standby.run(partial(work, standby))
            except (Unavailable, asyncpg.PostgresError):
                pass  # the standby has noted why
            else:
                self._metrics.read_on(standby.name)
                return result
        result = await work(self.primary)
        self._metrics.read_on(None)
        return result

    @asynccontextmanager
    async def checked(self) -> AsyncIterator[None]:
        """Check the standbys regularly for as long as the block runs. They are not used before."""
        checking = [
            asyncio.create_task(standby.keep_checking(lambda: self._wanted))
            for standby in self._standbys
        ]
        try:
            yield
        finally:
            if checking:
                await stop(*checking)

    def _choose(self, version: Version | None) -> Standby | None:
        """Return the standby in use with the least work, those with the same in turn, or None."""
        if version is None or version.place is None:
            return None
        self._wanted = version.place
        in_use = [standby for standby in self._standbys if standby.is_in_use]
        chosen = min(in_use, key=lambda standby: standby.load, default=None)
        if chosen is not None:
            self._standbys.remove(chosen)
            self._standbys.append(chosen)
        return chosen


async def _wait_for_replay(connection: Connection, place: Place | None) -> None:
    """Wait until a standby has replayed the WAL up to a place.

    The statement that finds it may have an earlier snapshot. The next ones do not.

    Raises:
        Unavailable: it takes too long, or the server is no standby of the primary.
    """
    until = time.monotonic() + _WAIT_SECONDS
    pause = _SHORTEST_PAUSE
    while True:
        row = await fetch_row(connection, statements.READ_REPLAYED)
        replayed = Place(cluster_of(connection), row["tables"], row["timeline"], row["lsn"] or 0)
        if row["lsn"] is None:
            is_primary = place is None or replayed[:3] == place[:3]
            raise _Unfit("primary" if is_primary else "unsuitable", "it is not a standby")
        note_replayed(connection, replayed)
        if place is None or replayed.contains(place):
            return
        if replayed[:2] != place[:2]:
            raise _Unfit("unsuitable", "it has another history than the primary")
        if time.monotonic() + pause > until:
            raise _Unfit("behind", "it is behind the primary")
        await asyncio.sleep(pause)
        pause *= 2
