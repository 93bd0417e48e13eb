"""Small writes that share a statement: each has its own outcome, and none waits for another's."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

import psycopg
import pytest

from audit.errors import Conflict, Invalid, PreconditionFailed, TaskNotFound, TimedOut
from audit.history.parsing import batch_of
from audit.history.recording import Author
from audit.history.service import AuditService
from audit.history.task import Recorded, TaskDocument
from audit.postgres import statements
from audit.postgres.pool import note_statements, open_pool
from audit.settings import Settings
from tests.conftest import ago, execute, task
from tests.waiting import until

PROJECT, OTHER_PROJECT = uuid.uuid4(), uuid.uuid4()
STUCK = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
async def service(dsn: str) -> AsyncIterator[AuditService]:
    async with open_pool(Settings(pool_size=24), dsn) as pool:
        yield AuditService(pool)


def record(service: AuditService, **members: Any) -> Coroutine[Any, Any, Recorded]:
    """Record one task by a request of its own, which names itself as the author."""
    sent = task(status="pending", project_id=PROJECT, **members)
    author = Author(f"who sent {sent['request_text']}", f"request {sent['request_text']}")
    return service.recording.record_batches([batch_of([sent])], author)


def change(
    service: AuditService, task_id: str, members: dict[str, Any], **conditions: Any
) -> Coroutine[Any, Any, TaskDocument]:
    return service.recording.update(task_id, json.dumps(members), **conditions)


async def recorded(service: AuditService, count: int, **members: Any) -> list[str]:
    made = [task(status="pending", project_id=PROJECT, **members) for _ in range(count)]
    await service.record(made)
    return [one["task_id"] for one in made]


async def together(*requests: Awaitable[Any]) -> list[Any]:
    """Run requests at once: the first on its own, and all others in one group."""
    return await asyncio.gather(*requests, return_exceptions=True)


async def test_requests_that_arrive_together_share_statements(service: AuditService) -> None:
    results = await together(*(record(service, request_text=str(number)) for number in range(50)))

    assert [1] * 50 == [result.recorded for result in results]
    transactions = await service.database.pool.fetchval(
        "SELECT count(DISTINCT xmin::text) FROM tasks"
    )
    assert transactions == 2


async def test_the_log_of_each_request_names_the_statement_of_its_group(
    service: AuditService,
) -> None:
    async def noted(text: str) -> set[str]:
        names = note_statements()
        await record(service, request_text=text)
        return names

    ran = await together(*(noted(str(number)) for number in range(5)))

    assert [{"record_tasks"}] * 5 == ran


async def test_a_group_of_changes_reads_no_more_than_its_tasks(
    service: AuditService, dsn: str
) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, created_at)"
        " SELECT gen_random_uuid(), 'x', '2026-01-01T00:00:00Z' FROM generate_series(1, 5000)",
        "ANALYZE tasks",
    )
    ids = [task_id for (task_id,) in execute(dsn, "SELECT task_id FROM tasks LIMIT 8")]
    changes = [{"task_id": str(task_id), "change": {"status": "approved"}} for task_id in ids]
    statement = statements.UPDATE_TASKS
    values = {"changes": json.dumps(changes), "task_ids": ids, "lock_wait": "50ms"}

    async with service.database.pool.acquire() as connection, connection.transaction():
        await connection.fetch(statement, *statement.values(values))
        rows_read = await connection.fetchval(
            "SELECT sum(seq_tup_read + idx_tup_fetch)::int FROM pg_stat_xact_user_tables"
            " WHERE relname LIKE 'tasks%'"
        )

    assert [(8,)] == execute(dsn, "SELECT count(*) FROM tasks WHERE status = 'approved'")
    assert 0 < rows_read < 100


async def test_each_event_has_the_actor_and_the_request_id_of_its_request(
    service: AuditService, dsn: str
) -> None:
    await together(*(record(service, request_text=str(number)) for number in range(9)))
    ids = dict(execute(dsn, "SELECT request_text, task_id::text FROM tasks"))
    await together(
        *(
            change(service, task_id, {"status": "approved"}, author=Author(f"changer {text}", text))
            for text, task_id in ids.items()
        )
    )

    assert execute(
        dsn,
        "SELECT count(*) FROM task_event_queue JOIN tasks USING (task_id)"
        " WHERE (kind = 'recorded' AND actor = 'who sent ' || request_text"
        "        AND request_id = 'request ' || request_text)"
        " OR (kind = 'changed' AND actor = 'changer ' || request_text"
        "     AND request_id = request_text)",
    ) == [(18,)]


async def test_each_record_of_a_group_has_its_own_outcome(service: AuditService, dsn: str) -> None:
    (known,) = await recorded(service, 1, request_text="known")
    twice, contested = str(uuid.uuid4()), str(uuid.uuid4())
    at = ago(hours=1)

    results = await together(
        record(service, request_text="first"),
        record(service, request_text="new"),
        record(service, request_text="other content", task_id=known),
        record(service, request_text="same", task_id=twice, created_at=at),
        record(service, request_text="same", task_id=twice, created_at=at),
        record(service, request_text="one", task_id=contested, created_at=at),
        record(service, request_text="another", task_id=contested, created_at=at),
        record(service, request_text="too late", created_at=ago(hours=-25)),
        record(service, request_text="last"),
    )

    outcomes = [
        type(one) if isinstance(one, Exception) else (one.recorded, one.duplicates)
        for one in results
    ]
    assert [
        (1, 0), (1, 0), Conflict, (1, 0), (0, 1), (1, 0), Conflict, Invalid, (1, 0)
    ] == outcomes  # fmt: skip
    assert {"known", "first", "new", "same", "one", "last"} == {
        text for (text,) in execute(dsn, "SELECT request_text FROM tasks")
    }


async def test_a_task_of_a_month_without_partition_delays_no_other(service: AuditService) -> None:
    months = [f"20{year:02}-02-01T00:00:00Z" for year in range(1, 4)]

    results = await together(
        *(record(service, request_text=str(number)) for number in range(9)),
        *(record(service, request_text=month, created_at=month) for month in months),
    )

    assert [1] * 12 == [result.recorded for result in results]


async def test_each_change_of_a_group_has_its_own_conditions(service: AuditService) -> None:
    ids = await recorded(service, 10)
    await service.update(ids[1], {"status": "completed"})
    tag = (await service.get_task(ids[2])).etag
    approved = {"status": "approved"}

    results = await together(
        change(service, ids[0], approved),
        change(service, ids[1], {"status": "executing"}),
        change(service, ids[1], {"status": "completed"}),
        change(service, ids[2], approved, match=[tag], none_match=['"other"']),
        change(service, ids[3], approved, match=['"other"']),
        change(service, ids[4], approved, none_match=["*"]),
        change(service, ids[5], approved, project_id=PROJECT),
        change(service, ids[6], approved, project_id=OTHER_PROJECT),
        change(service, str(uuid.uuid4()), approved),
        change(service, ids[7], {}),
        change(service, ids[8], {"error_message": "x", "outcome": {"n": 1e2}}),
        change(service, ids[9], {"status": "rejected", "suggestions": None}),
    )

    outcomes = [
        type(one) if isinstance(one, Exception) else str(one.task.status) for one in results
    ]
    assert [
        "approved", Conflict, "completed", "approved", PreconditionFailed, PreconditionFailed,
        "approved", TaskNotFound, TaskNotFound, "pending", "pending", "rejected",
    ] == outcomes  # fmt: skip
    for result in results:
        if isinstance(result, TaskDocument):
            assert result == await service.get_task(result.task.task_id)


async def test_changes_of_one_task_at_once_are_all_made(service: AuditService) -> None:
    (task_id,) = await recorded(service, 1)
    services = [{"services_touched": [str(number)]} for number in range(20)]

    results = await together(*(change(service, task_id, members) for members in services))

    assert [one["services_touched"] for one in services] == [
        result.task.services_touched for result in results
    ]
    history = await service.database.pool.fetchval(
        "SELECT count(*) FROM task_event_queue WHERE task_id = $1", task_id
    )
    assert history == 21


async def test_a_task_that_another_transaction_changes_delays_only_its_own_request(
    service: AuditService, dsn: str
) -> None:
    ids = await recorded(service, 30)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT FROM tasks WHERE task_id = %s FOR UPDATE", [ids[7]])
        requests = [
            asyncio.create_task(change(service, task_id, {"status": "approved"})) for task_id in ids
        ]
        stuck = requests.pop(7)

        results = await asyncio.gather(*requests)

        assert {"approved"} == {result.task.status for result in results}
        assert not stuck.done()
    assert "approved" == (await stuck).task.status


async def test_an_id_that_another_transaction_records_delays_only_its_own_request(
    service: AuditService, dsn: str
) -> None:
    contested = uuid.uuid4()
    with psycopg.connect(dsn) as other:
        other.execute(
            "INSERT INTO tasks (task_id, request_text) VALUES (%s, 'by plain SQL')", [contested]
        )
        requests = [
            asyncio.create_task(record(service, request_text=str(number))) for number in range(30)
        ]
        stuck = asyncio.create_task(record(service, request_text="x", task_id=contested))

        results = await asyncio.gather(*requests)

        assert {1} == {result.recorded for result in results}
        await until(lambda: execute(dsn, STUCK) == [(1,)])
        other.rollback()
    assert 1 == (await stuck).recorded


async def test_a_lock_on_the_table_does_not_hold_a_group(service: AuditService, dsn: str) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        requests = [
            asyncio.create_task(record(service, request_text=str(number))) for number in range(3)
        ]
        # The group has given up, and its requests are served one by one.
        await until(lambda: execute(dsn, STUCK)[0][0] > 1)

    assert [1, 1, 1] == [(await request).recorded for request in requests]


async def test_a_lock_on_the_table_does_not_hold_a_group_of_changes(
    service: AuditService, dsn: str
) -> None:
    ids = await recorded(service, 4)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        requests = [
            asyncio.create_task(change(service, task_id, {"status": "approved"})) for task_id in ids
        ]
        # The group has given up, and its requests are served one by one.
        await until(lambda: execute(dsn, STUCK)[0][0] > 2)

    assert {"approved"} == {(await request).task.status for request in requests}


async def test_if_the_time_limit_is_over_nothing_of_the_group_is_recorded(dsn: str) -> None:
    limits = Settings(pool_size=8, write_timeout_seconds=0.4)
    async with open_pool(limits, dsn) as pool:
        service = AuditService(pool, limits)
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            results = await together(
                *(record(service, request_text=str(number)) for number in range(3))
            )

    assert [TimedOut] * 3 == [type(result) for result in results]
    assert all("nothing is recorded" in str(result) for result in results)
    assert execute(dsn, "SELECT count(*) FROM tasks") == [(0,)]


async def test_a_cancelled_request_does_not_cancel_its_group(
    service: AuditService, dsn: str
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE task_keys IN EXCLUSIVE MODE")
        requests = [
            asyncio.create_task(record(service, request_text=str(number))) for number in range(3)
        ]
        await until(lambda: execute(dsn, STUCK) != [(0,)])
        requests[1].cancel()
    results = await together(*requests)

    assert [1, 1] == [results[0].recorded, results[2].recorded]
    assert isinstance(results[1], asyncio.CancelledError)
