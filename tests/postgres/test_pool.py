"""The sessions of a pool are as good as new when they return to it."""

from __future__ import annotations

import asyncio

from audit.postgres.pool import open_pool
from audit.settings import Settings

STATE = "SELECT state FROM pg_stat_activity WHERE pid = $1"


async def test_a_cancelled_statement_leaves_no_transaction_open(dsn: str) -> None:
    """Whenever it is cancelled, also between its preparation and its execution."""
    settings = Settings(pool_size=1)
    states = set()
    async with open_pool(settings, dsn) as pool, open_pool(settings, dsn) as others:
        for number in range(600):
            async with pool.acquire() as connection:
                process = connection.get_server_pid()
                running = asyncio.create_task(connection.fetchval(f"SELECT {number}"))
                for _ in range(number % 60):
                    await asyncio.sleep(0)
                running.cancel()
                await asyncio.wait([running])
            states.add(await others.fetchval(STATE, process))

    assert states <= {"idle", None}
