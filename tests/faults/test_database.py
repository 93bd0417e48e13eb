"""PostgreSQL that is killed, full, crowded or locked, or has another idea of the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from audit.postgres import embedded, migrate
from tests.conftest import ago, execute, of_database, task
from tests.faults.disk import small_disk
from tests.faults.load import API, Load, recorded, running
from tests.needs import needs
from tests.waiting import until

Figure = Callable[[str], None]
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'task-audit' AND datname = current_database()"
)


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])


def check_tasks(dsn: str, load: Load) -> None:
    """Whatever was acknowledged is there, and nothing is there twice."""
    stored = execute(dsn, "SELECT task_id::text FROM tasks")
    assert load.acknowledged <= {task_id for (task_id,) in stored}
    assert len(stored) == len(set(stored))
    assert execute(dsn, "SELECT count(*) FROM task_keys") == [(len(stored),)]


@pytest.mark.faults
@pytest.mark.parametrize("workers", [2])
async def test_postgresql_killed_and_started_again(
    tmp_path: Path, figure: Figure, workers: int
) -> None:
    with embedded.started(tmp_path) as server:
        migrate.apply(server.dsn)
        async with (
            running("--dsn", server.dsn, "--workers", str(workers)) as (_, url),
            Load(url) as load,
        ):
            seconds = []
            for _ in range(2):
                await asyncio.sleep(1)
                os.kill(postmaster(tmp_path), signal.SIGKILL)
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.keep_running)
                load.watch()
                seconds.append(await load.until_success())
            await asyncio.sleep(1)
        await until(lambda: execute(server.dsn, "SELECT 1"))
        check_tasks(server.dsn, load)

    figure(
        f"first success after {max(seconds) * 1000:.0f} ms; {load.failures} of "
        f"{sum(load.outcomes.values())}; 0 of {len(load.acknowledged)} acknowledged lost"
    )
    assert set(load.failures) <= {503, 504}
    assert load.failures
    assert max(seconds) < 5


async def test_an_embedded_postgresql_that_dies_is_started_again(
    tmp_path: Path, figure: Figure
) -> None:
    dsn = f"postgresql://audit@/postgres?host={tmp_path}/run"
    async with running("--data-dir", str(tmp_path)) as (_, url):
        async with Load(url) as load:
            await load.until_success()
            os.kill(postmaster(tmp_path), signal.SIGKILL)
            await asyncio.sleep(0.3)
            load.watch()
            seconds = await load.until_success()
            await asyncio.sleep(0.3)
        check_tasks(dsn, load)

    figure(f"answers {seconds + 0.3:.1f} s after the kill; {load.failures}")
    assert set(load.failures) <= {503, 504}


def one_worker(dsn: str) -> tuple[str, ...]:
    return ("--dsn", dsn, "--workers", "1", "--pool-size", "4")


@pytest.mark.faults
async def test_postgresql_has_no_connection_left(tmp_path: Path, figure: Figure) -> None:
    with embedded.running(tmp_path, options={"max_connections": "12"}) as dsn:
        migrate.apply(dsn)
        async with running(*one_worker(dsn)) as (_, url), Load(url) as load:
            await load.until_success()
            with contextlib.ExitStack() as stack:
                first = stack.enter_context(psycopg.connect(dsn, autocommit=True))
                for _ in range(40):
                    with contextlib.suppress(psycopg.OperationalError):
                        stack.enter_context(psycopg.connect(dsn))
                        first.execute(TERMINATE)
                await asyncio.sleep(1)
                crowded = load.outcomes.copy()
            seconds = await load.until_calm()
        check_tasks(dsn, load)

    figure(f"{crowded}; first success {seconds * 1000:.0f} ms after there was room")
    assert set(load.failures) == {503}


async def test_a_lock_held_by_ddl(dsn: str, figure: Figure) -> None:
    options = (*one_worker(dsn), "--statement-timeout-seconds", "0.5", "--queue-seconds", "0.3")
    async with running(*options) as (_, url), Load(url) as load, aiohttp.ClientSession() as session:
        await load.until_success()
        with psycopg.connect(dsn) as other:
            other.execute("ALTER TABLE tasks ADD COLUMN note text")
            await asyncio.sleep(2)
            healthy = (await session.get(f"{url}/healthz")).status
            slowest = load.slowest
            other.rollback()
        seconds = await load.until_calm()

    figure(f"slowest {slowest:.2f} s; {load.failures}; success after {seconds * 1000:.0f} ms")
    assert set(load.failures) <= {503, 504}
    assert load.failures
    assert 200 == healthy
    check_tasks(dsn, load)


@pytest.mark.faults
async def test_a_full_disk_refuses_records_and_answers_questions(
    postgres: str, template: str, tmp_path: Path, figure: Figure
) -> None:
    generator = random.Random(1)
    name = f"small_{uuid.uuid4().hex[:8]}"
    dsn = of_database(postgres, name)
    statuses: list[int] = []
    acknowledged = set()
    with small_disk(tmp_path / "small") as resize:
        execute(postgres, f"CREATE TABLESPACE {name} LOCATION '{tmp_path}/small'")
        execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} TABLESPACE {name}"
                          " STRATEGY file_copy")  # fmt: skip
        try:
            async with running("--dsn", dsn) as (_, url), aiohttp.ClientSession() as session:

                async def record(sent: dict[str, Any]) -> dict[str, Any]:
                    async with session.post(f"{url}{API}/tasks", json=sent) as answer:
                        statuses.append(answer.status)
                        body: dict[str, Any] = await answer.json(content_type=None)
                    if answer.status == 201:
                        acknowledged.add(sent["task_id"])
                    return body

                while statuses.count(503) < 20 and len(statuses) < 10_000:
                    # Small enough to share statements with each other, and too large for that.
                    sizes = [7_000] * 15 + [30_000]
                    bodies = await asyncio.gather(
                        *(record(task(request_text=generator.randbytes(n).hex())) for n in sizes)
                    )
                told = next(body for body in bodies if "status" in body)
                async with session.get(f"{url}{API}/query?limit=1") as answer:
                    page = await answer.json()
                one = next(iter(acknowledged))
                async with session.get(f"{url}{API}/tasks/{one}") as answer:
                    found = answer.status
                kept = recorded(dsn)
                resize("128m")
                async with session.post(f"{url}{API}/tasks", json=task()) as answer:
                    again = answer.status
        finally:
            execute(postgres, f"DROP DATABASE {name} WITH (FORCE)", f"DROP TABLESPACE {name}")

    figure(f"{len(acknowledged)} acknowledged, {len(kept)} kept; then {set(statuses)}, reads 200")
    assert {201, 503} == set(statuses)
    assert "the database has no room left; nothing is recorded" == told["detail"]
    assert kept == acknowledged
    assert (len(kept), 200, 201) == (page["total"], found, again)


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("skew", ["+1d", "-1d"])
async def test_the_clock_of_the_service_changes_no_answer(
    dsn: str, skew: str, figure: Figure
) -> None:
    history = [task(created_at=ago(hours=hours), status=status)
               for hours in range(1, 24 * 10, 5) for status in ("failed", "completed")]  # fmt: skip
    paths = [f"/{route}{mark}days={days}&limit=1000" for days in (1, 2, 7, 8)
             for route, mark in (("failures", "?"), ("query", "?"),
                                 ("query?created_by=ada", "&"))]  # fmt: skip
    paths += ["/failures?limit=3", "/query?since=2026-01-01T00:00:00Z&limit=3"]
    ahead = [execute(dsn, f"SELECT now() + interval '{hours} hours'")[0][0] for hours in (23, 25)]

    async def told(url: str) -> list[Any]:
        async with aiohttp.ClientSession() as session:
            pages = [await (await session.get(f"{url}{API}{path}")).json() for path in paths]
        return [{**page, "next_cursor": page["next_cursor"] and "there"} for page in pages]

    skewed = {
        "LD_PRELOAD": str(needs("libfaketime.so.1")),
        "FAKETIME": skew,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with (
        running("--dsn", dsn) as (_, right),
        running("--dsn", dsn, "--partition", "day", **skewed) as (_, wrong),
        aiohttp.ClientSession() as session,
    ):
        date = (await session.get(f"{wrong}/healthz")).headers["Date"]
        off = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=ago().tzinfo)
        for one in history:
            assert (await session.post(f"{right}{API}/tasks", json=one)).status == 201
        answers = await told(right), await told(wrong)
        old = task(created_at=ago(days=2000))
        timeless = {"task_id": str(uuid.uuid4()), "request_text": "now"}
        both = await session.post(f"{wrong}{API}/tasks", json=[old, timeless])
        late = [(await session.post(f"{wrong}{API}/tasks",
                                    json=task(created_at=time))).status
                for time in ahead]  # fmt: skip
    made = execute(dsn, f"SELECT now() - created_at FROM tasks "
                        f"WHERE task_id = '{timeless['task_id']}'")[0][0]  # fmt: skip

    assert abs(off - ago()) > timedelta(hours=23)
    figure(f"{len(paths)} questions, {len(history)} tasks: the same answers")
    assert answers[0] == answers[1]
    assert answers[0][0]["total"] == 5
    assert (201, [201, 422]) == (both.status, late)
    assert made < timedelta(minutes=1)
