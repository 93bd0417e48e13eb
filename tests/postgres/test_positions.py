"""Positions on a standby, and after a failover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from audit.settings import Settings
from audit.web.app import create_app
from tests.api import API, TASKS
from tests.conftest import Client, execute, task
from tests.replicas import Replicas, paused_replay, replicated
from tests.waiting import until

AT_LEAST = "Audit-Position-At-Least"
POSITION = "Audit-Position"
Clients = Callable[[web.Application], Awaitable[Client]]


class Pair(NamedTuple):
    """A service on the primary, and one on the standby."""

    primary: Client
    standby: Client


async def services(replicas: Replicas, start: Clients, **settings: Any) -> Pair:
    made = Settings(pool_size=3, **settings)
    return Pair(
        *[await start(create_app(made, one.dsn)) for one in (replicas.primary, replicas.standby)]
    )


async def record(client: Client) -> tuple[str, dict[str, str]]:
    """Record a task; return its URL, and the header for a read that contains it."""
    made = task()
    response = await client.post(TASKS, json=made)
    assert 201 == response.status
    return f"{TASKS}/{made['task_id']}", {AT_LEAST: response.headers[POSITION]}


async def status(client: Client, url: str, headers: dict[str, str] | None = None) -> int:
    return (await client.get(url, headers=headers)).status


async def test_a_standby_answers_from_a_state_with_the_write(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = await services(replicas, aiohttp_client, staleness_wait_seconds=60)
    page = f"{API}/query?limit=1"
    total = (await (await primary.get(page)).json())["total"]
    for number in range(1, 26):
        url, headers = await record(primary)
        assert 200 == await status(standby, url, headers)
        # The cache of the standby has the page before.
        listed = await standby.get(page, headers=headers)
        assert total + number == (await listed.json())["total"]


async def test_a_standby_that_is_behind_is_waited_for(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = await services(replicas, aiohttp_client, staleness_wait_seconds=60)
    url, headers = await record(primary)
    assert 200 == await status(standby, url, headers)
    with paused_replay(replicas.standby):
        url, headers = await record(primary)
        reading = asyncio.create_task(status(standby, url, headers))
        assert 404 == await status(standby, url)
        assert not reading.done()
    assert 200 == await reading


async def test_a_standby_that_stays_behind_is_unavailable(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = await services(replicas, aiohttp_client, staleness_wait_seconds=0.1)
    with paused_replay(replicas.standby):
        url, headers = await record(primary)
        refused = await standby.get(url, headers=headers)
    assert 503 == refused.status
    assert "1" == refused.headers["Retry-After"]
    assert "urn:task-audit:problem:unavailable" == (await refused.json())["type"]


async def test_manifests_of_exports_wait_for_positions_too(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = await services(replicas, aiohttp_client)
    async with primary.get(f"{API}/export") as answer:
        export_id = answer.headers["X-Export-ID"]
        await answer.read()
    _, headers = await record(primary)
    for path in ("exports", f"exports/{export_id}"):
        async with standby.get(f"{API}/{path}", headers=headers) as answer:
            assert (200, True) == (answer.status, "Audit-Staleness-Seconds" in answer.headers)
            assert export_id in await answer.text()
        assert 422 == await status(standby, f"{API}/{path}", {"Audit-Position-At-Least": "x"})


async def test_responses_of_a_standby_say_how_old_they_may_be(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    primary, standby = await services(replicas, aiohttp_client)

    async def age(client: Client) -> float | None:
        response = await client.get(f"{API}/query?limit=1")
        assert 200 == response.status
        header = response.headers.get("Audit-Staleness-Seconds")
        return None if header is None else float(header)

    await record(primary)
    assert await age(primary) is None
    fresh = await age(standby)
    assert fresh is not None
    with paused_replay(replicas.standby):
        await record(primary)
        ages = [fresh]
        async with asyncio.timeout(60):
            while ages[-1] < 2:
                ages.append(await age(standby) or 0)


async def test_positions_after_a_failover(tmp_path: Path, aiohttp_client: Clients) -> None:
    with replicated(tmp_path) as replicas:
        old, new = await services(replicas, aiohttp_client, staleness_wait_seconds=0.1)
        kept_url, kept = await record(old)
        noted = "SELECT 1 FROM task_timelines"
        await until(lambda: execute(replicas.standby.dsn, noted))
        await asyncio.to_thread(replicas.wait_for_standby)
        # The standby gets no more, so what follows is lost.
        execute(
            replicas.standby.dsn,
            "ALTER SYSTEM SET primary_conninfo = ''",
            "SELECT pg_reload_conf()",
        )
        receiver = "SELECT 1 FROM pg_stat_wal_receiver WHERE pid IS NOT NULL"
        await until(lambda: not execute(replicas.standby.dsn, receiver))
        lost_url, lost = await record(old)
        assert 503 == await status(new, lost_url, lost)
        replicas.promote()

        assert 200 == await status(new, kept_url, kept)
        assert 409 == await status(new, lost_url, lost)
        # The number of the lost transaction is given to another one.
        for _ in range(20):
            url, written = await record(new)
        assert 409 == await status(new, lost_url, lost)
        assert 200 == await status(new, kept_url, kept)
        assert 200 == await status(new, url, written)
        # The old primary does not know that it is none any more.
        assert 503 == await status(old, url, written)
        assert 200 == await status(old, lost_url, lost)
