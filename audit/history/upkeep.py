"""Keeps events sequenced, counts folded and partitions ready; checks or rebuilds the counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from audit.deadlines import DeadlineExceeded, stop
from audit.errors import ReadOnly, TimedOut
from audit.history.partitions import Partitions
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import NotGranted, read_only
from audit.postgres.pool import fetch_row, fetch_rows
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from audit.telemetry.throttle import Recurring

log: Final = logging.getLogger("audit")

_PARTITIONS_EVERY_SECONDS: Final = 3600
_SEQUENCE_EVERY_SECONDS: Final = 0.5
#: A server that accepts no writes may be promoted at any time.
_READ_ONLY_SECONDS: Final = 0.5
#: Events that one transaction moves; they take about 0.1 s.
_MOST_EVENTS: Final = 10_000
#: A role that may only read can be granted more while the process runs.
_GRANTS_EVERY_SECONDS: Final = 3600
#: A fold that has split buckets for this long leaves the other buckets to later folds.
_SPLIT_SECONDS: Final = 2.0
#: After a fold that ran out of time, the next folds split nothing for this long.
_SPLIT_PAUSE_SECONDS: Final = 600
_PAUSED: Final = (
    "the database server accepts no writes, so this service only reads: it leaves sequencing,"
    " counting and new partitions to a service on the primary"
)
_GOES_ON: Final = "the database server accepts writes: this service sequences and counts again"


class Upkeep:
    """The work on the counts and partitions that no request waits for."""

    def __init__(
        self, database: Database, settings: Settings, metrics: Metrics, partitions: Partitions
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._partitions = partitions
        self._pace = FoldPace(settings.max_fold_cells)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do the background work for as long as the block runs.

        A step that fails is logged and tried again. Responses stay correct without it, but they
        get slower. While the server is a standby, the work pauses, and the primary does it.
        """
        tasks = [
            asyncio.create_task(self._keep_partitions_ahead()),
            asyncio.create_task(self._keep_events_counted()),
        ]
        try:
            yield
        finally:
            await stop(*tasks)

    async def _keep_partitions_ahead(self) -> None:
        """Make the partitions of the coming months, which programs that record by SQL need."""
        making = Recurring("making the partitions of the coming months")
        while True:
            pause: float = _PARTITIONS_EVERY_SECONDS
            with making.attempt():
                try:
                    await self._partitions.make_coming()
                except ReadOnly:
                    pause = _READ_ONLY_SECONDS
            await asyncio.sleep(pause)

    async def _keep_events_counted(self) -> None:
        """Sequence and count events twice a second.

        The database lets one process of the cluster do it at a time.
        """
        counting = Recurring("sequencing and counting the events")
        is_paused = False
        while True:
            pause: float = _SEQUENCE_EVERY_SECONDS
            with counting.attempt():
                was_paused = is_paused
                try:
                    await self.fold_counts(is_lazy=True)
                    is_paused = False
                except ReadOnly:
                    is_paused = True
                    self._metrics.folded()
                    pause = _READ_ONLY_SECONDS
                except NotGranted:
                    pause = _GRANTS_EVERY_SECONDS
                    raise
                if is_paused != was_paused:
                    log.warning("%s", _PAUSED if is_paused else _GOES_ON)
            await asyncio.sleep(pause)

    async def sequence_events(self) -> int:
        """Give positions to the events in the queue; return how many got one.

        It works in portions, each a transaction, until nothing is left. If another process does it
        at the moment, it returns at once.

        Raises:
            ReadOnly: the server accepts no writes.
        """
        sequenced = 0
        is_last = False
        while not is_last:
            portion, is_last = await self._sequence_portion()
            sequenced += portion
        return sequenced

    async def sequence_portion(self) -> bool:
        """Give positions to a portion of the events; return whether the work is done.

        It is done if no event is left, if another process does it at the moment, or if the server
        is a standby, whose primary does it.
        """
        try:
            _, is_last = await self._sequence_portion()
        except ReadOnly:
            return True
        return is_last

    async def _sequence_portion(self) -> tuple[int, bool]:
        async with self._database.connection() as connection:
            try:
                row = await connection.fetchrow(statements.SEQUENCE_EVENTS, _MOST_EVENTS)
            except (DeadlineExceeded, asyncio.CancelledError):
                # The commit may be waiting for a synchronous standby. If asyncpg cancelled that
                # wait, readers would see positions that a failover gives to other events. So the
                # session is left alone, and ends when the standby has the commit.
                connection.terminate()
                raise
        if row is None:
            raise read_only()
        if row["sequenced"] is None:
            return 0, True
        return row["sequenced"], row["is_last"]

    async def fold_counts(self, *, is_lazy: bool = False) -> int:
        """Sequence the events of the queue and add them to the counts; return how many were added.

        Totals are exact whether or not it runs, but they get slower with each event that is not
        counted. It works in portions, each a transaction, until nothing is left. If another process
        folds, it returns at once.

        If PostgreSQL cannot remove old versions of the counts, each fold makes reading slower.
        `is_lazy` then puts it off until it is worth that.

        Raises:
            ReadOnly: the server accepts no writes.
            TimedOut: a portion ran out of time. The next call tries a smaller one.
        """
        await self.sequence_events()
        folded = 0
        is_last = False
        while not is_last:
            try:
                async with self._database.connection() as connection:
                    rows = await fetch_rows(
                        connection,
                        statements.FOLD_COUNTS,
                        most_cells=self._pace.cells,
                        split_seconds=self._pace.split_seconds,
                        is_lazy=is_lazy,
                    )
            except (TimedOut, DeadlineExceeded):
                self._pace.timed_out()
                raise
            if not rows:
                raise read_only()
            (row,) = rows
            if row["folded"] is None:
                return folded
            self._pace.succeeded()
            folded += row["folded"]
            is_last = row["is_last"]
        self._metrics.folded()
        return folded

    async def measure_deltas(self, timeout_seconds: float) -> int | None:
        """Return how many events are not counted; None if the database does not answer in time."""
        row = await self._database.measure(statements.MEASURE_DELTAS, timeout_seconds)
        return None if row is None else int(row["deltas"])

    async def check_counts(self) -> list[asyncpg.Record]:
        """Count all tasks; return the counts that differ, in the columns of `check_counts.sql`."""
        async with self._database.connection() as connection:
            return await connection.fetch(statements.CHECK_COUNTS)

    async def rebuild_counts(self) -> int:
        """Count all tasks anew, while others record; return how many there are."""
        async with self._database.connection() as connection:
            row = await fetch_row(connection, statements.REBUILD_COUNTS)
        return int(row["counted"])


class FoldPace:
    """The limits of the next fold: halved when one runs out of time, raised by each that ends."""

    def __init__(self, most_cells: int) -> None:
        self._most = most_cells
        self.cells = most_cells
        self._splits_from = 0.0

    @property
    def split_seconds(self) -> float:
        """How long the next fold may start to split buckets."""
        return _SPLIT_SECONDS if time.monotonic() >= self._splits_from else 0

    def timed_out(self) -> None:
        """Halve the next fold, and split no buckets for a while: splits may have taken the time."""
        self.cells = max(1, self.cells // 2)
        self._splits_from = time.monotonic() + _SPLIT_PAUSE_SECONDS

    def succeeded(self) -> None:
        """Let the next fold do a quarter more, up to the setting."""
        self.cells = min(self._most, self.cells + self.cells // 4 + 1)
