"""Records tasks through a running service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from audit.client.wire import Retries
from audit.commands.service_url import naming, service_at
from audit.history.parsing import TaskBatch
from audit.history.task import Recorded

#: A service that restarts is waited for. Together this is more than a minute.
_RETRIES: Final = Retries(
    tries=12, timeout=3600, attempt_timeout=120, first_wait=1, longest_wait=30
)


@asynccontextmanager
async def service_sender(
    url: str, key: str | None = None
) -> AsyncIterator[Callable[[TaskBatch], Awaitable[Recorded]]]:
    """Open a client to record through the service at a URL. Only it gets the API key."""
    async with service_at(url, key, _RETRIES) as client:

        async def send(batch: TaskBatch) -> Recorded:
            labels = [label if label.endswith(": ") else "" for label in batch.labels]
            with naming(url):
                done = await client.record_json(batch.text.encode(), labels)
            return Recorded(done.recorded, done.duplicates, [str(each) for each in done.task_ids])

        yield send
