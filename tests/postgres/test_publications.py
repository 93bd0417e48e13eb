"""A publication of all tables, as programs for change data capture make it, stops nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from audit.access.identity import Scope
from audit.access.keys import create_key, revoke_key
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import FAST, POSTGRES, ago, execute, of_database, task
from tests.waiting import until

PUBLISHED = (
    "SELECT count(*) FROM pg_logical_slot_get_binary_changes('capture', NULL, NULL,"
    " 'proto_version', '1', 'publication_names', 'everything')"
)
#: Tables whose rows PostgreSQL would not let anyone change while they are published. A table is
#: not one of them if a trigger refuses each change of a row anyway.
WITHOUT_IDENTITY = """
SELECT relname::text
FROM pg_class
WHERE relkind = 'r'
    AND relnamespace = 'public'::regnamespace
    AND NOT CASE relreplident
        WHEN 'f' THEN TRUE
        WHEN 'd' THEN EXISTS (
            SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary
        )
        WHEN 'i' THEN EXISTS (
            SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisreplident
        )
        ELSE FALSE
    END
    AND NOT EXISTS (
        SELECT
        FROM pg_trigger
        WHERE tgrelid = pg_class.oid AND tgname = 'refuse_change' AND tgenabled = 'A'
    )
ORDER BY relname
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with a publication of all tables, which a logical slot reads."""
    folder = tmp_path_factory.mktemp("published")
    with embedded.running(
        folder, bin_dir=POSTGRES, options={**FAST, "wal_level": "logical"}
    ) as dsn:
        migrate.apply(dsn)
        execute(
            dsn,
            "CREATE PUBLICATION everything FOR ALL TABLES",
            "SELECT pg_create_logical_replication_slot('capture', 'pgoutput')",
        )
        yield dsn


@pytest.fixture
async def capturing(published: str) -> AsyncIterator[AuditService]:
    async with open_pool(Settings(pool_size=2), published) as pool:
        yield AuditService(pool)


async def count(service: AuditService, **filters: Any) -> int:
    return await service.reading.count_tasks(AuditQuery(**filters))


async def test_recording_sequencing_and_counting_go_on(
    published: str, capturing: AuditService
) -> None:
    opened = task(status="pending")
    before = await count(capturing)
    await capturing.record([opened, task(), task(created_at=ago(days=200))])
    await capturing.update(opened["task_id"], {"status": "completed"})
    assert 4 == await capturing.upkeep.fold_counts()
    await capturing.record([task()])
    assert 1 == await capturing.upkeep.fold_counts()

    assert before + 4 == await count(capturing)
    # A tally is saved, and replaced.
    for _ in range(2):
        await capturing.record([task(created_by="ann") for _ in range(3)])
        await count(capturing, created_by="ann")
    await capturing.upkeep.rebuild_counts()
    assert [] == await capturing.upkeep.check_counts()
    [(events,)] = execute(published, PUBLISHED)
    assert events > 0


async def test_counts_go_into_runs_and_back(published: str, capturing: AuditService) -> None:
    runs = "SELECT cardinality(runs) FROM task_count_run_lists ORDER BY list DESC LIMIT 1"
    with psycopg.connect(published) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        while execute(published, runs) == [(0,)]:
            await capturing.record([task(services_touched=list("abcdefgh")) for _ in range(350)])
            await capturing.upkeep.fold_counts(is_lazy=True)
        await capturing.record([task() for _ in range(350)])
        await capturing.upkeep.fold_counts(is_lazy=True)
        assert [] == await capturing.upkeep.check_counts()
    await capturing.upkeep.fold_counts()
    assert [(0,)] == execute(published, runs)
    assert [] == await capturing.upkeep.check_counts()


async def test_partitions_that_are_made_later_can_be_written(
    published: str, capturing: AuditService
) -> None:
    execute(published, "SELECT make_task_partition('2021-05-01', 'day')")
    old = task(status="pending", created_at=datetime(2021, 5, 1, tzinfo=UTC))
    await capturing.record([old])
    await capturing.update(old["task_id"], {"status": "failed"})
    execute(published, "SELECT make_event_partition(now() + interval '40 days')")

    await capturing.upkeep.fold_counts()
    assert 1 == await count(capturing, until=datetime(2021, 6, 1, tzinfo=UTC))


async def test_keys_exports_and_events_of_older_tasks_are_recorded(
    published: str, capturing: AuditService
) -> None:
    pool = capturing.database.pool
    await create_key(pool, "someone", frozenset({Scope.READ}))
    await revoke_key(pool, "someone")
    execute(published, "ALTER TABLE tasks DISABLE TRIGGER queue_recorded")
    await capturing.record([task()])
    execute(published, "ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded")
    imported = [done async for done in capturing.backfill.run()]

    assert 1 == imported[-1].imported
    await capturing.upkeep.fold_counts()


def test_migrations_are_rolled_back_and_applied(published: str) -> None:
    migrate.roll_back(published, "0013_queue_bounds")
    migrate.apply(published)


def test_every_table_can_be_changed_while_it_is_published(published: str) -> None:
    assert [] == execute(published, WITHOUT_IDENTITY)


def test_a_table_without_a_replica_identity_is_found(empty_dsn: str) -> None:
    execute(empty_dsn, "CREATE TABLE forgotten (n integer)")

    assert [("forgotten",)] == execute(empty_dsn, WITHOUT_IDENTITY)


async def test_a_subscriber_of_the_tasks_gets_them_and_their_changes(
    published: str, capturing: AuditService
) -> None:
    columns = execute(
        published,
        "SELECT string_agg(quote_ident(attname) || ' text', ', ' ORDER BY attnum)"
        " FROM pg_attribute"
        " WHERE attrelid = 'tasks'::regclass AND attnum > 0 AND NOT attisdropped",
    )[0][0]
    copy = of_database(published, "copy")
    execute(
        published,
        "CREATE DATABASE copy",
        "CREATE PUBLICATION history FOR TABLE tasks WITH (publish_via_partition_root)",
        "SELECT pg_create_logical_replication_slot('copy', 'pgoutput')",
    )
    execute(
        copy,
        f"CREATE TABLE tasks ({columns}, PRIMARY KEY (created_at, task_id))",
        f"CREATE SUBSCRIPTION copy CONNECTION '{published}' PUBLICATION history"
        " WITH (create_slot = false, slot_name = 'copy', synchronous_commit = off)",
    )
    try:
        new = task(status="pending")
        for sent in (new, task(created_at=datetime(2022, 5, 1, tzinfo=UTC))):
            await capturing.record([sent])
        await capturing.update(new["task_id"], {"status": "approved"})
        tasks = execute(published, "SELECT task_id::text, status::text FROM tasks ORDER BY 1")
        copied = "SELECT task_id, status FROM tasks ORDER BY 1"
        await until(lambda: execute(copy, copied) == tasks)
    finally:
        execute(copy, "DROP SUBSCRIPTION copy")
