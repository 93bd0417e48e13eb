"""Makes the partitions of the history, and finds those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from audit.errors import Invalid
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.failures import read_only
from audit.postgres.pool import fetch_row
from audit.settings import Settings

#: Partitions made in one transaction. They take about a second on a busy machine.
_AT_ONCE = 25
_TOO_MANY = "TA010"


class Partitions:
    """The partitions of the history, by the time that tasks were created."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._width = settings.partition
        self._most = settings.max_partitions

    async def make_coming(self) -> None:
        """Make the missing partitions of the present and the next three months.

        Raises:
            ReadOnly: the server accepts no writes.
        """
        await self._make(statements.MAKE_COMING_PARTITIONS)

    async def make_for(self, times: Sequence[datetime | None]) -> None:
        """Make the missing partitions of tasks that are created at `times`; None means now.

        Raises:
            Invalid: there would be more than `max_partitions`.
        """
        await self._make(statements.MAKE_PARTITIONS, times)

    async def _make(self, statement: str, *values: object) -> None:
        """Make partitions in portions. Each is a transaction, so a retry goes on from the last."""
        limits = (self._width, _AT_ONCE, self._most)
        made: int | None = 1
        while made:
            try:
                async with self._database.connection() as connection:
                    made = await connection.fetchval(statement, *values, *limits)
            except asyncpg.PostgresError as refused:
                if refused.sqlstate != _TOO_MANY:
                    raise
                raise Invalid(
                    f"created_at: these times need more than {self._most:,} partitions"
                    " of the history, the limit set by max_partitions"
                ) from refused
            if made is None:
                raise read_only()

    async def find_missing(self) -> list[asyncpg.Record]:
        """Return the times of recorded tasks that no partition holds."""
        async with self._database.connection() as connection:
            return await connection.fetch(statements.FIND_MISSING_PARTITIONS)

    async def lock_shortage(self) -> str | None:
        """Return a warning if PostgreSQL has too few locks for a list over all partitions."""
        async with self._database.connection() as connection:
            locks = await fetch_row(connection, statements.MEASURE_LOCKS)
        # Two such statements at once, at least.
        if 2 * locks["needed"] <= locks["room"]:
            return None
        return (
            f"a list over the whole history locks {locks['partitions']:,} partitions with their"
            f" indexes, {locks['needed']:,} locks, and PostgreSQL has room for {locks['room']:,}:"
            " raise its max_locks_per_transaction"
        )
