"""A connection pool with the queues in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from audit.deadlines import Deadline
from audit.errors import Problem
from audit.postgres.admission import Admission
from audit.postgres.pool import acquired, fetch_row
from audit.postgres.sessions import Server
from audit.postgres.statements import Statement
from audit.settings import Settings
from audit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from audit.postgres.pool import Connection, Pool


class Database:
    """Gives out the connections of a pool, with or without a turn in a queue."""

    def __init__(self, pool: Pool, settings: Settings, metrics: Metrics) -> None:
        self.pool = pool
        self._metrics = metrics
        self._patience = Deadline(settings.acquire_timeout_seconds)
        self.server: Server | None = None
        """The server of the connection that was given out last."""
        self.queues = Admission(pool.get_max_size(), settings.queue_seconds, metrics)

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Take a connection for the block, without a turn in a queue.

        Raises:
            Unavailable: no connection is free in time, or the database does not answer.
        """
        return acquired(self.pool, self._patience, self._metrics, self._note)

    def _note(self, server: Server) -> None:
        self.server = server

    @asynccontextmanager
    async def reading(self, *, again: bool = False) -> AsyncIterator[Connection]:
        """Wait in the queue of reads, then take a connection for the block.

        `again` is for a request that had its turn before.
        """
        async with self.queues.reading.slot(again=again), self.connection() as connection:
            yield connection

    async def measure(self, statement: Statement, timeout_seconds: float) -> asyncpg.Record | None:
        """Return the row of a statement for metrics; None if there is no answer in time."""
        try:
            async with asyncio.timeout(timeout_seconds), self.connection() as connection:
                return await fetch_row(connection, statement)
        except (TimeoutError, Problem, asyncpg.PostgresError):
            return None
