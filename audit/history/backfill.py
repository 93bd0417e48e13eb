"""Adds the tasks that were recorded before the event log began to the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from audit.history.upkeep import Upkeep
from audit.postgres import statements
from audit.postgres.database import Database
from audit.postgres.pool import fetch_row

_MOST: Final = 10_000
_FEWEST: Final = 10
#: A portion locks its open tasks. If it takes longer, the next one is smaller.
_PORTION_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0

#: `created_at` and `task_id` of a task.
_Position = tuple[datetime, UUID]
_START: Final[_Position] = (datetime(1, 1, 1, tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True, slots=True)
class Imported:
    """What a backfill has done so far."""

    tasks: int
    """The number of tasks that were looked at."""
    imported: int
    """The number of tasks that had no event and got one."""
    skipped: int
    """The number of tasks that have no event yet, because others were changing them."""


class Backfill:
    """Adds an event of the kind `imported` for each task that has no event."""

    def __init__(self, database: Database, upkeep: Upkeep) -> None:
        self._database = database
        self._upkeep = upkeep

    async def run(self) -> AsyncGenerator[Imported]:
        """Import portions of tasks, each in a transaction, and yield the sums after each portion.

        It can be stopped at any point and run again, and several can run at once. Others record
        and change tasks meanwhile. A task that another transaction is changing is skipped. If that
        transaction does not commit, the task has no event, so the tasks are looked at again until
        none is skipped.
        """
        tasks = imported = 0
        is_first = True
        start: _Position | None = _START
        size = _MOST
        while start is not None:
            position, start = start, None
            skipped = 0
            while True:
                began = time.monotonic()
                portion, last = await self._import_after(position, size)
                if time.monotonic() - began > _PORTION_SECONDS:
                    size = max(size // 2, _FEWEST)
                else:
                    size = min(size * 2, _MOST)
                if last is None:
                    break
                if portion.skipped and start is None:
                    start = position
                tasks += portion.tasks if is_first else 0
                imported += portion.imported
                skipped += portion.skipped
                yield Imported(tasks, imported, skipped)
                position = last
                await self._upkeep.sequence_events()
            is_first = False
            if start is not None:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _import_after(self, after: _Position, size: int) -> tuple[Imported, _Position | None]:
        """Import the tasks after a position; also return the last one, None if there is none."""
        async with self._database.connection() as connection, connection.transaction():
            portion = await fetch_row(connection, statements.LOCK_PORTION, *after, size)
            if not portion["tasks"]:
                return Imported(0, 0, 0), None
            last = (portion["last_at"], portion["last_id"])
            row = await fetch_row(
                connection, statements.IMPORT_TASKS, *after, *last, portion["locked"]
            )
        return Imported(portion["tasks"], row["imported"], row["skipped"]), last
