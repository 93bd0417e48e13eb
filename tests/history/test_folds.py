"""A fold is bounded, gets on whatever it meets, and never runs on an older snapshot."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from audit.errors import TimedOut
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import SERVING, ago, as_role, execute, task
from tests.waiting import until

WAITING = "SELECT count(*) FROM task_count_deltas"
SEQUENCE = "SELECT sequence_task_events(100000)"
INSERT = "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')"


def new_services(batch: int, tasks: int = 100, services: int = 30) -> list[dict[str, Any]]:
    """Tasks each of which touches services that no other one touches."""
    return [
        task(
            services_touched=[f"service-{batch}-{n}-{m}" for m in range(services)],
            created_at=ago(hours=n),
        )
        for n in range(tasks)
    ]


@asynccontextmanager
async def serving(dsn: str, **settings: Any) -> AsyncIterator[AuditService]:
    given = Settings(pool_size=2, **settings)
    async with open_pool(given, dsn) as pool:
        yield AuditService(pool, given)


async def test_a_fold_counts_as_many_events_as_their_cells_allow(
    service: AuditService, dsn: str
) -> None:
    await service.record(new_services(0))
    execute(dsn, SEQUENCE)
    for cells, expected in ((62, 1), (63, 1), (124, 2), (1, 1), (620, 10)):
        assert execute(dsn, f"SELECT * FROM fold_task_counts({cells})") == [(expected, False)]

    assert execute(dsn, "SELECT * FROM fold_task_counts(10000)") == [(85, True)]
    assert await service.upkeep.check_counts() == []


@pytest.mark.parametrize("cells", [1, 100, 100_000])
async def test_a_fold_in_portions_is_exact(dsn: str, cells: int) -> None:
    async with serving(dsn, max_fold_cells=cells) as service:
        await service.record(new_services(0, tasks=30, services=2))

        assert await service.upkeep.fold_counts() == 30
        assert await service.upkeep.fold_counts() == 0
        assert await service.upkeep.check_counts() == []
        assert await service.get_task_count(service="service-0-7-1") == 1


async def test_a_fold_that_times_out_continues_in_smaller_portions(dsn: str) -> None:
    """A trigger makes each count slow, as a busy disk would."""
    async with serving(dsn, statement_timeout_seconds=0.5) as service:
        await service.record(new_services(0, tasks=20))
        execute(
            dsn,
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END'",
            "CREATE TRIGGER slow BEFORE INSERT ON task_count_base"
            " FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        try:
            timeouts = 0
            left = 20
            while left:
                try:
                    await service.upkeep.fold_counts()
                except TimedOut:
                    timeouts += 1
                [(left,)] = execute(dsn, WAITING)
                assert timeouts < 30
        finally:
            execute(dsn, "DROP TRIGGER slow ON task_count_base", "DROP FUNCTION slow")

    assert timeouts > 0
    assert execute(dsn, "SELECT count(*) FROM task_counts WHERE grain = 'year'") == [(601,)]


async def test_a_split_that_would_take_too_long_is_postponed_to_later_folds(
    service: AuditService, dsn: str
) -> None:
    await service.record([task(created_at=ago(hours=n)) for n in range(700)])
    execute(dsn, SEQUENCE, "SELECT fold_task_counts(10000, 0)")
    assert execute(dsn, "SELECT count(*) FROM task_count_splits") == [(0,)]
    assert await service.upkeep.check_counts() == []

    await service.record([task(created_at=ago(hours=n)) for n in range(700)])
    await service.upkeep.fold_counts()

    assert execute(dsn, "SELECT count(*) FROM task_count_splits") > [(0,)]
    assert await service.upkeep.check_counts() == []


LONG = "x" * 256
BAD_NAMES = {
    "a long name": f"ARRAY['{LONG}']",
    "a long name of wide letters": f"ARRAY['a', '{'é' * 256}']",
    "no name": "ARRAY['a', '']",
    "a missing name": "ARRAY['a', NULL]",
    "101 names": "ARRAY(SELECT n::text FROM generate_series(1, 101) AS n)",
    "an array of arrays": "ARRAY[ARRAY['a'], ARRAY['b']]",
}


@pytest.mark.parametrize("case", BAD_NAMES)
async def test_names_that_cannot_be_counted_are_refused_when_recorded(dsn: str, case: str) -> None:
    serving_dsn = as_role(dsn, SERVING)
    columns = "INSERT INTO tasks (task_id, request_text, services_touched)"
    row = f"SELECT gen_random_uuid(), 'x', {BAD_NAMES[case]}"

    with pytest.raises(psycopg.errors.CheckViolation):
        execute(serving_dsn, f"{columns} {row}")

    # A value that is stored compressed elsewhere comes with its compressed size.
    execute(dsn, f"CREATE TABLE stored AS {row}")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            execute(dsn, f"{columns} SELECT * FROM stored")
    finally:
        execute(dsn, "DROP TABLE stored")


async def test_the_longest_names_and_intents_are_folded_and_rebuilt(
    service: AuditService, dsn: str
) -> None:
    wide = "".join(chr(0x10000 + n * 97 % 60_000) for n in range(255))
    names = [wide, wide[::-1], "x" * 255]
    await service.record([task(services_touched=names, outcome={"action_type": wide})])

    assert await service.upkeep.fold_counts() == 1
    assert await service.get_task_count(service=wide, intent=wide) == 1
    assert await service.upkeep.rebuild_counts() == 1
    assert await service.upkeep.check_counts() == []
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(
            as_role(dsn, SERVING),
            "INSERT INTO tasks (task_id, request_text, outcome) VALUES (gen_random_uuid(), 'x',"
            f""" '{{"action_type": "{LONG}"}}')""",
        )


@pytest.mark.parametrize("function", ["fold_task_counts(1000)", "rebuild_task_counts()"])
@pytest.mark.parametrize(
    ("isolation", "before"),
    [
        (psycopg.IsolationLevel.REPEATABLE_READ, "SELECT 1"),
        (psycopg.IsolationLevel.SERIALIZABLE, "SELECT 1"),
        (psycopg.IsolationLevel.READ_COMMITTED, "SELECT pg_current_xact_id()"),
        (psycopg.IsolationLevel.READ_COMMITTED, INSERT),
    ],
)
async def test_a_fold_is_refused_in_a_transaction_with_other_statements(
    dsn: str, function: str, isolation: psycopg.IsolationLevel, before: str
) -> None:
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = isolation
        connection.execute(before)
        with pytest.raises(psycopg.errors.InvalidTransactionState):
            connection.execute(f"SELECT {function}")


async def test_a_fold_whose_transaction_is_older_than_the_last_fold_is_exact(
    service: AuditService, dsn: str
) -> None:
    await service.record([task(task_id=str(uuid.uuid4())) for _ in range(7)])
    with psycopg.connect(as_role(dsn, SERVING)) as connection:
        connection.execute("SELECT count(*) FROM tasks")
        await service.upkeep.fold_counts()
        await service.record([task()])
        execute(dsn, SEQUENCE)
        before = await service.get_task_count(created_by="nobody")
        connection.execute("SELECT fold_task_counts(1000)")

    assert before == 0
    assert await service.get_task_count() == 8
    assert await service.upkeep.check_counts() == []


async def test_a_rebuild_that_waited_for_a_fold_is_exact(dsn: str) -> None:
    """The rebuild takes its snapshot after the lock that it has waited for."""
    async with serving(dsn) as service:
        await service.record([task() for _ in range(20)])
        execute(dsn, SEQUENCE)
        first = await asyncpg.connect(dsn)
        transaction = first.transaction()
        await transaction.start()
        await first.fetchval("SELECT folded FROM fold_task_counts(1000)")
        rebuilding = await asyncpg.connect(dsn)
        waiting = asyncio.create_task(rebuilding.fetchval("SELECT rebuild_task_counts()"))
        await until(lambda: execute(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        await transaction.commit()

        assert await waiting == 20
        assert await service.upkeep.check_counts() == []
        await first.close()
        await rebuilding.close()
