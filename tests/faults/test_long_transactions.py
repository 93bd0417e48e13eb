"""A transaction that is open for long delays no change of others, and no look costs more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from audit.deadlines import stop
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import execute
from tests.faults.feed import Reader
from tests.faults.load import running
from tests.plans import buffers_read, explained
from tests.waiting import until

Figure = Callable[[str], None]

HOLD_SECONDS = float(os.environ.get("AUDIT_FAULTS_HOLD_SECONDS", "15"))
PER_SECOND = 200
LOOKS = 200

MANY = """
INSERT INTO tasks (task_id, request_text, created_by, status, services_touched)
SELECT
    gen_random_uuid(), 'x', %s, 'completed',
    CASE mod(number, 10000) WHEN 0 THEN '{read}'::text[] ELSE '{}' END
FROM generate_series(1, 100000) AS number
"""
ONE = """
INSERT INTO tasks (task_id, request_text, created_by, status)
VALUES (gen_random_uuid(), 'x', 'beside', 'completed')
"""
QUEUED = "SELECT 1 FROM task_event_queue LIMIT 1"
ORDER = """
SELECT actor.created_by, actor.first, actor.last, actor.n
FROM (
    SELECT created_by, min(position) AS first, max(position) AS last, count(*) AS n
    FROM task_events
    GROUP BY created_by
) AS actor
ORDER BY first
"""
READ = "SELECT task_id::text, status::text FROM tasks WHERE services_touched @> '{read}'"
ANYTHING: dict[str, Any] = dict.fromkeys(
    ("statuses", "services", "intents", "created_by", "project_id", "outcome")
)


@pytest.mark.faults
async def test_100000_events_that_commit_late_come_once_after_100000_others(dsn: str) -> None:
    reader = Reader(url="", params={"service": "read"})
    async with AsyncExitStack() as stack:
        _, reader.url = await stack.enter_async_context(running("--dsn", dsn, "--workers", "1"))
        reading = asyncio.create_task(reader.follow())
        stack.push_async_callback(stop, reading)
        with psycopg.connect(dsn) as late, psycopg.connect(dsn) as early:
            await asyncio.to_thread(late.execute, MANY, ["late"])
            await asyncio.to_thread(early.execute, MANY, ["early"])
            early.commit()
            await until(lambda: len(reader.received) == 10)
            await until(lambda: not execute(dsn, QUEUED))
            late.commit()
        await until(lambda: len(reader.received) == 20)
        await until(lambda: not execute(dsn, QUEUED))

    half = 100_000
    assert [
        ("early", 0, half - 1, half),
        ("late", half, 2 * half - 1, half),
    ] == execute(dsn, ORDER)
    reader.check({(task_id, status) for task_id, status in execute(dsn, READ)})


async def write(dsn: str, stopping: asyncio.Event) -> None:
    """Record a task in each of 200 transactions a second."""
    connection = await asyncpg.connect(dsn)
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not stopping.is_set():
        await connection.execute(ONE)
        due = max(due + 1 / PER_SECOND, loop.time() - 1)
        await asyncio.sleep(due - loop.time())
    await connection.close()


def processor_seconds(pid: int) -> float:
    """How long a process has run on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def costs(service: AuditService, dsn: str) -> dict[str, tuple[int, float]]:
    """The blocks that each kind of look reads, and its processor time in milliseconds."""
    [(size,)] = execute(dsn, "SELECT task_log_size()")
    new = {"known_size": size, "seen_to": 2**62, "gaps": [], "most": 100, "most_documents": 100}
    feed = {"first": size, "most": 10, "most_scanned": 100, "max_bytes": 10**6} | ANYTHING
    looks = {
        "version": (statements.READ_CHANGES, statements.READ_CHANGES.values(new)),
        "feed": (statements.READ_FEED, statements.READ_FEED.values(feed)),
        "size": (statements.MEASURE_LOG, []),
    }
    found = {}
    for name, (statement, values) in looks.items():
        blocks = [buffers_read(await explained(service, statement, values)) for _ in range(5)]
        async with service.database.pool.acquire() as connection:
            pid = connection.get_server_pid()
            before = processor_seconds(pid)
            for _ in range(LOOKS):
                await connection.fetch(statement, *values)
            used = processor_seconds(pid) - before
        found[name] = (min(blocks), 1000 * used / LOOKS)
    return found


def described(delays: list[float], found: dict[str, tuple[int, float]]) -> str:
    """The delays and costs in words."""
    ordered = sorted(delays)
    p50, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
    each = ", ".join(f"{name} {n} blocks {ms:.2f} ms" for name, (n, ms) in found.items())
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, {each}"


@pytest.mark.faults
async def test_looks_and_other_changes_do_not_suffer_from_an_open_transaction(
    dsn: str, figure: Figure
) -> None:
    reader = Reader(url="", params={})
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(Settings(pool_size=1), dsn))
        service = AuditService(pool)
        _, reader.url = await stack.enter_async_context(running("--dsn", dsn, "--workers", "1"))
        reading = asyncio.create_task(reader.follow())
        stack.push_async_callback(stop, reading)
        writing = asyncio.create_task(write(dsn, stopping))
        await until(lambda: reader.received)
        await asyncio.sleep(HOLD_SECONDS / 5)
        alone_delays = list(reader.delays)
        alone = await costs(service, dsn)
        with psycopg.connect(dsn) as late:
            late.execute(ONE)
            passed = len(reader.received)
            await asyncio.sleep(HOLD_SECONDS)
            beside_delays = reader.delays[passed:]
            beside = await costs(service, dsn)
        stopping.set()
        await writing
        [(written,)] = execute(dsn, "SELECT count(*) FROM tasks")
        await until(lambda: len(reader.received) == written)

    figure(f"alone: {described(alone_delays, alone)}")
    figure(
        f"beside a transaction open for {HOLD_SECONDS:g} s, {len(beside_delays)} changes:"
        f" {described(beside_delays, beside)}"
    )
    assert [n for n, _ in reader.received] == list(range(written))
    assert {} == {
        name: (alone[name], beside[name])
        for name in alone
        if beside[name][0] > 2 * alone[name][0] + 10
    }
