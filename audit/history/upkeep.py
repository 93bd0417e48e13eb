"""Background work of every process that serves: folding the counts, making partitions ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from audit.deadlines import stop
from audit.postgres.pool import NotGranted
from audit.telemetry.logs import Recurring

_PARTITIONS_EVERY_SECONDS = 3600
_FOLD_EVERY_SECONDS = 1
#: A role that may only read can be granted more while the process runs.
_GRANTS_EVERY_SECONDS = 3600


class Maintained(Protocol):
    """The methods of `AuditService` that are called in the background."""

    async def fold_counts(self) -> int: ...  # noqa: D102 - see AuditService
    async def make_coming_partitions(self) -> None: ...  # noqa: D102


@contextlib.asynccontextmanager
async def upkeep(service: Maintained) -> AsyncIterator[None]:
    """Run the background work of `service` for as long as the block runs.

    A step that fails is logged and tried again. No answer depends on it, but without it answers
    get slower.
    """
    running = [
        asyncio.create_task(_keep_partitions_ahead(service)),
        asyncio.create_task(_keep_counts_folded(service)),
    ]
    try:
        yield
    finally:
        await stop(*running)


async def _keep_partitions_ahead(service: Maintained) -> None:
    """Make the partitions of the coming months, which programs that record by SQL need."""
    making = Recurring("making the partitions of the coming months")
    while True:
        with making.attempt():
            await service.make_coming_partitions()
        await asyncio.sleep(_PARTITIONS_EVERY_SECONDS)


async def _keep_counts_folded(service: Maintained) -> None:
    """Fold again and again; the database lets one process of the cluster fold at a time."""
    folding = Recurring("folding the counts")
    while True:
        pause = _FOLD_EVERY_SECONDS
        with folding.attempt():
            try:
                await service.fold_counts()
            except NotGranted:
                pause = _GRANTS_EVERY_SECONDS
                raise
        await asyncio.sleep(pause)
