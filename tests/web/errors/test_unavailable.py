"""The service under load, and with a database that is slow, read-only or gone."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from audit.errors import TaskNotFound, Unavailable
from audit.postgres import embedded, migrate
from audit.web.state import SERVICE
from tests.api import API, TASKS
from tests.conftest import FAST, Client, execute, task
from tests.conftest import _database as database
from tests.waiting import until
from tests.web.errors.conftest import ONE, Request, problem, refusal, send, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextmanager
def held(dsn: str) -> Iterator[None]:
    """Lock the tables, so that all other sessions wait for them."""
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks, task_keys IN ACCESS EXCLUSIVE MODE")
        yield


async def test_a_request_that_would_wait_too_long_gets_503(dsn: str) -> None:
    async with serving(dsn, queue_seconds=0.2) as client:
        await send(client, "GET", ONE)
        with held(dsn):
            first = asyncio.create_task(send(client, "GET", ONE))
            await until(lambda: execute(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            second = await send(client, "GET", ONE)
            assert (await problem(second))["status"] == 503
            assert int(second.headers["Retry-After"]) >= 1
            assert not first.done()

        assert (await first).status == 404


async def test_a_slow_statement_is_cancelled(dsn: str) -> None:
    sent = task(status="pending")
    async with serving(dsn, statement_timeout_seconds=1) as client:
        await client.post(TASKS, json=sent)
        path = f"{TASKS}/{sent['task_id']}"
        with held(dsn):
            expected: dict[tuple[str, str], dict[str, Any]] = {
                ("GET", f"{API}/failures"): {}, ("GET", f"{API}/query"): {}, ("GET", path): {},
                ("POST", TASKS): {"json": task()}, ("PATCH", path): {"json": {"status": "failed"}},
            }  # fmt: skip
            actual = {key: await refusal(client, *key, **expected[key]) for key in expected}

        assert dict.fromkeys(expected, (504, [])) == actual
        assert (await (await client.get(path)).json())["status"] == "pending"


EVERY_ROUTE: Final[list[Request]] = [
    ("GET", f"{API}/failures", {}),
    ("GET", f"{API}/by-service/a", {}),
    ("GET", f"{API}/query", {}),
    ("GET", ONE, {}),
    ("POST", TASKS, {"json": {"request_text": "a"}}),
    ("PATCH", ONE, {"json": {}}),
    ("GET", "/readyz", {}),
]


async def unavailable(client: Client) -> None:
    """Check that every route that needs the database gets 503, and that the process is alive."""
    answers = [await send(client, method, path, **body) for method, path, body in EVERY_ROUTE]

    assert [503] * len(EVERY_ROUTE) == [(await problem(answer))["status"] for answer in answers]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert (await send(client, "GET", "/healthz")).status == 200


async def test_the_service_recovers_when_the_database_is_back(tmp_path: Path) -> None:
    with embedded.running(tmp_path, options=FAST) as dsn:
        migrate.apply(dsn)
        running = serving(dsn, pool_size=3)
        client = await running.__aenter__()
        assert (await client.post(TASKS, json={"request_text": "a"})).status == 201
    try:
        await unavailable(client)
        with embedded.running(tmp_path, options=FAST):
            answers = [await send(client, method, path, **b) for method, path, b in EVERY_ROUTE]
            assert [200, 200, 200, 404, 201, 404, 200] == [answer.status for answer in answers]
            assert (await (await client.get(f"{API}/query")).json())["total"] == 2
    finally:
        await running.__aexit__(None, None, None)


async def test_a_database_that_is_not_migrated_is_not_ready(empty_dsn: str) -> None:
    async with serving(empty_dsn) as client:
        await unavailable(client)
        body = await problem(await send(client, "GET", "/readyz"))
        assert "0001_tasks, 0002_partitions, 0003_guards" in body["detail"]

        migrate.apply(empty_dsn, "0002_partitions")
        body = await problem(await send(client, "GET", "/readyz"))
        assert "lacks migrations: 0003_guards" in body["detail"]

        migrate.apply(empty_dsn)
        assert (await send(client, "GET", "/readyz")).status == 200


async def test_a_read_only_database_refuses_only_writes(postgres: str, template: str) -> None:
    for dsn in database(postgres, template):
        name = execute(dsn, "SELECT current_database()")[0][0]
        execute(dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        async with serving(dsn) as client:
            answers = [await send(client, method, path, **b) for method, path, b in EVERY_ROUTE]

    assert [200, 200, 200, 404, 503, 503, 200] == [answer.status for answer in answers]


async def test_terminated_sessions_cause_at_most_a_503(client: Client, dsn: str) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'task-audit'"
    )
    statuses = set()
    for _ in range(10):
        answering = [asyncio.create_task(send(client, "GET", f"{API}/query")) for _ in range(8)]
        await asyncio.sleep(0.002)
        await asyncio.to_thread(execute, dsn, kill)
        statuses |= {(await answer).status for answer in answering}

    assert statuses <= {200, 503}
    async with asyncio.timeout(60):
        while (await send(client, "GET", f"{API}/query")).status == 503:
            pass
    assert (await send(client, "GET", f"{API}/query")).status == 200


async def test_a_terminated_session_is_unavailable_at_any_moment(dsn: str) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'task-audit'"
    )
    async with serving(dsn) as client:
        for turns in range(8):
            with pytest.raises(TaskNotFound):
                await client.app[SERVICE].get_task(uuid.uuid4())
            execute(dsn, kill)
            time.sleep(0.05)  # noqa: ASYNC251 - the loop must not hear of it yet
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises((TaskNotFound, Unavailable)):
                await client.app[SERVICE].get_task(uuid.uuid4())
