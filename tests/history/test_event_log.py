"""The event log: each change leaves one event that says who made it, and nobody can alter it."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import psycopg
import pytest

from audit.errors import Invalid
from audit.history.service import AuditService
from audit.postgres import migrate
from tests.api import TASKS
from tests.conftest import SERVING, Client, ago, as_role, execute, task
from tests.history.guards import REMOVAL, insert, refusal

EVENTS = """
SELECT
    kind::text, before_status::text, status::text, actor, request_id, db_role::text, salt, content
FROM (
    SELECT event_id, kind, before_status, status, actor, request_id, db_role, salt, content
    FROM task_event_queue
    UNION ALL
    SELECT event_id, kind, before_status, status, actor, request_id, db_role, salt, content
    FROM task_events
) AS events
ORDER BY event_id
"""
ONE = "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')"
THREE = (
    "INSERT INTO tasks (task_id, request_text)"
    " SELECT gen_random_uuid(), 'x' FROM generate_series(1, 3)"
)
UPSERT = (
    "INSERT INTO tasks (task_id, created_at, request_text)"
    " SELECT task_id, created_at, 'y' FROM tasks"
    " ON CONFLICT (created_at, task_id) DO UPDATE SET status = 'executing'"
)
UPDATE = "UPDATE tasks SET status = 'executing'"
IDLE = "UPDATE tasks SET status = status"


def events(dsn: str, column: str) -> list[Any]:
    names = ("kind", "before", "status", "actor", "request_id", "role", "salt", "content")
    return [row[names.index(column)] for row in execute(dsn, EVENTS)]


def changes(dsn: str) -> list[tuple[str, str | None, str]]:
    return [(kind, before, after) for kind, before, after, *_ in execute(dsn, EVENTS)]


NEW = ("recorded", None, "pending")
STARTED = ("changed", "pending", "executing")


async def test_recording_and_changing_by_the_api(client: Client, dsn: str) -> None:
    sent = [task(status="pending") for _ in range(3)]
    await client.post(TASKS, json=sent[0])
    await client.post(TASKS, json=sent)
    path = f"{TASKS}/{sent[1]['task_id']}"
    for _ in range(2):
        response = await client.patch(path, json={"status": "executing"})
        assert response.status == 200
    response = await client.patch(path, json={"status": "pending"})
    assert response.status == 409

    assert [NEW, NEW, NEW, STARTED] == changes(dsn)
    assert {SERVING} == set(events(dsn, "role"))


COPIED = "COPY tasks (task_id, request_text) FROM STDIN"
SQL: dict[str, tuple[list[str], list[tuple[str, str | None, str]]]] = {
    "one task": ([ONE], [NEW]),
    "several tasks": ([THREE], [NEW, NEW, NEW]),
    "an update": ([ONE, ONE, UPDATE], [NEW, NEW, STARTED, STARTED]),
    "an update of nothing": ([UPDATE], []),
    "an update that changes nothing": ([ONE, IDLE], [NEW, ("changed", "pending", "pending")]),
    "a transaction": (["BEGIN", ONE, UPDATE, "COMMIT", ONE], [NEW, STARTED, NEW]),
    "a rollback": (["BEGIN", ONE, UPDATE, "ROLLBACK", ONE], [NEW]),
    "a savepoint": (
        ["BEGIN", "SAVEPOINT one", ONE, "RELEASE one", "SAVEPOINT two", ONE, UPDATE,
         "ROLLBACK TO two", "COMMIT"],
        [NEW],
    ),
    "an upsert": ([ONE, UPSERT], [NEW, STARTED]),
    "two-phase commit": (
        ["BEGIN", ONE, "PREPARE TRANSACTION 'kept'", "BEGIN", ONE, "PREPARE TRANSACTION 'dropped'",
         "ROLLBACK PREPARED 'dropped'", "COMMIT PREPARED 'kept'"],
        [NEW],
    ),
    "replication": (["SET session_replication_role = replica", ONE, UPDATE], [NEW, STARTED]),
}  # fmt: skip


@pytest.mark.parametrize("case", SQL)
def test_each_change_by_sql_makes_one_event(dsn: str, case: str) -> None:
    statements, expected = SQL[case]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)

    assert expected == changes(dsn)


def test_each_task_of_a_copy_makes_one_event(dsn: str) -> None:
    with psycopg.connect(dsn) as connection, connection.cursor().copy(COPIED) as copy:
        for _ in range(1000):
            copy.write_row((uuid.uuid4(), "copied"))

    assert [NEW] * 1000 == changes(dsn)
    assert [(1000,)] == execute(dsn, "SELECT count(DISTINCT salt) FROM task_event_queue")


async def test_a_refused_batch_leaves_no_event(client: Client, dsn: str) -> None:
    known = task()
    await client.post(TASKS, json=known)
    response = await client.post(TASKS, json=[task(), {**known, "request_text": "other"}])

    assert response.status == 409
    assert len(changes(dsn)) == 1


async def test_programs_say_who_writes(service: AuditService, dsn: str) -> None:
    made = task(status="pending")
    await service.record([made], actor="nightly import")
    await service.update(made["task_id"], {"status": "executing"}, actor="Ada Lovelace")
    await service.update(made["task_id"], {"status": "failed"})
    await service.record([task()])

    assert ["nightly import", "Ada Lovelace", None, None] == events(dsn, "actor")
    for actor in ("", "x" * 256, "a\nb", "\0", "\ud800", 5):
        with pytest.raises(Invalid, match="actor"):
            await service.record([task()], actor=actor)  # type: ignore[arg-type]


async def test_the_author_of_a_request_is_not_that_of_the_next(client: Client, dsn: str) -> None:
    for request_id in ("first", "second"):
        await client.post(TASKS, json=task(), headers={"X-Request-ID": request_id})
    execute(as_role(dsn, SERVING), ONE)

    assert ["first", "second", None] == events(dsn, "request_id")
    assert [None, None, None] == events(dsn, "actor")


def test_a_statement_for_several_requests_names_the_author_of_each_task(dsn: str) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT set_config('audit.actor', 'all', TRUE), set_config('audit.authors', %s, TRUE)",
            [json.dumps({ids[0]: ["ada", "r1"], ids[1]: [None, "r2"]})],
        )
        connection.execute(
            "INSERT INTO tasks (task_id, request_text) SELECT unnest(%s::uuid[]), 'x'", [ids]
        )

    stored = {
        str(task_id): (actor, request_id)
        for task_id, actor, request_id in execute(
            dsn, "SELECT task_id, actor, request_id FROM task_event_queue"
        )
    }
    authors = [("ada", "r1"), (None, "r2"), ("all", None)]
    assert dict(zip(ids, authors, strict=True)) == stored


def test_the_role_is_that_of_the_login(dsn: str) -> None:
    execute(as_role(dsn, SERVING), ONE)
    with psycopg.connect(dsn) as connection:
        connection.execute(f"SET ROLE {SERVING}")
        connection.execute(ONE)

    assert [SERVING, "audit"] == events(dsn, "role")


async def test_the_content_is_the_digest_of_the_salt_and_the_response(
    client: Client, dsn: str
) -> None:
    made = task(
        status="pending",
        request_text="Straße \U0001f600 \u2028 \ufeff",
        outcome={"n": 1.50, "big": 10**22, "tiny": 1e-7},
    )
    await client.post(TASKS, json=made)
    path = f"{TASKS}/{made['task_id']}"
    bodies = [await (await client.get(path)).read()]
    await client.patch(path, json={"status": "failed", "error_message": "\x01"})
    bodies.append(await (await client.get(path)).read())

    assert events(dsn, "content") == [
        hashlib.sha256(f"{salt}\n".encode() + body).digest()
        for salt, body in zip(events(dsn, "salt"), bodies, strict=True)
    ]


VERSIONS = [
    "status = 'approved', outcome = '{\"n\": 1.0, \"action_type\": \"a\"}'",
    "outcome = '{\"n\": 1.00, \"action_type\": \"b\"}', services_touched = '{a, \"b,c\", ü}'",
    "approved_at = '-infinity', suggestions = '[1e-7, 12345678901234567890123]'",
    "services_touched = '{}', error_message = ' ', suggestions = NULL",
    "approved_at = '0044-03-15 00:00:00+00 BC', estimated_resources = '{\"a\": null}'",
    "error_message = '', actual_resources = '{}', external_ai_used = '{\"a\": [1.10]}'",
    "status = status",
    "completed_at = '2026-01-01 00:00:00.123456+02', status = 'completed'",
]  # fmt: skip
EARLIER = """
WITH RECURSIVE versions AS (
    SELECT events.n, tasks AS task, events.was, events.content, events.salt
    FROM tasks CROSS JOIN LATERAL (
        SELECT row_number() OVER (ORDER BY event_id) AS n, *
        FROM task_event_queue
    ) AS events
    WHERE events.n = (SELECT count(*) FROM task_event_queue)
    UNION ALL
    SELECT events.n, jsonb_populate_record(task, versions.was), events.was, events.content,
        events.salt
    FROM versions CROSS JOIN LATERAL (
        SELECT row_number() OVER (ORDER BY event_id) AS n, *
        FROM task_event_queue
    ) AS events
    WHERE events.n = versions.n - 1
)
SELECT count(*), count(was), bool_and(content = task_content(salt, task_document(task)))
FROM versions
"""


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_every_earlier_version_can_be_made_from_the_task(dsn: str, zone: str) -> None:
    insert(dsn, status="pending")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"SET timezone = '{zone}'")
        for version in VERSIONS:
            connection.execute(f"UPDATE tasks SET {version}")

    assert [(len(VERSIONS) + 1, len(VERSIONS), True)] == execute(dsn, EARLIER)
    assert [({},)] == execute(
        dsn, "SELECT was FROM task_event_queue WHERE status = before_status AND was = '{}'"
    )


WRITES = {
    "UPDATE {} SET actor = 'nobody'": REMOVAL,
    "DELETE FROM {}": REMOVAL,
    "TRUNCATE {}": REMOVAL,
}


@pytest.mark.parametrize("table", ["task_event_queue", "task_events", "partition"])
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_nobody_changes_or_removes_an_event(
    service: AuditService, dsn: str, table: str, role: str
) -> None:
    await service.record([task(), task()])
    await service.upkeep.sequence_events()
    await service.record([task()])
    if table == "partition":
        [(table,)] = execute(dsn, "SELECT DISTINCT tableoid::regclass::text FROM task_events")
    setting = f"SET session_replication_role = {role};"

    for statement, expected in WRITES.items():
        assert expected == refusal(dsn, setting + statement.format(table))
        assert refusal(as_role(dsn, SERVING), statement.format(table)) == "42501"
    assert refusal(as_role(dsn, SERVING), f"INSERT INTO {table} DEFAULT VALUES") == "42501"
    assert [(2, 1)] == execute(
        dsn,
        "SELECT (SELECT count(*) FROM task_events), (SELECT count(*) FROM task_event_queue)",
    )


def test_tasks_recorded_before_the_log_get_events_when_they_change(empty_dsn: str) -> None:
    migrate.apply(empty_dsn, "0003_guards")
    execute(empty_dsn, "SELECT make_task_partition(now(), 'month')", ONE, ONE)
    migrate.apply(empty_dsn)
    assert [] == changes(empty_dsn)

    execute(empty_dsn, UPDATE)

    assert [STARTED, STARTED] == changes(empty_dsn)
    assert [(2, True)] == execute(empty_dsn, "SELECT * FROM sequence_task_events(10)")


def values(dsn: str, created_at: Any) -> list[tuple[Any, ...]]:
    return execute(
        dsn, "SELECT before_services, services_touched, before_intent, intent, created_at = "
        f"'{created_at}' FROM task_event_queue ORDER BY event_id"
    )  # fmt: skip


def test_an_event_has_the_facts_before_and_after(dsn: str) -> None:
    created_at = ago(days=1)
    insert(dsn, created_at=created_at, services_touched=["a"], outcome='{"action_type": "x"}')
    execute(
        dsn, """UPDATE tasks SET services_touched = '{a,b}', outcome = '{"action_type": "y"}'"""
    )

    assert [(None, ["a"], None, "x", True), (["a"], ["a", "b"], "x", "y", True)] == values(
        dsn, created_at
    )
