"""What the database itself holds: section 2 of the contract, whoever writes and however."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import psycopg.errors
import pytest

from audit.history.states import State
from audit.history.task import NewTask, TaskChange
from tests.conftest import Client, execute, task
from tests.conftest import _database as database
from tests.history.guards import (
    CHECK,
    ENUM,
    FIXED,
    NOT_NULL,
    NOT_THE_CLOCK,
    PARTITION,
    REMOVAL,
    STEP_BACK,
    TERMINAL,
    UNIQUE,
    insert,
    partition_of,
    refusal,
)

OPEN_ID, DONE_ID = (str(uuid.UUID(int=n, version=4)) for n in (1, 2))


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    """One database for all: what is refused changes nothing."""
    yield from database(postgres, template)


@pytest.fixture(scope="module")
def guarded(dsn: str) -> Iterator[dict[str, str]]:
    """The database as its owner reaches it, and as a role that only has every right to the tables.

    It holds the executing task OPEN_ID and the completed one DONE_ID, both of now.
    """
    execute(
        dsn,
        "CREATE ROLE clerk LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk",
        f"INSERT INTO tasks (task_id, request_text, status, services_touched, approved_at)"
        f" VALUES ('{OPEN_ID}', 'Open', 'executing', '{{a}}', now()),"
        f" ('{DONE_ID}', 'Done', 'completed', '{{a}}', now())",
    )
    yield {"owner": dsn, "clerk": dsn.replace("//audit@", "//clerk@")}
    execute(dsn, "DROP OWNED BY clerk", "DROP ROLE clerk")


# --- a task that is recorded ----------------------------------------------------------------------

UPDATES = {
    "terminal: its findings": ("error_message = 'x'", DONE_ID, TERMINAL),
    "terminal: nothing": ("status = status", DONE_ID, TERMINAL),
    "terminal: back": ("status = 'executing'", DONE_ID, TERMINAL),
    "terminal: another end": ("status = 'failed'", DONE_ID, TERMINAL),
    "terminal: its content": ("request_text = 'x'", DONE_ID, TERMINAL),
    "back by one": ("status = 'approved'", OPEN_ID, STEP_BACK),
    "back to the start": ("status = 'pending'", OPEN_ID, STEP_BACK),
    "task_id": ("task_id = gen_random_uuid()", OPEN_ID, FIXED),
    "project_id": ("project_id = gen_random_uuid()", OPEN_ID, FIXED),
    "request_text": ("request_text = 'x'", OPEN_ID, FIXED),
    "created_by": ("created_by = 'x'", OPEN_ID, FIXED),
    "created_at": ("created_at = created_at - interval '1 us'", OPEN_ID, FIXED),
    "created_at, far": ("created_at = created_at - interval '99 days'", OPEN_ID, FIXED),
    "recorded_at": ("recorded_at = now()", OPEN_ID, FIXED),
    "a fixed one on the way to an end": ("status = 'failed', created_by = 'x'", OPEN_ID, FIXED),
    "forwards": ("status = 'failed'", OPEN_ID, None),
    "findings": ("outcome = '{}', services_touched = '{b}', suggestions = '[]'", OPEN_ID, None),
}  # fmt: skip


@pytest.mark.parametrize("role", ["owner", "clerk"])
@pytest.mark.parametrize("case", UPDATES)
def test_a_task_only_moves_to_a_later_state(guarded: dict[str, str], role: str, case: str) -> None:
    change, task_id, state = UPDATES[case]
    where = f"WHERE task_id = '{task_id}'"

    assert state == refusal(guarded[role], f"UPDATE tasks SET {change} {where}")


REMOVALS = [
    f"DELETE FROM tasks WHERE task_id = '{OPEN_ID}'",
    f"DELETE FROM tasks WHERE task_id = '{DONE_ID}'",
    f"DELETE FROM {{partition}} WHERE task_id = '{DONE_ID}'",
    f"MERGE INTO tasks USING (SELECT 1) AS one ON task_id = '{DONE_ID}' WHEN MATCHED THEN DELETE",
    "TRUNCATE tasks",
    "TRUNCATE {partition}",
    "TRUNCATE tasks, task_keys CASCADE",
    "TRUNCATE task_keys",
    f"DELETE FROM task_keys WHERE task_id = '{DONE_ID}'",
    f"UPDATE task_keys SET created_at = now() WHERE task_id = '{DONE_ID}'",
    f"UPDATE task_keys SET digest = NULL WHERE task_id = '{DONE_ID}'",
    "INSERT INTO task_keys TABLE task_keys ON CONFLICT (task_id) DO UPDATE SET digest = ''",
]


@pytest.mark.parametrize("role", ["owner", "clerk"])
@pytest.mark.parametrize("statement", REMOVALS)
def test_tasks_and_keys_cannot_be_deleted_or_truncated(
    guarded: dict[str, str], role: str, statement: str
) -> None:
    partition = partition_of(guarded["owner"], DONE_ID)

    assert refusal(guarded[role], statement.format(partition=partition)) == REMOVAL


def test_an_upsert_cannot_bypass_the_guards(guarded: dict[str, str]) -> None:
    upsert = (
        "INSERT INTO tasks (task_id, created_at, request_text)"
        " SELECT task_id, created_at, 'x' FROM tasks WHERE task_id = '{}'"
        " ON CONFLICT (task_id, created_at) DO UPDATE SET request_text = 'x'"
    )

    actual = [refusal(guarded["clerk"], upsert.format(one)) for one in (OPEN_ID, DONE_ID)]

    assert [FIXED, TERMINAL] == actual


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE tasks DISABLE TRIGGER ALL",
        "DROP TRIGGER guard_change ON tasks",
        "DROP TABLE tasks",
        "ALTER TABLE tasks DETACH PARTITION {partition}",
        "SET session_replication_role = replica",
        "ALTER FUNCTION is_terminal RENAME TO was_terminal",
        "CREATE FUNCTION public.is_terminal(text) RETURNS boolean LANGUAGE sql RETURN false",
    ],
)
def test_an_ordinary_role_cannot_switch_the_guards_off(
    guarded: dict[str, str], statement: str
) -> None:
    partition = partition_of(guarded["owner"], DONE_ID)

    assert refusal(guarded["clerk"], statement.format(partition=partition)) == "42501"


def test_the_guards_ignore_the_search_path_of_a_role(guarded: dict[str, str]) -> None:
    execute(guarded["owner"], "CREATE SCHEMA AUTHORIZATION clerk")
    execute(
        guarded["clerk"],
        "CREATE FUNCTION clerk.is_terminal(task_status) RETURNS boolean"
        " LANGUAGE sql AS 'SELECT false'",
    )

    state = refusal(
        guarded["clerk"],
        "DO $$ BEGIN SET LOCAL search_path = clerk, public;"
        f" UPDATE tasks SET error_message = 'x' WHERE task_id = '{DONE_ID}'; END $$",
    )

    assert state == TERMINAL


def test_a_temporary_table_does_not_replace_task_keys(guarded: dict[str, str]) -> None:
    state = refusal(
        guarded["clerk"],
        "CREATE TEMPORARY TABLE task_keys (LIKE public.task_keys);"
        " INSERT INTO public.tasks (task_id, created_at, request_text)"
        f" VALUES ('{DONE_ID}', now() - interval '40 days', 'x')",
    )

    assert state == UNIQUE


# --- a task that is recorded by SQL ---------------------------------------------------------------

NUMBERS = "(SELECT array_agg(n::text) FROM generate_series(1, {}) AS n)"
VALUES: dict[str, tuple[str, str, str | None]] = {
    "recorded_at of the past": ("recorded_at", "now() - interval '1 s'", NOT_THE_CLOCK),
    "recorded_at of the future": ("recorded_at", "now() + interval '1 s'", NOT_THE_CLOCK),
    "recorded_at of the clock": ("recorded_at", "now()", None),
    "created_at before 2000": ("created_at", "'1999-12-31 23:59:59.999999Z'", CHECK),
    "created_at of 24 hours ahead": ("created_at", "now() + interval '24 hours'", None),
    "created_at of later": ("created_at", "now() + interval '24 hours 1 us'", CHECK),
    "created_at of infinity": ("created_at", "'infinity'", CHECK),
    "created_at of nothing": ("created_at", "NULL", CHECK),
    "request_text of nothing": ("request_text", "NULL", NOT_NULL),
    "request_text empty": ("request_text", "''", CHECK),
    "request_text of the longest": ("request_text", "repeat('ß', 65536)", None),
    "request_text of longer": ("request_text", "repeat('a', 65537)", CHECK),
    "created_by empty": ("created_by", "''", CHECK),
    "created_by of the longest": ("created_by", "repeat('ß', 255)", None),
    "created_by of longer": ("created_by", "repeat('a', 256)", CHECK),
    "services_touched of nothing": ("services_touched", "NULL", NOT_NULL),
    "services_touched with an empty name": ("services_touched", "'{a,\"\"}'", CHECK),
    "services_touched with a null": ("services_touched", "'{a,NULL}'", CHECK),
    "a hundred services": ("services_touched", NUMBERS.format(100), None),
    "more services": ("services_touched", NUMBERS.format(101), CHECK),
    "status unknown": ("status", "'done'", ENUM),
    "status of nothing": ("status", "NULL", NOT_NULL),
    **{
        f"{name} of {value}": (name, f"'{value}'", CHECK)
        for name in ("outcome", "estimated_resources", "actual_resources", "external_ai_used")
        for value in ("[]", "null", "1")
    },
    **{f"suggestions of {v}": ("suggestions", f"'{v}'", CHECK) for v in ("{}", "null", "1")},
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_sql_cannot_record_values_that_the_api_refuses(guarded: dict[str, str], case: str) -> None:
    column, value, state = VALUES[case]
    row = {"task_id": "gen_random_uuid()", "request_text": "'By SQL'", column: value}

    statement = f"INSERT INTO tasks ({', '.join(row)}) VALUES ({', '.join(row.values())})"

    assert state == refusal(guarded["clerk"], statement)


def copy(dsn: str) -> str:
    task_id = str(uuid.uuid4())
    with (
        psycopg.connect(dsn) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY tasks (task_id, request_text) FROM STDIN") as copying,
    ):
        copying.write_row((task_id, "By COPY"))
    return task_id


@pytest.mark.parametrize("by", [insert, copy])
async def test_a_task_recorded_by_sql_is_found_by_its_id(client: Client, dsn: str, by: Any) -> None:
    task_id = by(dsn)

    assert (await client.get(f"/api/v1/audit/tasks/{task_id}")).status == 200


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO {partition} (request_text) VALUES ('By SQL')",
        "UPDATE {partition} SET error_message = 'x'",
    ],
)
def test_a_write_to_a_partition_itself_is_refused(guarded: dict[str, str], statement: str) -> None:
    partition = partition_of(guarded["owner"], DONE_ID)

    assert refusal(guarded["owner"], statement.format(partition=partition)) == PARTITION


def test_an_id_is_unique_across_months(dsn: str) -> None:
    now = datetime.now(UTC)
    task_id = insert(dsn, created_at=now)

    for created_at in (now, now - timedelta(microseconds=1), now - timedelta(days=40)):
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(dsn, task_id=task_id, created_at=created_at)


async def test_an_id_is_unique_however_it_is_recorded(client: Client, dsn: str) -> None:
    sent = task()
    assert (await client.post("/api/v1/audit/tasks", json=sent)).status == 201

    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(dsn, task_id=sent["task_id"])


def test_a_session_that_began_with_few_tasks_uses_indexes_later(fresh: str) -> None:
    """A plan of a trigger lives as long as its session: made for one task, it serves millions."""
    record = (
        "INSERT INTO tasks (task_id, request_text)"
        " SELECT gen_random_uuid(), 'x' FROM generate_series(1, {})"
    )
    with psycopg.connect(fresh, autocommit=True) as connection:
        connection.execute(record.format(1))
        connection.execute("VACUUM ANALYZE")
        for tasks in (1, 1000, 1000, 1000):
            connection.execute(record.format(tasks))
        connection.execute("SELECT pg_stat_force_next_flush()")
        read = connection.execute(
            "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relname LIKE 'task%' AND seq_tup_read + COALESCE(idx_tup_fetch, 0) > 10000"
        ).fetchall()

    assert [] == read


# --- Python and SQL say the same ------------------------------------------------------------------


def test_the_states_are_those_of_the_database_in_the_same_order(dsn: str) -> None:
    query = (
        "SELECT state::text, is_terminal(state)"
        " FROM unnest(enum_range(NULL::task_status)) WITH ORDINALITY AS states (state, place)"
        " ORDER BY place"
    )

    assert [(state.value, state.is_terminal) for state in State] == execute(dsn, query)


def test_the_fields_are_the_columns(dsn: str) -> None:
    columns = execute(
        dsn,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'tasks'::regclass AND attnum > 0",
    )

    assert {*NewTask.model_fields, "recorded_at", "intent"} == {name for (name,) in columns}


def test_the_members_of_a_change_are_those_that_the_database_lets_change(
    guarded: dict[str, str],
) -> None:
    columns = {*NewTask.model_fields, "recorded_at"}
    examples: dict[str, str] = {
        "status": "'failed'", "services_touched": "'{x}'", "suggestions": "'[1]'",
        "request_text": "'x'", "created_by": "'x'", "error_message": "'x'",
        "task_id": "gen_random_uuid()", "project_id": "gen_random_uuid()",
        **dict.fromkeys(("created_at", "recorded_at", "approved_at", "completed_at"), "now()"),
    }  # fmt: skip

    changeable = {
        name
        for name in columns
        if refusal(
            guarded["clerk"],
            f"UPDATE tasks SET {name} = {examples.get(name, json.dumps({}).join(2 * [chr(39)]))}"
            f" WHERE task_id = '{OPEN_ID}'",
        )
        is None
    }

    assert {*TaskChange.model_fields} == changeable
