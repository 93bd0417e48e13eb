"""A server that is promoted or demoted while the service runs, and a failover."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

from audit.client import AsyncClient
from audit.dsn import parse
from audit.postgres import embedded, migrate
from audit.settings import Settings
from audit.web.app import create_app
from tests.api import API, TASKS
from tests.conftest import FAST, POSTGRES, Client, execute, task
from tests.replicas import replicated
from tests.waiting import until

READ_ONLY = "urn:task-audit:problem:read-only"
Clients = Callable[[web.Application], Awaitable[Client]]


async def role(client: Client) -> object:
    """The role that readiness names; None if the service is not ready."""
    async with client.get("/readyz") as answer:
        body: dict[str, object] = await answer.json()
        return body.get("role")


async def becomes(client: Client, wanted: str) -> None:
    async with asyncio.timeout(60):
        while await role(client) != wanted:  # noqa: ASYNC110 - the service is asked
            await asyncio.sleep(0.02)


async def queued(client: Client) -> float:
    text = await (await client.get("/metrics")).text()
    return float(text.partition("\ntask_audit_log_queue_length ")[2].partition("\n")[0] or -1)


async def test_a_service_follows_the_role_of_its_server(
    tmp_path: Path, aiohttp_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded.started(tmp_path, bin_dir=POSTGRES, options=FAST) as server:
        migrate.apply(server.dsn)
        client = await aiohttp_client(create_app(Settings(pool_size=3), server.dsn))
        assert "primary" == await role(client)
        assert 201 == (await client.post(TASKS, json=task())).status

        server.stop()
        (tmp_path / "postgresql" / "standby.signal").touch()
        server.start()
        await becomes(client, "standby")
        assert 1 == (await (await client.get(f"{API}/query")).json())["total"]
        async with client.post(TASKS, json=task()) as answer:
            assert (503, READ_ONLY) == (answer.status, (await answer.json())["type"])
        await until(lambda: "only reads" in caplog.text)

        execute(server.dsn, "SELECT pg_promote()")
        await becomes(client, "primary")
        assert 201 == (await client.post(TASKS, json=task())).status
        assert 2 == (await (await client.get(f"{API}/query")).json())["total"]
        async with asyncio.timeout(60):
            while await queued(client):  # noqa: ASYNC110 - the service is asked
                await asyncio.sleep(0.02)
        await until(lambda: "sequences and counts again" in caplog.text)
        assert [] == [one for one in caplog.records if one.levelno >= logging.ERROR]


def ordinary(*dsns: str) -> str:
    """A DSN of the usual form with the hosts of several."""
    hosts = ",".join(quote(parse(dsn).hosts[0].name, safe="") for dsn in dsns)
    return f"postgresql://audit@{hosts}/postgres?target_session_attrs=read-write"


async def test_recording_goes_on_after_a_failover_and_nothing_acknowledged_is_lost(
    tmp_path: Path, aiohttp_client: Clients
) -> None:
    acknowledged: list[uuid.UUID] = []
    with replicated(tmp_path) as pair:
        execute(
            pair.primary.dsn,
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        )
        await until(
            lambda: execute(
                pair.primary.dsn, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            )
        )
        dsn = ordinary(pair.primary.dsn, pair.standby.dsn)
        client = await aiohttp_client(create_app(Settings(pool_size=4), dsn))
        url = str(client.make_url("/"))

        async def record(recorder: AsyncClient) -> None:
            while True:
                task_id = uuid.uuid4()
                await recorder.record(task(task_id=task_id))
                acknowledged.append(task_id)

        async with AsyncClient(url, timeout=120) as recorder:
            recording = [asyncio.create_task(record(recorder)) for _ in range(4)]
            await until(lambda: len(acknowledged) > 20)
            pair.crash_primary()
            await asyncio.to_thread(pair.promote)
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + 20 or any(r.done() for r in recording))
            for one in recording:
                one.cancel()
            ended = await asyncio.gather(*recording, return_exceptions=True)
            assert [asyncio.CancelledError] * 4 == [type(one) for one in ended]
        assert "primary" == await role(client)
        present = execute(pair.standby.dsn, "SELECT task_id FROM tasks")
        assert set() == set(acknowledged) - {task_id for (task_id,) in present}
