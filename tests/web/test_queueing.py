"""Requests wait for the database in turn: through HTTP, on a real database."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from aiohttp.test_utils import TestClient

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.api import metric
from tests.conftest import Client, execute, task
from tests.inprocess import Server
from tests.waiting import quiet, until

API = "/api/v1/audit"


@asynccontextmanager
async def serving(dsn: str, **settings: Any) -> AsyncIterator[Client]:
    app = create_app(Settings(**{"pool_size": 10, **settings}), dsn)
    async with TestClient(Server(app)) as client:
        yield client


@contextmanager
def held(
    dsn: str, tables: str = "tasks, task_keys", mode: str = "ACCESS EXCLUSIVE"
) -> Iterator[None]:
    """Have others wait for tables; in the mode EXCLUSIVE, only those that write."""
    with psycopg.connect(dsn) as connection:
        connection.execute(f"LOCK TABLE {tables} IN {mode} MODE")
        yield


async def get(client: Client, path: str, key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with client.get(API + path, headers=headers) as answer:
        return answer.status, await answer.json()


def waiting(client: Client, queue: str) -> float:
    return metric(client, f'task_audit_queue_length{{queue="{queue}"}}')


def recorded(dsn: str) -> int:
    return int(execute(dsn, "SELECT count(*) FROM task_keys")[0][0])


# --- reading --------------------------------------------------------------------------------------


async def test_a_response_from_memory_does_not_wait_for_the_queue(dsn: str) -> None:
    async with serving(dsn) as client:
        await quiet(client)
        before = await get(client, "/query?limit=1")
        with held(dsn):
            crowd = [
                asyncio.create_task(get(client, f"/query?limit={number}"))
                for number in range(2, 60)
            ]
            await until(lambda: waiting(client, "reading") > 40)
            assert [before] * 20 == [await get(client, "/query?limit=1") for _ in range(20)]
        assert {200, 503} >= {status for status, _ in await asyncio.gather(*crowd)}


async def test_requests_that_share_an_answer_take_one_place(dsn: str) -> None:
    async with serving(dsn) as client:
        with held(dsn):
            crowd = [
                asyncio.create_task(get(client, f"/query?limit={n % 4 + 1}")) for n in range(80)
            ]
            await until(lambda: waiting(client, "reading") == 1)
            await asyncio.sleep(0.2)
            assert waiting(client, "reading") == 1  # the three others have slots
        assert {200} == {status for status, _ in await asyncio.gather(*crowd)}


async def test_a_request_that_would_wait_too_long_is_told_when_to_come_back(dsn: str) -> None:
    async with serving(dsn, pool_size=1, queue_seconds=0.2) as client:
        paths = [f"/tasks/{uuid.uuid4()}" for _ in range(3)]
        await get(client, paths[0])
        with held(dsn):
            first = asyncio.create_task(get(client, paths[0]))
            await until(lambda: execute(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            status, body = await get(client, paths[1])
            assert (503, "queue_seconds" in body["detail"]) == (status, True)
            await asyncio.sleep(0.5)
            async with client.get(API + paths[2]) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
            assert (await client.get("/healthz")).status == 200
        assert (await first)[0] == 404
        assert (await get(client, paths[2]))[0] == 404
        assert metric(client, 'task_audit_queue_refused_total{queue="reading"}') == 2


async def test_a_key_with_many_requests_does_not_delay_another_key(dsn: str) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        keys = [
            (await create_key(pool, str(uuid.uuid4()), frozenset([Scope.READ])))[0]
            for _ in range(2)
        ]
    served: list[int] = []

    async with serving(dsn, queue_seconds=5) as client:

        async def ask(key: int, number: int) -> None:
            assert (await get(client, f"/query?limit={number}", keys[key]))[0] == 200
            served.append(key)

        with held(dsn):
            crowd = [asyncio.create_task(ask(0, number)) for number in range(1, 91)]
            await until(lambda: waiting(client, "reading") == 87)
            one = asyncio.create_task(ask(1, 1000))
            await until(lambda: waiting(client, "reading") == 88)
        await one
        await asyncio.gather(*crowd)

    assert served.index(1) < 10


# --- writing --------------------------------------------------------------------------------------


async def test_bodies_that_do_not_arrive_take_no_slot(dsn: str) -> None:
    head = (
        f"POST {API}/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n"
        'Content-Type: application/json\r\n\r\n[{"request_text": "half a '
    )
    async with serving(dsn) as client:
        port = client.port
        assert port
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
        for _, writer in slow:
            writer.write(head.encode())
            await writer.drain()
        await asyncio.sleep(0.1)
        for number in range(10):
            assert (await get(client, f"/query?limit={number + 1}"))[0] == 200
            async with client.post(f"{API}/tasks", json=task()) as answer:
                assert answer.status == 201
        for _, writer in slow:
            writer.close()


#: Requests of one task run in groups, one at a time; others have two slots.
BATCHES = pytest.mark.parametrize(("tasks", "at_once"), [(1, 1), (2, 2)])


@BATCHES
async def test_slow_writes_leave_connections_to_reads_and_end_undone(
    dsn: str, tasks: int, at_once: int
) -> None:
    async with serving(dsn, write_timeout_seconds=2, queue_seconds=1) as client:
        await client.post(f"{API}/tasks", json=task(status="pending"))

        async def write() -> tuple[int, str]:
            body = [task() for _ in range(tasks)]
            async with client.post(f"{API}/tasks", json=body) as answer:
                return answer.status, (await answer.json()).get("detail", "")

        with held(dsn, "task_keys", "EXCLUSIVE"):
            writing = [asyncio.create_task(write()) for _ in range(8)]
            await until(lambda: waiting(client, "writing") >= 4)
            for number in range(10):
                assert (await get(client, f"/query?limit={number + 1}"))[0] == 200
            answers = await asyncio.gather(*writing)
            assert {504, 503} >= {status for status, _ in answers}
            late = [detail for status, detail in answers if status == 504]
            assert len(late) >= at_once
            assert all("write_timeout_seconds" in detail for detail in late)
            assert all("nothing is recorded" in detail for detail in late)
        await asyncio.sleep(0.3)
        assert recorded(dsn) == 1


async def test_a_write_of_several_statements_has_one_time_limit(dsn: str) -> None:
    execute(
        dsn,
        "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END'",
        "CREATE TRIGGER nap AFTER INSERT ON tasks FOR EACH STATEMENT EXECUTE FUNCTION nap()",
    )
    body = "\n".join(json.dumps(task()) for _ in range(2500))
    try:
        async with serving(dsn, write_timeout_seconds=1) as client:
            async with client.post(
                f"{API}/tasks", data=body, headers={"Content-Type": "application/x-ndjson"}
            ) as answer:
                assert (504, 0) == (answer.status, recorded(dsn))
            async with client.post(f"{API}/tasks", json=task()) as answer:
                assert answer.status == 201
    finally:
        execute(dsn, "DROP TRIGGER nap ON tasks", "DROP FUNCTION nap")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_commit_without_an_answer_is_said_to_be_in_doubt(dsn: str, method: str) -> None:
    execute(
        dsn,
        "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER gone AFTER INSERT OR UPDATE ON tasks"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.request_text = 'lost')"
        " EXECUTE FUNCTION gone()",
    )
    open_task = task(status="pending")
    try:
        async with serving(dsn) as client:
            path, body = f"{API}/tasks", task(request_text="lost")
            if method == "PATCH":
                execute(dsn, "ALTER TABLE tasks DISABLE TRIGGER gone")
                open_task["request_text"] = "lost"
                assert (await client.post(path, json=open_task)).status == 201
                execute(dsn, "ALTER TABLE tasks ENABLE TRIGGER gone")
                path, body = f"{path}/{open_task['task_id']}", {"status": "executing"}
            async with client.request(method, path, json=body) as answer:
                said = (await answer.json())["detail"]
                assert answer.status == 503
                assert "may be made or not" in said
                assert "send the request again" in said
                assert int(answer.headers["Retry-After"]) >= 1
    finally:
        execute(dsn, "DROP TRIGGER gone ON tasks", "DROP FUNCTION gone")


@BATCHES
async def test_a_write_whose_client_leaves_the_queue_is_not_made(
    dsn: str, tasks: int, at_once: int
) -> None:
    async with serving(dsn, queue_seconds=5) as client:
        with held(dsn, "task_keys", "EXCLUSIVE"):
            writing = [
                asyncio.create_task(
                    client.post(f"{API}/tasks", json=[task() for _ in range(tasks)])
                )
                for _ in range(5)
            ]
            await until(lambda: waiting(client, "writing") == 5 - at_once)
            for one in writing:
                one.cancel()
            await until(lambda: waiting(client, "writing") == 0)
        # Those that had begun are made: they may be committed when a client leaves.
        await until(lambda: recorded(dsn) == at_once * tasks)
        await asyncio.sleep(0.1)
        assert recorded(dsn) == at_once * tasks
