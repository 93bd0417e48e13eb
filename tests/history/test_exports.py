"""Exports: one snapshot, limits, and what is recorded of those that were cut off."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from audit.errors import TimedOut, Unavailable
from audit.history.export_query import ExportQuery, ExportsQuery
from audit.history.exports import Exports, export_settings
from audit.history.query import parse_query
from audit.history.recording import Author
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.telemetry.metrics import Metrics
from tests.conftest import SERVING, ago, as_role, execute, task
from tests.history.guards import REMOVAL, refusal
from tests.waiting import until

if TYPE_CHECKING:
    from audit.postgres.pool import Pool


@pytest.fixture
async def export_pool(dsn: str) -> AsyncIterator[Pool]:
    settings = export_settings(Settings(max_exports=4))
    async with open_pool(settings, as_role(dsn, SERVING), idle_seconds=30) as pool:
        yield pool


def exports_of(pool: Pool, service: AuditService, **settings: Any) -> Exports:
    return Exports(pool, service.database, Settings(**settings), Metrics())


@pytest.fixture
def exports(export_pool: Pool, service: AuditService) -> Exports:
    return exports_of(export_pool, service)


def query(**given: str) -> ExportQuery:
    return parse_query(ExportQuery, {name: [value] for name, value in given.items()})


async def recorded(exports: Exports) -> list[dict[str, Any]]:
    """Return the manifests, the newest first."""
    found: list[dict[str, Any]] = json.loads(await exports.list(ExportsQuery()))["exports"]
    return found


class Reader:
    """Collects what an export sends."""

    def __init__(self) -> None:
        self.body = b""

    async def write(self, piece: bytes) -> None:
        self.body += piece


async def test_an_export_shows_the_snapshot_while_tasks_change(
    exports: Exports, service: AuditService
) -> None:
    given = [
        task(created_at=ago(days=20 * n + 1), status="executing", completed_at=None)
        for n in range(10)
    ]
    await service.record(given)
    written = 0

    class WritingReader(Reader):
        """Changes a task that has not been read yet, and records another one, at each piece."""

        async def write(self, piece: bytes) -> None:
            nonlocal written
            await super().write(piece)
            await service.update(given[-1 - written]["task_id"], {"status": "failed"})
            await service.record([task(created_at=ago(days=150))])
            await service.upkeep.sequence_events()
            await service.upkeep.fold_counts()
            written += 1

    reader = WritingReader()
    async with exports.open(query()) as export:
        await service.record([task()])
        await export.send(reader.write)

    tasks = [json.loads(line) for line in reader.body.splitlines()]
    assert written > 3  # as many as there are partitions with tasks
    assert [one["task_id"] for one in tasks] == [one["task_id"] for one in given]
    assert {one["status"] for one in tasks} == {"executing"}
    assert export.total == len(tasks)


async def test_a_session_with_the_same_snapshot_sees_the_same_tasks(
    exports: Exports, service: AuditService, dsn: str
) -> None:
    """While four writers record tasks and move them on."""
    await service.record([
        task(created_at=ago(days=n % 150 + 1), status="pending", completed_at=None)
        for n in range(400)
    ])  # fmt: skip
    is_over = asyncio.Event()
    written = 0

    async def write(seed: int) -> None:
        nonlocal written
        chosen = random.Random(seed)
        while not is_over.is_set():
            new = task(created_at=ago(days=chosen.random() * 150), status="pending",
                       completed_at=None)  # fmt: skip
            await service.record([new])
            state = chosen.choice(["approved", "executing", "completed", "failed"])
            await service.update(new["task_id"], {"status": state})
            await service.upkeep.fold_counts()
            written += 1

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]

    class SlowReader(Reader):
        async def write(self, piece: bytes) -> None:
            await super().write(piece)
            seen = written
            await until(lambda: written > seen)

    reader = SlowReader()
    await until(lambda: written > 4)
    connection = await asyncpg.connect(dsn)
    try:
        async with exports.open(query()) as export:
            shared = await export._connection.fetchval("SELECT pg_export_snapshot()")
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.execute(f"SET TRANSACTION SNAPSHOT '{shared}'")
                same = await connection.fetchval("SELECT pg_current_snapshot()::text")
                expected = await connection.fetch(
                    "SELECT task_id, status FROM tasks ORDER BY created_at DESC, task_id DESC"
                )
            await export.send(reader.write)
    finally:
        await connection.close()
        is_over.set()
        await asyncio.gather(*writers)

    lines = [json.loads(line) for line in reader.body.splitlines()]
    assert export.snapshot == same
    assert [(one["task_id"], one["status"]) for one in lines] == [
        (str(row["task_id"]), row["status"]) for row in expected
    ]
    assert export.total == len(lines) > 400


@pytest.mark.parametrize(
    "statement",
    ["UPDATE exports SET tasks = 9", "DELETE FROM exports", "TRUNCATE exports"],
    ids=["update", "delete", "truncate"],
)
async def test_what_was_recorded_of_an_export_stays(
    exports: Exports, dsn: str, statement: str
) -> None:
    async with exports.open(query()) as export:
        await export.send(Reader().write)

    assert refusal(dsn, statement) == REMOVAL
    assert refusal(dsn, f"SET session_replication_role = 'replica'; {statement}") == REMOVAL
    assert len(await recorded(exports)) == 1


async def test_only_some_exports_run_at_once(export_pool: Pool, service: AuditService) -> None:
    """Those of one process, and those of all processes on the database."""
    here, there = (exports_of(export_pool, service, max_exports=2) for _ in range(2))
    async with here.open(query()), there.open(query()):
        for exports in (here, there):
            with pytest.raises(Unavailable, match="2 exports are running") as refused:
                async with exports.open(query()):
                    pass
            assert 1 <= (refused.value.retry_after_seconds or 0) <= 60
    async with here.open(query()), here.open(query()):
        with pytest.raises(Unavailable, match="max_exports"):
            async with here.open(query()):
                pass
    async with there.open(query()), here.open(query()):
        pass


async def test_the_refusal_names_the_time_that_an_export_still_needs(
    export_pool: Pool, service: AuditService
) -> None:
    exports = exports_of(export_pool, service, max_exports=1)
    await service.record([task(created_at=ago(days=40 * n)) for n in range(4)])
    refused: list[int | None] = []

    async def write(_: bytes) -> None:
        with pytest.raises(Unavailable) as refusal:
            async with exports.open(query()):
                pass
        refused.append(refusal.value.retry_after_seconds)

    async with exports.open(query()) as export:
        await export.send(write)

    assert refused[0] == 10  # nothing is known yet
    assert refused[1:] == [1, 1, 1]


class Left(Exception):
    """The reader has left."""


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_an_export_that_was_cut_off_is_recorded(
    exports: Exports, service: AuditService, form: str
) -> None:
    given = [task(created_at=ago(days=40 * n + 1), request_text="mark,\n'\"b") for n in range(5)]
    await service.record(given)
    kept = Reader()

    async def write(piece: bytes) -> None:
        if kept.body.count(b"mark,") == 2:
            raise Left
        await kept.write(piece)

    with pytest.raises(Left):
        async with exports.open(query(format=form), Author("ada", "r1")) as export:
            await export.send(write)
    await exports.close()

    (manifest,) = await recorded(exports)
    assert manifest["export_id"] == str(export.export_id)
    assert not manifest["complete"]
    assert (manifest["tasks"], manifest["bytes"]) == (2, len(kept.body))
    assert manifest["sha256"] == hashlib.sha256(kept.body).hexdigest()
    assert manifest["first_task"] == given[0]["task_id"]
    assert manifest["last_task"] == given[1]["task_id"]
    assert (manifest["by"], manifest["neutralised"]) == ("ada", None)
    # The connection is free again.
    async with exports.open(query()) as again:
        assert again.total == 5


async def test_an_export_that_is_cancelled_is_recorded(
    exports: Exports, service: AuditService
) -> None:
    await service.record([task()])
    reached = asyncio.Event()

    async def write(_: bytes) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def run() -> None:
        async with exports.open(query()) as export:
            await export.send(write)

    running = asyncio.create_task(run())
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await exports.close()

    (manifest,) = await recorded(exports)
    assert (manifest["tasks"], manifest["complete"]) == (0, False)


async def test_an_export_ends_with_its_time(export_pool: Pool, service: AuditService) -> None:
    exports = exports_of(export_pool, service, export_timeout_seconds=0.2)
    await service.record([task()])

    async def write(_: bytes) -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimedOut, match=r"over 0\.2 seconds"):
        async with exports.open(query()) as export:
            await export.send(write)
    await exports.close()

    assert [False] == [each["complete"] for each in await recorded(exports)]


async def test_an_export_fails_if_it_cannot_be_recorded(
    exports: Exports, service: AuditService, dsn: str
) -> None:
    """A file without a manifest must not look complete."""
    await service.record([task()])
    refuse = "ALTER TABLE exports ADD CONSTRAINT refuse_all CHECK (false) NOT VALID"
    execute(dsn, refuse)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            async with exports.open(query()) as export:
                await export.send(Reader().write)
    finally:
        await exports.close()
        execute(dsn, "ALTER TABLE exports DROP CONSTRAINT refuse_all")

    assert not export.is_complete


async def test_a_lost_database_cuts_the_export_off(
    exports: Exports, service: AuditService, dsn: str
) -> None:
    await service.record([task(created_at=ago(days=40 * n + 1)) for n in range(5)])

    async def write(_: bytes) -> None:
        execute(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'COPY %'",
        )

    with pytest.raises((Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError)):
        async with exports.open(query()) as export:
            await export.send(write)
    await exports.close()

    async with exports.open(query()) as again:
        reader = Reader()
        await again.send(reader.write)
    assert reader.body.count(b"\n") == 5


async def test_a_connection_for_exports_is_opened_when_it_is_needed(
    exports: Exports, export_pool: Pool
) -> None:
    assert export_pool.get_size() == 0
    async with exports.open(query()):
        assert export_pool.get_size() == 1
    await until(lambda: export_pool.get_idle_size() == 1)
