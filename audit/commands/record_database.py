"""Records tasks in a database, without a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from audit.commands.record_file import AT_ONCE, Send
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.postgres.schema import require_current
from audit.settings import Settings


@asynccontextmanager
async def database_sender(settings: Settings, dsn: str) -> AsyncIterator[Send]:
    """Open a connection pool on a database, whose schema must be current, to record there."""
    async with open_pool(settings.model_copy(update={"pool_size": AT_ONCE}), dsn) as pool:
        await require_current(pool)
        service = AuditService(pool, settings)
        yield lambda batch: service.recording.record_batches([batch])
