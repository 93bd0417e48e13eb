"""Attacks of each database role on the history, the guards and the counts."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from audit.postgres import migrate
from tests.conftest import execute
from tests.security.roles import (
    DENIED,
    DONE_ID,
    FIXED,
    LONE,
    NOT_THE_CLOCK,
    OPEN_ID,
    OWNER,
    PARTITION,
    READING,
    REMOVAL,
    ROLES,
    SERVING,
    SUPERUSER,
    TERMINAL,
    WRONG,
    refusal,
)  # fmt: skip


def refusals(history: dict[str, str], statement: str) -> list[str | None]:
    """Return the SQLSTATE with which each role is refused a statement, in the order of ROLES."""
    [(partition,)] = execute(
        history[SUPERUSER], f"SELECT tableoid::regclass FROM tasks WHERE task_id = '{DONE_ID}'"
    )
    return [refusal(history[role], statement.replace("{partition}", partition)) for role in ROLES]


OF_OPEN, OF_DONE = f"WHERE task_id = '{OPEN_ID}'", f"WHERE task_id = '{DONE_ID}'"
MERGE = f"MERGE INTO tasks USING (SELECT 1) AS one ON task_id = '{DONE_ID}' WHEN MATCHED THEN"
UPSERT = (
    "INSERT INTO tasks (task_id, created_at, request_text)"
    f" SELECT task_id, created_at, 'x' FROM tasks {OF_DONE}"
    " ON CONFLICT (task_id, created_at) DO UPDATE SET"
)
PAST = "'2020-01-01 00:00:00Z'"

#: A statement, and what it raises for the owner, for the role that serves, and for the one that
#: reads.
Attack = tuple[str, str | None, str | None, str | None]

HISTORY: dict[str, Attack] = {
    "another end": (f"UPDATE tasks SET status = 'failed' {OF_DONE}", TERMINAL, TERMINAL, DENIED),
    "findings": (f"UPDATE tasks SET outcome = '{{}}' {OF_DONE}", TERMINAL, TERMINAL, DENIED),
    "text": (f"UPDATE tasks SET request_text = 'x' {OF_OPEN}", FIXED, DENIED, DENIED),
    "person": (f"UPDATE tasks SET created_by = 'x' {OF_OPEN}", FIXED, DENIED, DENIED),
    "time": (f"UPDATE tasks SET created_at = {PAST} {OF_OPEN}", FIXED, DENIED, DENIED),
    "id": (f"UPDATE tasks SET task_id = gen_random_uuid() {OF_OPEN}", FIXED, DENIED, DENIED),
    "clock": (f"UPDATE tasks SET recorded_at = {PAST} {OF_OPEN}", FIXED, DENIED, DENIED),
    "delete": ("DELETE FROM tasks", REMOVAL, DENIED, DENIED),
    "delete one": (f"DELETE FROM tasks {OF_OPEN}", REMOVAL, DENIED, DENIED),
    "delete in a WITH": (
        "WITH gone AS (DELETE FROM tasks RETURNING 1) SELECT count(*) FROM gone",
        REMOVAL, DENIED, DENIED,
    ),
    "truncate": ("TRUNCATE tasks", REMOVAL, DENIED, DENIED),
    "truncate all": ("TRUNCATE tasks, task_keys CASCADE", REMOVAL, DENIED, DENIED),
    "merge, delete": (f"{MERGE} DELETE", REMOVAL, DENIED, DENIED),
    "merge, update": (f"{MERGE} UPDATE SET error_message = 'x'", TERMINAL, TERMINAL, DENIED),
    "merge, text": (f"{MERGE} UPDATE SET request_text = 'x'", TERMINAL, DENIED, DENIED),
    "upsert": (f"{UPSERT} error_message = 'x'", TERMINAL, TERMINAL, DENIED),
    "upsert, text": (f"{UPSERT} request_text = 'x'", TERMINAL, DENIED, DENIED),
    "back-dated": (
        ("INSERT INTO tasks (task_id, request_text, recorded_at)"
        f" VALUES (gen_random_uuid(), 'x', {PAST})"),
        NOT_THE_CLOCK, DENIED, DENIED,
    ),
    "dated": (
        ("INSERT INTO tasks (task_id, request_text, recorded_at)"
        " VALUES (gen_random_uuid(), 'x', now())"),
        None, DENIED, DENIED,
    ),
    "recorded": (
        "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')",
        None, None, DENIED,
    ),
    "moved on": (f"UPDATE tasks SET status = 'failed' {OF_OPEN}", None, None, DENIED),
    "insert in a partition": (
        "INSERT INTO {partition} (task_id, request_text) VALUES (gen_random_uuid(), 'x')",
        PARTITION, DENIED, DENIED,
    ),
    "update a partition": ("UPDATE {partition} SET status = 'failed'", PARTITION, DENIED, DENIED),
    "delete from a partition": ("DELETE FROM {partition}", REMOVAL, DENIED, DENIED),
    "truncate a partition": ("TRUNCATE {partition}", REMOVAL, DENIED, DENIED),
    "partition, merge": (
        (f"MERGE INTO {{partition}} USING (SELECT 1) AS one ON task_id = '{DONE_ID}'"
        " WHEN MATCHED THEN DELETE"),
        REMOVAL, DENIED, DENIED,
    ),
    "key of no task": (
        "INSERT INTO task_keys (task_id, created_at) VALUES (gen_random_uuid(), now())",
        LONE, LONE, DENIED,
    ),
    "key of another time": (
        (f"INSERT INTO task_keys (task_id, created_at) VALUES ('{OPEN_ID}', {PAST})"
        " ON CONFLICT (task_id) DO UPDATE SET created_at = excluded.created_at"),
        REMOVAL, DENIED, DENIED,
    ),
    "key, digest": (f"UPDATE task_keys SET digest = '' {OF_OPEN}", REMOVAL, DENIED, DENIED),
    "key, delete": (f"DELETE FROM task_keys {OF_OPEN}", REMOVAL, DENIED, DENIED),
    "key, truncate": ("TRUNCATE task_keys", REMOVAL, DENIED, DENIED),
}  # fmt: skip

GUARDS: dict[str, Attack] = {
    # The owner is allowed to do these: the history is not safe from its owner.
    **{
        statement: (statement, None, DENIED, DENIED)
        for statement in (
            "ALTER TABLE tasks DISABLE TRIGGER ALL",
            "ALTER TABLE tasks DISABLE TRIGGER guard_change",
            "DROP TRIGGER refuse_delete ON tasks",
            "DROP TABLE tasks CASCADE",
            "ALTER TABLE tasks DETACH PARTITION {partition}",
            "DROP TABLE {partition}",
            "ALTER TABLE tasks ALTER recorded_at SET DEFAULT '2020-01-01'",
            "ALTER TABLE tasks DROP CONSTRAINT tasks_created_at_ahead",
            "ALTER TABLE tasks RENAME TO others",
            "CREATE RULE forget AS ON INSERT TO tasks DO INSTEAD NOTHING",
            "ALTER FUNCTION is_terminal RENAME TO was_terminal",
            ("CREATE OR REPLACE FUNCTION is_terminal(status task_status) RETURNS boolean"
            " LANGUAGE sql IMMUTABLE RETURN FALSE"),
            "CREATE FUNCTION public.is_terminal(text) RETURNS boolean LANGUAGE sql RETURN FALSE",
            "CREATE TABLE public.mine ()",
            "CREATE SCHEMA mine",
            "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE",
            ("GRANT ALL ON tasks TO CURRENT_USER; ALTER TABLE tasks DISABLE TRIGGER ALL;"
            " DELETE FROM tasks"),
        )
    },
    "a trigger of one's own": (
        ("CREATE TRIGGER z BEFORE UPDATE ON tasks FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()"),
        None, DENIED, DENIED,
    ),
    "grants to oneself": ("GRANT DELETE ON tasks TO CURRENT_USER; DELETE FROM tasks",
                          REMOVAL, DENIED, DENIED),
    "the owner's role": ("SET ROLE audit_owner", None, DENIED, DENIED),
    "the owner's session": ("SET SESSION AUTHORIZATION audit_owner", None, DENIED, DENIED),
    "a superuser's role": ("SET ROLE audit", DENIED, DENIED, DENIED),
    "replication role": ("SET session_replication_role = replica", DENIED, DENIED, DENIED),
    "replication role, by function": (
        "SELECT set_config('session_replication_role', 'replica', TRUE)", DENIED, DENIED, DENIED,
    ),
    "a program": ("COPY (SELECT 1) TO PROGRAM 'true'", DENIED, DENIED, DENIED),
    "a file": ("COPY tasks TO '/tmp/tasks'", DENIED, DENIED, DENIED),
    "a file's content": ("SELECT pg_read_file('PG_VERSION')", DENIED, DENIED, DENIED),
    "a catalogue": ("DELETE FROM pg_trigger", DENIED, DENIED, DENIED),
    "a guard by its catalogue": ("UPDATE pg_trigger SET tgenabled = 'D'", DENIED, DENIED, DENIED),
    "a language": ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE c AS 'x'",
                   DENIED, DENIED, DENIED),
}  # fmt: skip

COUNTS: dict[str, Attack] = {
    **{
        statement: (statement, None, DENIED, DENIED)
        for statement in (
            ("INSERT INTO task_count_base (service, grain, bucket, status, n)"
            " VALUES ('', 'year', '2020-01-01Z', 'failed', 9)"),
            "UPDATE task_count_base SET n = 9",
            "INSERT INTO task_count_splits VALUES ('a', 'month', '2020-01-01Z')",
            "INSERT INTO task_log_marks VALUES (99999999, 0, 0, NULL, NULL, 0, now())",
            "UPDATE task_log_marks SET counted = 0",
            "INSERT INTO task_tallies VALUES ('x', '2020-01-01Z', 1, '{}')",
            "INSERT INTO access_keys (name, digest, scopes) VALUES ('x', sha256('x'), '{read}')",
            "UPDATE access_keys SET scopes = '{read,record,admin}'",
            "UPDATE access_keys SET revoked_at = NULL",
            "DELETE FROM access_keys",
            *(
                f"{verb} {table}"
                for verb in ("DELETE FROM", "TRUNCATE")
                for table in (
                    "task_count_base", "task_count_runs", "task_count_run_lists",
                    "task_count_splits", "task_count_splits_due", "task_log_marks", "task_tallies",
                )
            ),
            "SELECT rebuild_task_counts()",
            "SELECT split_task_counts(now())",
            "SELECT add_to_task_counts(task_log_state, 0) FROM task_log_state",
            "SELECT append_task_log_mark(task_log_state) FROM task_log_state",
            "SELECT make_event_partition('2011-01-01')",
            "SELECT grant_serving('audit_reader')",
            "SELECT grant_reading('audit_reader')",
        )
    },
    "what the service calls: fold": ("SELECT fold_task_counts(1)", None, None, DENIED),
    "what the service calls: sequence": ("SELECT sequence_task_events(1)", None, None, DENIED),
    "what the service calls: tally": (
        "SELECT save_task_tally('x', now(), 1, '{}', 9)", None, None, DENIED,
    ),
    "what the service calls: partition": (
        "SELECT make_task_partition('2011-01-01', 'day')", None, None, DENIED,
    ),
    **{
        f"a partition: {call}": (f"SELECT make_task_partition({call})", WRONG, WRONG, DENIED)
        for call in (
            "now(), 'millennium'", "'2011-01-01', 'second'", "'2011-01-01', NULL",
            "'1999-12-31', 'month'", "now() + interval '2 years'  , 'month'", "NULL, 'month'",
            "'infinity', 'month'", "now(), 'day); DROP TABLE tasks'",
        )
    },
    # With EXECUTE on the functions of triggers, anybody could feed them rows of their own.
    **{
        f"{function} on a table of one's own": (
            ("CREATE TEMPORARY TABLE forged (LIKE tasks);"
            " CREATE TRIGGER forge AFTER INSERT ON forged REFERENCING NEW TABLE AS recorded"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}();"
            " INSERT INTO forged (task_id, created_at, recorded_at, status, request_text,"
            " services_touched) VALUES (gen_random_uuid(), now(), now(), 'failed', 'x', '{}')"),
            told_to_owner, DENIED, DENIED,
        )
        for function, told_to_owner in (("queue_recorded_tasks", None), ("keep_task_keys", LONE))
    },
}  # fmt: skip

ATTACKS = {
    f"{group}: {name}": attack
    for group, attacks in (("history", HISTORY), ("guards", GUARDS), ("counts", COUNTS))
    for name, attack in attacks.items()
}


@pytest.mark.parametrize("case", ATTACKS)
def test_each_role_is_refused_what_it_may_not_do(history: dict[str, str], case: str) -> None:
    statement, *expected = ATTACKS[case]

    assert expected == refusals(history, statement)


@pytest.mark.parametrize("role", [SERVING, READING])
def test_copy_cannot_set_recorded_at(history: dict[str, str], role: str) -> None:
    copy = "COPY tasks (task_id, request_text, recorded_at) FROM STDIN"
    with (
        psycopg.connect(history[role]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        connection.cursor().copy(copy) as copying,
    ):
        copying.write_row((str(uuid.uuid4()), "x", "2020-01-01"))


TABLES = (
    "tasks", "task_keys", "task_counts", "task_count_splits", "task_count_deltas",
    "task_count_splits_due", "task_tallies", "task_partitions", "task_events",
    "task_event_queue", "task_log_marks", "task_log_state", "access_keys",
)  # fmt: skip


def test_functions_of_the_owner_ignore_the_search_path_of_a_role(
    history: dict[str, str],
) -> None:
    task_id = str(uuid.uuid4())
    with psycopg.connect(history[SERVING]) as connection:
        for table in TABLES:
            connection.execute(f"CREATE TEMPORARY TABLE {table} (LIKE public.{table})")
        connection.execute(
            "CREATE FUNCTION pg_temp.is_terminal(task_status) RETURNS boolean"
            " LANGUAGE sql AS 'SELECT FALSE'"
        )
        connection.execute("SET search_path = pg_temp, public")
        connection.execute("SELECT public.make_task_partition('2011-03-01', 'month')")
        connection.execute(
            "INSERT INTO public.tasks (task_id, created_at, request_text, status)"
            f" VALUES ('{task_id}', '2011-03-01', 'x', 'failed')"
        )
        connection.commit()
        connection.execute("SELECT public.sequence_task_events(1000)")
        connection.commit()
        connection.execute("SELECT public.fold_task_counts(1000)")
        [*shadows] = [
            connection.execute(f"SELECT count(*) FROM pg_temp.{table}").fetchone()
            for table in TABLES
        ]
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(f"UPDATE public.tasks SET error_message = 'x' {OF_DONE}")
        connection.rollback()

    assert [(0,)] * len(TABLES) == shadows
    assert refused.value.sqlstate == TERMINAL


def test_a_later_partition_grants_nothing_to_a_role(history: dict[str, str]) -> None:
    # As administrators like to do, and as a grant takes back.
    execute(
        history[OWNER],
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {SERVING}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {SERVING}",
    )
    migrate.grant(history[OWNER], [SERVING], [])
    execute(history[SERVING], "SELECT make_task_partition('2012-01-01', 'month')")

    attacks = {
        "INSERT INTO tasks_20120101 (task_id, request_text) VALUES (gen_random_uuid(), 'x')",
        "UPDATE tasks_20120101 SET status = 'failed'",
        "DELETE FROM tasks_20120101",
        "TRUNCATE tasks_20120101",
        "SELECT FROM tasks_20120101",
        "DROP TABLE tasks_20120101",
        (
            "CREATE TRIGGER z BEFORE UPDATE ON tasks_20120101 FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
    }
    assert dict.fromkeys(attacks, DENIED) == {
        attack: refusal(history[SERVING], attack) for attack in attacks
    }


#: With session_replication_role = replica.
UNGUARDED = {
    f"UPDATE tasks SET error_message = 'x' {OF_DONE}": TERMINAL,
    f"UPDATE tasks SET recorded_at = {PAST} {OF_OPEN}": FIXED,
    "DELETE FROM tasks": REMOVAL,
    "DELETE FROM {partition}": REMOVAL,
    "TRUNCATE tasks": REMOVAL,
    "TRUNCATE {partition}": REMOVAL,
    "DELETE FROM task_keys": REMOVAL,
    "TRUNCATE task_keys": REMOVAL,
    "UPDATE task_keys SET digest = ''": REMOVAL,
    # What is still possible: replication records so.
    "INSERT INTO {partition} (task_id, request_text, created_at, recorded_at)"
    " VALUES (gen_random_uuid(), 'x', now(), now() - interval '1 minute')": None,
    "ALTER TABLE tasks DISABLE TRIGGER ALL; DELETE FROM tasks": None,
}


@pytest.mark.parametrize("statement", UNGUARDED)
def test_the_guards_work_under_session_replication_role(
    history: dict[str, str], statement: str
) -> None:
    [(partition,)] = execute(
        history[SUPERUSER], f"SELECT tableoid::regclass FROM tasks WHERE task_id = '{DONE_ID}'"
    )
    attack = (
        f"SET session_replication_role = replica; {statement.replace('{partition}', partition)}"
    )

    assert UNGUARDED[statement] == refusal(history[SUPERUSER], attack)
