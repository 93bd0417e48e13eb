"""Nothing is acknowledged before the synchronous standby has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from audit.errors import Problem
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.api import TASKS
from tests.conftest import FAST, POSTGRES, SERVING, Client, as_role, execute, task
from tests.waiting import until

Clients = Callable[[web.Application], Awaitable[Client]]

#: The service gives up two seconds after PostgreSQL should have ended a statement.
HASTY = Settings(pool_size=4, statement_timeout_seconds=0.5)
PATIENT = Settings(pool_size=4, statement_timeout_seconds=60)
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
SEQUENCING = f"{WAITING} AND query LIKE '%sequence_task_events%'"
SIZE = "SELECT task_log_size()"


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a primary of its own, which has no standby."""
    folder = tmp_path_factory.mktemp("primary")
    with embedded.running(folder, bin_dir=POSTGRES, options=FAST) as address:
        migrate.apply(address)
        execute(address, f"CREATE ROLE {SERVING} LOGIN")
        migrate.grant(address, [SERVING], [])
        yield address


@asynccontextmanager
async def without_the_standby(dsn: str) -> AsyncIterator[None]:
    """Let commits wait for a synchronous standby that is not there."""
    is_back = False

    def commit() -> None:
        while not is_back:
            execute(dsn, "SELECT pg_logical_emit_message(TRUE, 'test', '')")

    _reload(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'absent'")
    committing = asyncio.create_task(asyncio.to_thread(commit))
    try:
        # PostgreSQL uses the setting a moment later.
        await until(lambda: execute(dsn, WAITING))
        yield
    finally:
        is_back = True
        _reload(dsn, "ALTER SYSTEM RESET synchronous_standby_names")
        await committing


def _reload(dsn: str, change: str) -> None:
    execute(dsn, change, "SELECT pg_reload_conf()")


async def test_a_write_that_is_sent_again_is_not_acknowledged_before_either(
    dsn: str, aiohttp_client: Clients
) -> None:
    hasty, patient = [
        await aiohttp_client(create_app(settings, as_role(dsn, SERVING)))
        for settings in (HASTY, PATIENT)
    ]
    new, known = task(), task(status="pending")

    async def send(client: Client) -> list[int]:
        writes = (
            client.post(TASKS, json=new),
            client.patch(f"{TASKS}/{known['task_id']}", json={"status": "executing"}),
        )
        return [response.status for response in await asyncio.gather(*writes)]

    def are_committed() -> bool:
        stored = dict(execute(dsn, "SELECT task_id::text, status::text FROM tasks"))
        return new["task_id"] in stored and stored[known["task_id"]] == "executing"

    assert [201, 201] == [(await patient.post(TASKS, json=one)).status for one in (task(), known)]
    async with without_the_standby(dsn):
        statuses = []
        # PostgreSQL commits both when their waits for the standby are cancelled.
        while not are_committed():
            statuses += await send(hasty)
        statuses += await send(hasty)
        assert {503, 504} >= set(statuses)
    assert [200, 200] == await send(patient)


async def sequence_until_a_commit_waits(service: AuditService, dsn: str) -> None:
    """A sequencer that runs out of time before it commits has done nothing."""
    while not execute(dsn, SEQUENCING):
        with suppress(Problem):
            await service.upkeep.sequence_events()


@pytest.mark.parametrize("end", ["time limit", "shutdown"])
async def test_readers_get_no_position_that_a_failover_could_give_to_another_event(
    dsn: str, end: str
) -> None:
    """They would, if the wait of the sequencer for the standby was cancelled."""
    async with open_pool(PATIENT, dsn) as pool:
        service = AuditService(pool)
        await service.record([task()])
        await service.upkeep.sequence_events()
        await service.record([task()])
    ((size,),) = execute(dsn, SIZE)
    async with without_the_standby(dsn):
        async with open_pool(HASTY if end == "time limit" else PATIENT, dsn) as pool:
            service = AuditService(pool)
            if end == "time limit":
                async with asyncio.timeout(60):
                    await sequence_until_a_commit_waits(service, dsn)
            else:
                sequencing = asyncio.create_task(service.upkeep.sequence_events())
                await until(lambda: execute(dsn, SEQUENCING))
                sequencing.cancel()
                await asyncio.wait([sequencing])
        # The pool has waited for whatever it has cancelled.
        assert execute(dsn, SEQUENCING)
        assert [(size,)] == execute(dsn, SIZE)
    await until(lambda: execute(dsn, SIZE) == [(size + 1,)])
