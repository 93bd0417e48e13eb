"""Several servers, standbys, and a schema that is recreated while the service runs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
from aiohttp import ClientResponse, web

from audit.dsn import parse
from audit.errors import Unavailable
from audit.history.changes import Changes
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.failures import driver_errors
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import FAST, Client, execute, task
from tests.replicas import Replicas, replicated

API = "/api/v1/audit"
STARTED = "SELECT pg_postmaster_start_time()::text"
Clients = Callable[[web.Application], Awaitable[Client]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """A primary with the schema, and its standby, which cancels queries at once."""
    folder = tmp_path_factory.mktemp("replicas")
    with replicated(folder, max_standby_streaming_delay="0") as pair:
        yield pair


def is_standby_by_psycopg(dsn: str) -> bool:
    with psycopg.connect(**parse(dsn).parameters()) as connection:  # type: ignore[arg-type]
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        assert row is not None
        return bool(row[0])


async def is_standby_by_asyncpg(dsn: str) -> bool:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        return bool(await pool.fetchval("SELECT pg_is_in_recovery()"))


@pytest.mark.parametrize("standby_first", [True, False])
@pytest.mark.parametrize(
    ("attributes", "is_standby"),
    [
        ("any", False),
        ("read-write", False),
        ("primary", False),
        ("standby", True),
        ("read-only", True),
        ("prefer-standby", True),
    ],
)
async def test_both_drivers_choose_the_same_server(
    two: Replicas, attributes: str, standby_first: bool, is_standby: bool
) -> None:
    dsn = two.dsn(f"target_session_attrs={attributes}", standby_first=standby_first)
    assert is_standby == await is_standby_by_asyncpg(dsn)
    assert is_standby == await asyncio.to_thread(is_standby_by_psycopg, dsn)


async def test_a_host_without_an_address_is_left_out(two: Replicas) -> None:
    """As of a container that has stopped."""
    dsn = two.dsn().replace("host=", "host=db1.invalid,")
    assert not await is_standby_by_asyncpg(dsn)
    assert not await asyncio.to_thread(is_standby_by_psycopg, dsn)


async def test_a_name_that_is_not_resolved_in_time_is_left_out(
    two: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved.wait(60))
    settings = Settings(pool_size=1, acquire_timeout_seconds=2)
    try:
        async with open_pool(settings, two.dsn().replace("host=", "host=db1.invalid,")) as pool:
            assert not await pool.fetchval("SELECT pg_is_in_recovery()")
    finally:
        resolved.set()


async def test_an_error_says_that_no_server_is_suitable(two: Replicas) -> None:
    with pytest.raises(Unavailable, match="no database server is primary"):
        async with open_pool(Settings(), f"{two.standby.dsn}&target_session_attrs=primary"):
            pass


async def statuses_until(
    status: int, send: Callable[[], contextlib.AbstractAsyncContextManager[ClientResponse]]
) -> list[int]:
    """Send a request until it gets a status; return the statuses of all."""
    statuses: list[int] = []
    async with asyncio.timeout(60):
        while status not in statuses:
            async with send() as answer:
                statuses.append(answer.status)
            await asyncio.sleep(0.05)
    return statuses


async def test_writes_succeed_again_after_the_primary_has_restarted(
    two: Replicas, aiohttp_client: Clients
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=3), two.dsn()))
    assert 201 == (await client.post(f"{API}/tasks", json=task())).status
    two.wait_for_standby()

    await asyncio.to_thread(two.primary.stop)
    try:
        reads = await statuses_until(200, lambda: client.get(f"{API}/query"))
        writes = [(await client.post(f"{API}/tasks", json=task())).status for _ in range(5)]
    finally:
        # Not in a thread of its own: the server would end with that.
        two.primary.start()
    assert {200, 503} >= set(reads)
    assert {503} == set(writes)

    writes = await statuses_until(201, lambda: client.post(f"{API}/tasks", json=task()))
    assert {201, 503} >= set(writes)
    assert 200 == (await client.get(f"{API}/query")).status


async def test_the_first_response_of_a_standby_says_how_old_it_may_be(
    two: Replicas, aiohttp_client: Clients
) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=3), two.dsn()))
    assert "Audit-Staleness-Seconds" not in (await client.get(f"{API}/query")).headers
    two.wait_for_standby()

    await asyncio.to_thread(two.primary.stop)
    try:
        async with asyncio.timeout(60):
            while (answer := await client.get(f"{API}/query")).status == 503:
                pass
    finally:
        two.primary.start()
    assert 200 == answer.status
    assert "Audit-Staleness-Seconds" in answer.headers


async def is_recorded(service: AuditService) -> bool:
    try:
        await service.record([task()])
    except Unavailable:
        return False
    return True


async def test_the_pool_leaves_a_server_that_has_become_read_only(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(embedded.started(tmp_path / name, options=FAST)) for name in "ab"
        ]
        for server in servers:
            migrate.apply(server.dsn)
        hosts = ",".join(parse(server.dsn).hosts[0].name for server in servers)
        dsn = f"host={hosts} user=audit dbname=postgres target_session_attrs=read-write"
        async with open_pool(Settings(pool_size=2), dsn) as pool:
            service = AuditService(pool)
            await service.record([task()])
            execute(
                servers[0].dsn,
                "ALTER SYSTEM SET default_transaction_read_only = on",
                "SELECT pg_reload_conf()",
            )
            # A session reads the new configuration a moment later.
            async with asyncio.timeout(60):
                while await is_recorded(service):
                    pass
                while not await is_recorded(service):  # noqa: ASYNC110 - the service is asked
                    await asyncio.sleep(0.05)
        assert 1 == execute(servers[1].dsn, "SELECT count(*) FROM tasks")[0][0]


@contextlib.asynccontextmanager
async def spreading(*folders: str) -> AsyncIterator[int]:
    """A proxy that sends each new connection to the next server; yield its port."""
    turns = iter(range(10**9))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = folders[next(turns) % len(folders)]
        there = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def servers_of(pool: asyncpg.Pool[asyncpg.Record], size: int) -> set[str]:
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(pool.acquire()) for _ in range(size)]
        return {str(await one.fetchval(STARTED)) for one in held}


async def test_all_connections_of_a_pool_are_on_one_server(two: Replicas) -> None:
    seen = []
    for _ in range(12):
        dsn = two.dsn("load_balance_hosts=random target_session_attrs=prefer-standby")
        async with open_pool(Settings(pool_size=4), dsn) as pool:
            seen.append(await servers_of(pool, 4))
    assert [1] * 12 == [len(one) for one in seen]


async def test_a_proxy_that_spreads_connections_does_not_spread_a_pool(two: Replicas) -> None:
    folders = [parse(one.dsn).hosts[0].name for one in (two.primary, two.standby)]
    async with spreading(*folders) as port:
        dsn = f"postgresql://audit@127.0.0.1:{port}/postgres"
        async with open_pool(Settings(pool_size=4), dsn) as pool:
            first = await servers_of(pool, 4)
            assert 1 == len(first)
            await pool.expire_connections()
            assert first == await servers_of(pool, 4)


async def test_a_connection_is_usable_after_a_failed_begin(two: Replicas) -> None:
    async with open_pool(Settings(pool_size=1), two.standby.dsn) as pool:
        with pytest.raises(asyncpg.PostgresError, match="serializable mode in a hot standby"):
            async with (
                pool.acquire() as connection,
                connection.transaction(isolation="serializable"),
            ):
                pass
        async with pool.acquire() as connection, connection.transaction():
            assert 1 == await connection.fetchval("SELECT 1")


async def test_a_version_is_refused_on_another_server(two: Replicas) -> None:
    async with open_pool(Settings(pool_size=2), two.dsn()) as pool:
        service = AuditService(pool)
        async with contextlib.aclosing(service.reading.read_versions(Changes())) as versions:
            version = await anext(versions)
        await service.reading.list_tasks(AuditQuery(limit=1), version=version)
        async with open_pool(Settings(pool_size=1), two.standby.dsn) as other:
            with pytest.raises(Unavailable, match="another database server"):
                await AuditService(other).reading.list_tasks(AuditQuery(limit=1), version=version)


async def test_changes_are_read_from_a_standby_too(two: Replicas) -> None:
    changes = Changes()
    numbers = []
    async with (
        open_pool(Settings(pool_size=1), two.standby.dsn) as pool,
        contextlib.aclosing(AuditService(pool).reading.read_versions(changes)) as versions,
        open_pool(Settings(pool_size=1), two.primary.dsn) as primary,
    ):
        for tasks in (1, 3, 2):
            await AuditService(primary).record([task() for _ in range(tasks)])
            two.wait_for_standby()
            numbers.append((await anext(versions)).number)

    assert [3, 2] == [later - earlier for earlier, later in itertools.pairwise(numbers)]


async def test_a_conflict_with_replication_is_not_an_internal_error(two: Replicas) -> None:
    async with open_pool(Settings(pool_size=2), two.primary.dsn) as pool:
        await AuditService(pool).record(
            [task(status="pending", request_text="x" * 500) for _ in range(900)]
        )
    two.wait_for_standby()
    stop = asyncio.Event()

    def churn() -> None:
        with psycopg.connect(two.primary.dsn, autocommit=True) as connection:
            turn = 0
            while not stop.is_set():
                turn += 1
                connection.execute(
                    f"UPDATE tasks SET error_message = '{turn}' WHERE status = 'pending'"
                )
                connection.execute("VACUUM tasks")

    churning = asyncio.create_task(asyncio.to_thread(churn))
    outcomes: list[object] = []
    try:
        async with open_pool(Settings(pool_size=4), two.standby.dsn) as pool:
            service = AuditService(pool)

            async def read() -> None:
                deadline = time.monotonic() + 4
                while time.monotonic() < deadline:
                    try:
                        outcomes.append((await service.audit_query(limit=1000)).total)
                    except Exception as failure:  # noqa: BLE001 - it is looked at below
                        outcomes.append(failure)

            await asyncio.gather(*(read() for _ in range(4)))
    finally:
        stop.set()
        await churning
    assert [] == [one for one in outcomes if not isinstance(one, int | Unavailable)]
    assert any(isinstance(one, int) for one in outcomes)


def make_anew(dsn: str) -> None:
    execute(dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    migrate.apply(dsn)


async def test_a_recreated_schema_is_noticed_at_once(
    empty_dsn: str, aiohttp_client: Clients
) -> None:
    migrate.apply(empty_dsn)
    client = await aiohttp_client(create_app(Settings(pool_size=2), empty_dsn))
    await client.post(f"{API}/tasks", json=[task(), task(status="failed")])
    asked = {
        "failures": f"{API}/failures?service=payments",
        "by-service": f"{API}/by-service/payments?status=completed",
        "query": f"{API}/query?status=completed&intent=deploy_service",
        "ready": "/readyz",
    }
    for path in asked.values():
        assert [200] * 4 == [(await client.get(path)).status for _ in range(4)]

    await asyncio.to_thread(make_anew, empty_dsn)
    for name, path in asked.items():
        assert (name, [200] * 4) == (name, [(await client.get(path)).status for _ in range(4)])
    new = task(status="pending")
    assert 201 == (await client.post(f"{API}/tasks", json=new)).status
    path = f"{API}/tasks/{new['task_id']}"
    assert 200 == (await client.patch(path, json={"status": "executing"})).status

    await asyncio.to_thread(make_anew, empty_dsn)
    assert 404 == (await client.patch(path, json={"status": "failed"})).status
    assert 404 == (await client.get(path)).status
    assert [201] * 3 == [(await client.post(f"{API}/tasks", json=task())).status for _ in range(3)]
    assert 3 == (await (await client.get(asked["by-service"])).json())["total"]


async def test_without_a_schema_neither_lists_nor_readiness_succeed(
    empty_dsn: str, aiohttp_client: Clients
) -> None:
    migrate.apply(empty_dsn)
    client = await aiohttp_client(create_app(Settings(pool_size=2), empty_dsn))
    assert 200 == (await client.get(f"{API}/query")).status
    execute(empty_dsn, "DROP TABLE tasks CASCADE")
    for path in (f"{API}/query", f"{API}/tasks/{uuid.uuid4()}", "/readyz"):
        assert (path, 503) == (path, (await client.get(path)).status)


def test_a_session_that_replication_ended_is_unavailable() -> None:
    with (
        pytest.raises(Unavailable, match="in favour of others, or of replication"),
        driver_errors(),
    ):
        raise asyncpg.SerializationError("terminating connection due to conflict with recovery")
