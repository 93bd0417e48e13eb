"""A service on a primary and two standbys, which are paused, stopped and killed in turn."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from audit.dsn import parse
from audit.postgres.embedded import Server
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SETTINGS
from tests.api import API, TASKS, metric
from tests.conftest import Client, execute, task
from tests.replicas import replicated, standby_of

pytestmark = pytest.mark.faults

SECONDS: Final = float(os.environ.get("AUDIT_FAULTS_STANDBYS_SECONDS", "30"))
CLIENTS: Final = 8
Clients = Callable[[web.Application], Awaitable[Client]]


async def test_no_response_is_stale_while_standbys_fail(
    tmp_path: Path, aiohttp_client: Clients, figure: Callable[[str], None]
) -> None:
    with (
        replicated(tmp_path) as pair,
        standby_of(pair.primary, tmp_path / "second") as second,
    ):
        hosts = ",".join(parse(one.dsn).hosts[0].name for one in (pair.standby, second))
        given: dict[str, Any] = {
            "dsn": pair.primary.dsn,
            "read_dsn": f"host={hosts} user=audit dbname=postgres",
            "pool_size": 12,
            "answers_bytes": 0,
        }
        client = await aiohttp_client(create_app(Settings(**given), pair.primary.dsn))
        until = time.monotonic() + SECONDS
        reads = stale = 0

        async def record_and_read(number: int) -> None:
            nonlocal reads, stale
            for written in count(1):
                if time.monotonic() > until:
                    return
                async with client.post(
                    TASKS, json=task(services_touched=[f"client-{number}"])
                ) as answer:
                    assert 201 == answer.status
                path = f"{API}/by-service/client-{number}?limit=1"
                async with client.get(path) as answer:
                    assert 200 == answer.status
                    reads += 1
                    stale += (await answer.json())["total"] != written

        reading = asyncio.gather(*(record_and_read(number) for number in range(CLIENTS)))
        for round_number in count():
            if reading.done() or time.monotonic() > until:
                break
            await _disturb((pair.standby, second)[round_number % 2], round_number // 2 % 3)
            await asyncio.sleep(1)
        await reading

        on = {
            name: metric(client, f'task_audit_reads_total{{server="{name}"}}')
            for name in ("primary", *client.app[SETTINGS].standbys)
        }
        figure(f"{stale} of {reads} responses stale; computed by {sorted(on.values())}")
        assert 0 == stale
        assert all(on.values())


async def _disturb(standby: Server, how: int) -> None:
    """Pause replay on a standby for a second, or stop it, or kill it; then start it again."""
    if how == 0:
        execute(standby.dsn, "SELECT pg_wal_replay_pause()")
        await asyncio.sleep(1)
        execute(standby.dsn, "SELECT pg_wal_replay_resume()")
        return
    assert standby._process is not None
    if how == 1:
        await asyncio.to_thread(standby.stop)
    else:
        standby._process.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(standby._process.wait)
    standby.start()  # it ends with the thread that starts it
