"""A service that writes to a primary and lets its standbys compute lists and statistics."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web

from audit.dsn import parse
from audit.history.sources import CHECK_EVERY_SECONDS, CHECK_SECONDS
from audit.postgres.embedded import Server
from audit.settings import Settings
from audit.web.app import create_app
from tests.api import API, TASKS, metric
from tests.conftest import Client, execute, task
from tests.processes import get, serving
from tests.replicas import Replicas, paused_replay, replicated, standby_of
from tests.waiting import quiet, until, wait_until

Clients = Callable[[web.Application], Awaitable[Client]]


@pytest.fixture
async def service(replicas: Replicas, aiohttp_client: Clients) -> Client:
    """A service whose standby is in use."""
    client = await aiohttp_client(app_of(replicas.primary.dsn, replicas.standby.dsn))
    await until(lambda: has_state(client, replicas.standby, "in_use"))
    return client


def app_of(dsn: str, read_dsn: str, **settings: Any) -> web.Application:
    """Return an application that caches nothing, unless the settings say so."""
    given = {"pool_size": 6, "answers_bytes": 0, "dsn": dsn, "read_dsn": read_dsn, **settings}
    return create_app(Settings(**given), dsn)


def name_of(server: str | Server) -> str:
    return server if isinstance(server, str) else str(parse(server.dsn).hosts[0])


def reads(client: Client, server: str | Server) -> float:
    """Return how many queries ran on a standby, or on the primary."""
    return metric(client, f'task_audit_reads_total{{server="{name_of(server)}"}}')


def has_state(client: Client, standby: str | Server, state: str) -> bool:
    name = name_of(standby)
    series = f'task_audit_standby_workers{{standby="{name}",state="{state}"}}'
    return metric(client, series) == 1


async def record(client: Client, **members: Any) -> str:
    new = task(**members)
    async with client.post(TASKS, json=new) as answer:
        assert 201 == answer.status, await answer.text()
    return str(new["task_id"])


async def until_reading(client: Client, server: str | Server) -> None:
    """Wait until more of the queries that are sent all the time have run on a server."""
    before = reads(client, server)
    await until(lambda: reads(client, server) > before + 5)


async def answered_by(client: Client, standby: Server, path: str) -> None:
    """Send a request until a standby answers it, which may be behind for a moment."""
    async with asyncio.timeout(60):
        before = reads(client, standby)
        while reads(client, standby) == before:
            async with client.get(f"{API}/{path}") as answer:
                assert (path, 200) == (path, answer.status)


async def newest(client: Client, service: str) -> str:
    """Return the id of the newest task that touched a service."""
    async with client.get(f"{API}/by-service/{service}?limit=1") as answer:
        body = await answer.json()
        assert 200 == answer.status, body
    return str(body["tasks"][0]["task_id"])


async def count_stale(client: Client, service: str, rounds: int) -> int:
    """Record tasks, each with a read that follows at once; return how many reads missed it."""
    stale = 0
    for number in range(rounds):
        new = await record(
            client, services_touched=[service], created_at=f"2026-01-01T00:00:00.{number:06}Z"
        )
        stale += await newest(client, service) != new
    return stale


async def until_writable(client: Client) -> None:
    """Wait until the service has found the new primary."""

    async def is_writable() -> bool:
        async with client.post(TASKS, json=task()) as answer:
            return answer.status == 201

    async with asyncio.timeout(60):
        while not await is_writable():
            pass


def metrics_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        return str(answer.read().decode())


@contextmanager
def hanging(server: Server) -> Iterator[None]:
    """Stop all processes of a server while the block runs, so that nothing answers."""
    assert server._process is not None
    processes = [server._process.pid]
    try:
        os.kill(server._process.pid, signal.SIGSTOP)
        children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children")
        processes += map(int, children.read_text().split())
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@asynccontextmanager
async def reading_all_the_time(client: Client) -> AsyncIterator[list[int]]:
    """Read lists while the block runs; yield the statuses."""
    statuses: list[int] = []

    async def read() -> None:
        while True:
            async with client.get(f"{API}/query?limit=5") as answer:
                statuses.append(answer.status)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    try:
        yield statuses
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def test_the_standby_computes_lists_and_statistics(
    replicas: Replicas, service: Client
) -> None:
    await record(service, status="failed", services_touched=["computing"])
    for path in (
        "failures",
        "by-service/computing",
        "query?status=failed&intent=deploy_service&days=30",
        "query?service=computing&service=search",
        "query?created_by=ada",
        "statistics/histogram?last=1d",
        "statistics/facets?facet=service",
        "statistics/durations?service=computing",
    ):
        await answered_by(service, replicas.standby, path)


async def test_no_response_is_older_than_its_request(replicas: Replicas, service: Client) -> None:
    assert 0 == await count_stale(service, "fresh", 100)
    assert reads(service, replicas.standby) > 0


async def test_a_cached_response_is_not_older_than_its_request(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    app = app_of(replicas.primary.dsn, replicas.standby.dsn, answers_bytes=10**8)
    client = await aiohttp_client(app)
    await until(lambda: has_state(client, replicas.standby, "in_use"))
    assert 0 == await count_stale(client, "cached", 50)


async def test_a_page_of_a_standby_is_changed_without_reading_it_again(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    app = app_of(replicas.primary.dsn, replicas.standby.dsn, answers_bytes=10**8)
    client = await aiohttp_client(app)
    await until(lambda: has_state(client, replicas.standby, "in_use"))

    async def read_for_a_change() -> float:
        """Return how many queries the new page took after a task was recorded."""
        await quiet(client)
        before = reads(client, replicas.standby) + reads(client, "primary")
        new = await record(client, services_touched=["patched"])
        assert new == await newest(client, "patched")
        return reads(client, replicas.standby) + reads(client, "primary") - before

    for _ in range(3):  # the first pages teach the service to read documents with the changes
        await read_for_a_change()
    on_standby = reads(client, replicas.standby)
    async with asyncio.timeout(60):
        while await read_for_a_change():  # a transaction in the background may run just then
            pass
    assert on_standby > 0


async def test_a_commit_that_is_not_flushed_is_in_the_next_response(
    replicas: Replicas, service: Client
) -> None:
    def insert(number: int) -> None:
        execute(
            replicas.primary.dsn,
            "SET synchronous_commit = off",
            "INSERT INTO tasks (task_id, request_text, status, services_touched, created_at)"
            f" VALUES (gen_random_uuid(), '{number}', 'pending', '{{unflushed}}',"
            f" '2026-01-01T00:00:00.{number:06}Z')",
        )

    await record(service, created_at="2026-01-01T00:00:00Z")  # it makes the partition
    for number in range(20):
        await asyncio.to_thread(insert, number)
        async with service.get(f"{API}/by-service/unflushed?limit=1") as answer:
            body = await answer.json()
        assert (number + 1, str(number)) == (body["total"], body["tasks"][0]["request_text"])


async def test_reads_go_to_the_primary_while_replay_is_paused(
    replicas: Replicas, service: Client
) -> None:
    with paused_replay(replicas.standby):
        assert 0 == await count_stale(service, "paused", 50)
        assert has_state(service, replicas.standby, "behind")
        assert reads(service, "primary") >= 50
    await until(lambda: has_state(service, replicas.standby, "in_use"))
    await answered_by(service, replicas.standby, "by-service/paused")


async def test_a_standby_that_is_behind_still_answers_what_it_has(
    replicas: Replicas, service: Client
) -> None:
    await record(service, services_touched=["known"])
    await answered_by(service, replicas.standby, "by-service/known")
    with paused_replay(replicas.standby):
        execute(replicas.primary.dsn, "CREATE TABLE other ()", "DROP TABLE other")
        await answered_by(service, replicas.standby, "by-service/known")


async def test_a_standby_that_stops_is_replaced_by_the_primary_and_returns(
    replicas: Replicas, service: Client
) -> None:
    await record(service)
    async with reading_all_the_time(service) as statuses:
        await asyncio.to_thread(replicas.standby.stop)
        await until(lambda: has_state(service, replicas.standby, "failed"))
        await until_reading(service, "primary")
        replicas.standby.start()  # it ends with the thread that starts it
        await until(lambda: has_state(service, replicas.standby, "in_use"))
        await until_reading(service, replicas.standby)
    assert {200} == set(statuses)


async def test_a_standby_that_was_promoted_is_not_read(
    replicas: Replicas, tmp_path: Path, aiohttp_client: Clients
) -> None:
    with standby_of(replicas.primary, tmp_path / "promoted") as promoted:
        client = await aiohttp_client(app_of(replicas.primary.dsn, promoted.dsn))
        await until(lambda: has_state(client, promoted, "in_use"))
        replace(replicas, standby=promoted).promote()
        assert 0 == await count_stale(client, "promoted", 20)
        await until(lambda: has_state(client, promoted, "unsuitable"))


async def test_the_primary_computes_what_a_damaged_standby_cannot(
    replicas: Replicas, tmp_path: Path, aiohttp_client: Clients
) -> None:
    await record(
        await aiohttp_client(app_of(replicas.primary.dsn, replicas.standby.dsn)),
        services_touched=["damaged"],
        created_at="2021-03-01T00:00:00Z",
    )
    with standby_of(replicas.primary, tmp_path / "damaged") as damaged:
        client = await aiohttp_client(app_of(replicas.primary.dsn, damaged.dsn))
        await answered_by(client, damaged, "query?last=1d")
        partition = (
            "SELECT pg_relation_filepath(tableoid) FROM tasks WHERE services_touched = '{damaged}'"
        )
        ((path,),) = execute(replicas.primary.dsn, partition)
        (tmp_path / "damaged/postgresql" / path).unlink()
        before = reads(client, "primary")
        await newest(client, "damaged")
        assert before + 1 == reads(client, "primary")


async def test_servers_that_are_no_standbys_do_not_prevent_the_start(
    replicas: Replicas, tmp_path: Path, aiohttp_client: Clients
) -> None:
    dsn = replicas.dsn().replace("host=", f"host={tmp_path},")
    client = await aiohttp_client(app_of(replicas.primary.dsn, dsn))
    await until(lambda: has_state(client, f"{tmp_path}:5432", "failed"))
    await until(lambda: has_state(client, replicas.primary, "primary"))
    await until(lambda: has_state(client, replicas.standby, "in_use"))
    assert 0 == await count_stale(client, "found", 20)


async def test_a_standby_of_another_primary_is_not_read(
    replicas: Replicas, dsn: str, aiohttp_client: Clients
) -> None:
    client = await aiohttp_client(app_of(dsn, replicas.standby.dsn))
    assert 0 == await count_stale(client, "other", 20)
    await until(lambda: has_state(client, replicas.standby, "unsuitable"))
    assert 0 == reads(client, replicas.standby)


async def test_a_standby_that_does_not_follow_the_new_primary_is_not_read(
    tmp_path: Path, aiohttp_client: Clients
) -> None:
    """The standby has more WAL than the new primary, but of the timeline that was left."""
    with (
        replicated(tmp_path) as pair,
        standby_of(pair.primary, tmp_path / "other") as other,
    ):
        dsn = pair.dsn("target_session_attrs=read-write")
        client = await aiohttp_client(app_of(dsn, other.dsn))
        await until(lambda: has_state(client, other, "in_use"))
        pair.standby.stop()
        execute(pair.primary.dsn, "SELECT pg_switch_wal()")  # which skips up to 16 MiB of WAL
        await record(client, services_touched=["lost"])
        await answered_by(client, other, "by-service/lost")
        pair.crash_primary()
        pair.standby.start()
        pair.promote()
        await until_writable(client)

        assert 0 == await count_stale(client, "kept", 30)
        assert has_state(client, other, "behind")


async def test_one_of_two_standbys_takes_over_from_the_other(
    replicas: Replicas, tmp_path: Path, aiohttp_client: Clients
) -> None:
    with standby_of(replicas.primary, tmp_path / "second") as second:
        both = replace(replicas, primary=second).dsn()
        client = await aiohttp_client(app_of(replicas.primary.dsn, both))
        await record(client)
        async with reading_all_the_time(client) as statuses:
            for standby in (replicas.standby, second):
                await until_reading(client, standby)
            second.stop()
            await until(lambda: has_state(client, second, "failed"))
            await until_reading(client, replicas.standby)
        assert {200} == set(statuses)


def test_the_whole_service_reads_from_a_standby(replicas: Replicas) -> None:
    given = ("--dsn", replicas.primary.dsn, "--read-dsn", replicas.standby.dsn, "--workers", "2")
    in_use = f'task_audit_standby_workers{{standby="{name_of(replicas.standby)}",state="in_use"}} 2'
    with serving(*given) as (_, url, _):
        wait_until(lambda: in_use in metrics_of(url))
        not_yet = f'task_audit_reads_total{{server="{name_of(replicas.standby)}"}} 0.0'
        assert not_yet in metrics_of(url)
        offsets = count()
        wait_until(
            lambda: (
                get(f"{url}{API}/query?offset={next(offsets)}")[0] == 200
                and not_yet not in metrics_of(url)
            )
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"read_dsn": "postgresql://db2/audit"}, "read_dsn: needs dsn too"),
        ({"dsn": "postgresql://db1/audit", "read_dsn": "db2"}, "must look like postgresql://"),
        ({"dsn": "postgresql://db1/audit", "read_dsn": "host=db2,db2"}, "must name each host once"),
        (
            {"dsn": "postgresql://db1/audit", "read_dsn": "host=" + ",".join(map(str, range(17)))},
            "must have at most 16 hosts",
        ),
    ],
    ids=["alone", "not a DSN", "twice", "too many"],
)
def test_the_setting_is_validated(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


async def test_reads_leave_a_standby_that_hangs(replicas: Replicas, service: Client) -> None:
    await record(service)
    async with reading_all_the_time(service) as statuses:
        await until_reading(service, replicas.standby)
        with hanging(replicas.standby):
            await until(lambda: has_state(service, replicas.standby, "failed"))
            await until_reading(service, "primary")
        await until(lambda: has_state(service, replicas.standby, "in_use"))
    assert {200} == set(statuses)


async def test_a_transaction_leaves_a_standby_that_hangs(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    """Its ROLLBACK does not wait for the standby until the time limit of a statement."""
    limits = dict.fromkeys(
        ("statement_timeout_seconds", "request_timeout_seconds", "queue_seconds"), 600
    )
    app = app_of(replicas.primary.dsn, replicas.standby.dsn, **limits)
    client = await aiohttp_client(app)
    await record(client)
    await until(lambda: has_state(client, replicas.standby, "in_use"))
    locked = "SELECT 1 FROM pg_locks WHERE relation = 'tasks'::regclass AND mode ~ '^AccessExcl'"
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(replicas.primary.dsn) as locking:
        locking.execute("LOCK TABLE tasks")
        await until(lambda: execute(replicas.standby.dsn, locked))
        asking = []
        async with asyncio.timeout(60):
            while not execute(replicas.standby.dsn, waiting):  # it may be behind for a moment
                asking.append(asyncio.create_task(client.get(f"{API}/statistics/durations")))
                await asyncio.sleep(0.2)
        with hanging(replicas.standby):
            locking.rollback()
            await until(lambda: all(each.done() for each in asking))
    assert {200} == {each.result().status for each in asking}


async def test_slow_queries_of_a_small_pool_do_not_look_like_a_standby_that_hangs(
    replicas: Replicas, aiohttp_client: Clients
) -> None:
    settings = {"pool_size": 3, "queue_seconds": 600, "statement_timeout_seconds": 600}
    client = await aiohttp_client(app_of(replicas.primary.dsn, replicas.standby.dsn, **settings))
    await until(lambda: has_state(client, replicas.standby, "in_use"))
    await answered_by(client, replicas.standby, "query?limit=9")
    before = reads(client, replicas.standby)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(replicas.primary.dsn) as locking:
        locking.execute("LOCK TABLE tasks")
        locked = (
            "SELECT 1 FROM pg_locks WHERE relation = 'tasks'::regclass AND mode ~ '^AccessExcl'"
        )
        await until(lambda: execute(replicas.standby.dsn, locked))
        # A tally and two lists run at a time.
        asking = []
        for path in ("query?outcome={}", "query?limit=1", "query?limit=2"):
            asking.append(asyncio.create_task(client.get(f"{API}/{path}")))
            await until(lambda: len(execute(replicas.standby.dsn, waiting)) == len(asking))
        await asyncio.sleep(CHECK_EVERY_SECONDS + CHECK_SECONDS + 0.5)
        assert has_state(client, replicas.standby, "in_use")
    assert {200} == {(await each).status for each in asking}
    assert before + len(asking) == reads(client, replicas.standby)
