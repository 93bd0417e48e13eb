"""How old the state may be that a standby answers from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from audit.deadlines import stop
from audit.postgres import statements
from audit.postgres.database import Database

_EVERY_SECONDS: Final = 1.0


class Staleness:
    """Measures once a second how far a standby is behind, and nothing on a primary."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: When the state that the standby had replayed was current on the primary, by our clock.
        self._current_at: float | None = None
        #: The server that this was measured on.
        self._measured: str | None = None
        self._moving = asyncio.Lock()

    async def seconds(self) -> float | None:
        """Return how old the state of a response is at most; None on a primary.

        It is measured now if the service has moved to another standby since the last time.
        """
        if self._has_moved():
            async with self._moving:
                if self._has_moved():
                    await self._measure()
        return None if self._current_at is None else time.monotonic() - self._current_at

    def _has_moved(self) -> bool:
        server = self._database.server
        return server is not None and server.is_standby and server.identity != self._measured

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure now, and regularly for as long as the block runs."""
        await self._measure()
        measuring = asyncio.create_task(self._keep_measuring())
        try:
            yield
        finally:
            await stop(measuring)

    async def _keep_measuring(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self._measure()

    async def _measure(self) -> None:
        server = self._database.server
        if server is not None and not server.is_standby:
            self._current_at, self._measured = None, server.identity
            return
        began = time.monotonic()
        row = await self._database.measure(statements.READ_ROLE, _EVERY_SECONDS)
        if row is not None:
            lag_seconds = row["lag_seconds"]
            self._current_at = None if lag_seconds is None else began - lag_seconds
            self._measured = self._database.server and self._database.server.identity
