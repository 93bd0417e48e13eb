"""Responses are never older than their request, in any worker; what the versions stand on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Self

import aiohttp
import psycopg
from psycopg.types.json import Jsonb

from audit.errors import Unavailable
from audit.history.changes import Changes
from audit.history.freshness import Freshness, Version
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.api import API
from tests.conftest import FAST, POSTGRES, execute, task
from tests.processes import serving
from tests.waiting import until

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
INSERT = "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'by SQL')"


class Histories:
    """The number of confirmed writes, and readers that must see them in any worker."""

    def __init__(self, url: str, dsn: str) -> None:
        self.url = url
        self.dsn = dsn
        self.began = time.monotonic()
        self.recorded: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    def going_on(self) -> bool:
        """Whether six seconds have not passed, or a busy machine has not answered enough yet."""
        seconds = time.monotonic() - self.began
        is_enough = min(self.statuses[200], self.statuses[304]) > 100
        return seconds < 6 or (seconds < 60 and not is_enough)

    @staticmethod
    async def pause() -> None:
        """Write in bursts, so that requests are also repeated while nothing changes."""
        await asyncio.sleep(random.choice([0, 0.005, 0.02]))
        phase = time.monotonic() % 0.6
        if phase > 0.3:
            await asyncio.sleep(0.6 - phase)

    async def post(self, name: str) -> None:
        async with aiohttp.ClientSession(self.url) as session, Reader(self, name) as reader:
            while self.going_on():
                sent = task(services_touched=[name], status="failed")
                async with session.post(f"{API}/tasks", json=sent) as answer:
                    assert answer.status == 201
                self.recorded[name] += 1
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def patch(self, name: str) -> None:
        async with aiohttp.ClientSession(self.url) as session, Reader(self, name) as reader:
            while self.going_on():
                sent = task(services_touched=[name], status="pending")
                async with session.post(f"{API}/tasks", json=sent) as answer:
                    assert answer.status == 201
                self.recorded[name] += 1
                await reader.ask()
                await self.pause()
                change = {"status": "failed"}
                async with session.patch(f"{API}/tasks/{sent['task_id']}", json=change) as answer:
                    assert answer.status == 200
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def commit(self, name: str) -> None:
        statement = (
            "INSERT INTO tasks (task_id, request_text, services_touched, status, outcome)"
            " VALUES (%s, 'by SQL', %s, 'failed', %s)"
        )
        connecting = psycopg.AsyncConnection.connect(self.dsn)
        async with await connecting as connection, Reader(self, name) as reader:
            while self.going_on():
                await connection.execute(statement, (uuid.uuid4(), [name], Jsonb({})))
                await self.pause()
                await connection.commit()
                self.recorded[name] += 1
                self.finished[name] += 1
                await reader.ask()
                await self.pause()

    async def read(self, name: str) -> None:
        async with Reader(self, name) as reader:
            while self.going_on():
                await reader.ask()


class Reader:
    """Reads one history over a connection of its own, and remembers the total behind an ETag."""

    def __init__(self, histories: Histories, name: str) -> None:
        self.statuses = histories.statuses
        self.name = name
        self.done_by_url = {
            f"{API}/by-service/{name}?limit=1": histories.recorded,
            f"{API}/query?service={name}&days=2&limit=1": histories.recorded,
            f"{API}/failures?service={name}&limit=1": histories.finished,
            f"{API}/query?service={name}&status=failed&limit=1": histories.finished,
        }
        self.held: dict[str, tuple[str, int]] = {}
        self.session = aiohttp.ClientSession(histories.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self) -> None:
        url, done = random.choice(list(self.done_by_url.items()))
        etag, total = self.held.get(url, ("", 0))
        least = done[self.name]
        headers = {"If-None-Match": etag} if etag else {}
        async with self.session.get(url, headers=headers) as answer:
            if answer.status == 200:
                total = (await answer.json())["total"]
                self.held[url] = answer.headers["ETag"], total
        assert answer.status in (200, 304)
        assert least <= total, f"{url} missed a write that was confirmed before ({answer.status})"
        self.statuses[answer.status] += 1


async def test_no_read_misses_a_write_confirmed_before_it_in_any_worker(dsn: str) -> None:
    with serving("--workers", "3", "--dsn", dsn) as (_, url, _):
        histories = Histories(url, dsn)
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(histories.post(f"posted-{number}"))
                group.create_task(histories.patch(f"patched-{number}"))
                group.create_task(histories.commit(f"committed-{number}"))
            # Each over a connection of its own: the kernel spreads them over the workers.
            for kind in ("posted", "patched", "committed"):
                for number in range(6):
                    group.create_task(histories.read(f"{kind}-{number % 2}"))

    assert min(histories.recorded.values()) > 1
    assert histories.statuses[200] > 100
    assert histories.statuses[304] > 100


def freshness_by_hand() -> tuple[Freshness, list[asyncio.Future[Version]]]:
    """A Freshness, and the statements that it sends. The test sets their results."""
    sent: list[asyncio.Future[Version]] = []

    async def read() -> AsyncGenerator[Version, None]:
        while True:
            sent.append(asyncio.get_running_loop().create_future())
            yield await sent[-1]

    return Freshness(read), sent


async def test_a_request_does_not_use_a_version_whose_statement_was_sent_before() -> None:
    freshness, sent = freshness_by_hand()
    first = asyncio.create_task(freshness.current())
    await until(lambda: len(sent) == 1)
    later = [asyncio.create_task(freshness.current()) for _ in range(3)]
    await asyncio.sleep(0.01)

    assert 1 == len(sent)
    sent[0].set_result(Version(1, NOW))
    assert 1 == (await first).number
    await until(lambda: len(sent) == 2)
    assert not any(task.done() for task in later)
    later[0].cancel()
    sent[1].set_result(Version(2, NOW))
    assert [2, 2] == [(await task).number for task in later[1:]]


async def test_a_failed_statement_fails_the_requests_that_wait_for_it_and_no_others() -> None:
    freshness, sent = freshness_by_hand()
    early = [asyncio.create_task(freshness.current()) for _ in range(3)]
    await until(lambda: len(sent) == 1)
    later = asyncio.create_task(freshness.current())
    await asyncio.sleep(0)
    early[0].cancel()
    sent[0].set_exception(Unavailable("the database does not answer"))

    results = await asyncio.gather(*early, return_exceptions=True)
    assert [asyncio.CancelledError, Unavailable, Unavailable] == [type(one) for one in results]
    await until(lambda: len(sent) == 2)
    sent[1].set_result(Version(2, NOW))
    assert 2 == (await later).number
    after = asyncio.create_task(freshness.current())
    await until(lambda: len(sent) == 3)
    sent[2].set_result(Version(3, NOW))
    assert 3 == (await after).number


async def test_clients_that_ask_again_at_once_share_the_next_statement() -> None:
    reads = 0

    async def read() -> AsyncGenerator[Version, None]:
        nonlocal reads
        while True:
            reads += 1
            await asyncio.sleep(0)
            yield Version(reads, NOW)

    async def ask(freshness: Freshness, client: int) -> None:
        for _ in range(10):
            await freshness.current()
            for _ in range(
                client % 3
            ):  # the response and the next request take turns of the event loop
                await asyncio.sleep(0)

    freshness = Freshness(read)
    await asyncio.gather(*(ask(freshness, client) for client in range(8)))

    assert 10 <= reads <= 12


async def test_queries_get_the_connection_although_versions_are_read_all_the_time(dsn: str) -> None:
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        service = AuditService(pool)
        freshness = Freshness(partial(service.reading.read_versions, Changes()))
        asked = [asyncio.create_task(_keep_asking(freshness)) for _ in range(4)]
        pages = [await service.audit_query() for _ in range(20)]
        for one in asked:
            one.cancel()

    assert [0] * 20 == [page.total for page in pages]


async def _keep_asking(freshness: Freshness) -> None:
    while True:
        await freshness.current()


async def _read(changes: Changes, dsn: str) -> Version:
    """Read a version with a connection of its own."""
    async with (
        open_pool(Settings(pool_size=1), dsn) as pool,
        aclosing(AuditService(pool).reading.read_versions(changes)) as versions,
    ):
        return await anext(versions)


async def test_version_changes_when_a_task_is_committed_and_at_no_other_time(dsn: str) -> None:
    changes = Changes()

    async def number() -> int:
        return (await _read(changes, dsn)).number

    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as other:
        before = await number()
        one.execute(INSERT)
        other.execute(INSERT)
        begun = await number()
        other.commit()
        half = await number()
        one.rollback()
        rolled_back = await number()
        one.execute("CREATE TABLE another ()")
        one.execute("DROP TABLE another")
        one.commit()
        execute(dsn, "SELECT sequence_task_events(1000)")
        unrelated = await number()
        one.execute("UPDATE tasks SET error_message = 'late'")
        one.commit()
        done = await number()

    assert [before] * 4 == [begun, half - 1, rolled_back - 1, unrelated - 1]
    assert done == unrelated + 1


async def test_version_has_the_time_of_the_database_in_whole_seconds(dsn: str) -> None:
    clock = (await _read(Changes(), dsn)).clock

    assert clock.microsecond == 0
    assert timedelta(0) <= datetime.now(UTC) - clock < timedelta(seconds=10)


async def test_everything_counts_as_changed_after_a_restart_and_after_a_recovery(
    tmp_path: Path,
) -> None:
    changes = Changes()
    started = "SELECT pg_postmaster_start_time()"
    with embedded.running(tmp_path / "data", bin_dir=POSTGRES, options=FAST) as dsn:
        migrate.apply(dsn)
        first = await _read(changes, dsn)
    with embedded.running(tmp_path / "data", bin_dir=POSTGRES, options=FAST) as dsn:
        started_at = execute(dsn, started)
        restarted = await _read(changes, dsn)
        again = await _read(changes, dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            # So that the server recovers, and is not started anew.
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        recovered = await _after_recovery(changes, dsn)
        assert started_at == execute(dsn, started)

    assert first.number < restarted.number == again.number < recovered.number


async def _after_recovery(changes: Changes, dsn: str) -> Version:
    async with asyncio.timeout(60):
        while True:
            try:
                return await _read(changes, dsn)
            except Unavailable:
                await asyncio.sleep(0.05)
