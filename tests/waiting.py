"""Wait until a condition is true, with a deadline that only a fault can reach."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from audit.history.changes import Changes
from audit.history.freshness import Freshness
from audit.web.state import POOL, SERVICE
from tests.conftest import Client

#: A busy machine may take seconds for what takes milliseconds elsewhere.
SECONDS = 60.0


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> float:
    """Let the event loop run until the condition is true; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still not true after {seconds:g} seconds"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Block until the condition is true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still not true after {seconds:g} seconds"
        time.sleep(0.01)


async def sequenced(client: Client) -> None:
    """Wait until all changes have a position in the log."""
    service = client.app[SERVICE]
    async with asyncio.timeout(60):
        # It does nothing while the service itself sequences in the background.
        while (size := await service.log.measure(10)) is None or size.queued:
            await service.upkeep.sequence_events()


async def quiet(client: Client) -> None:
    """Wait until the service has nothing left to write in the background."""
    service = client.app[SERVICE]
    freshness = Freshness(partial(service.reading.read_versions, Changes()))
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state <> 'idle' AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(60):
        while True:
            before = (await freshness.current()).number
            folded = await service.upkeep.fold_counts() + await service.upkeep.sequence_events()
            others = await client.app[POOL].fetchval(busy)
            await asyncio.sleep(0.05)
            if not folded and not others and before == (await freshness.current()).number:
                return
