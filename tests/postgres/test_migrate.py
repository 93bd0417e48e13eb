"""The migrations: up and down, at once, cut short, and never at the cost of a task."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit import resources
from audit.errors import Invalid, Unavailable
from audit.postgres import migrate
from audit.postgres.schema import migrations_on_disk
from tests.conftest import execute, of_database

#: Everything in the schema but what belongs to yoyo or to an extension, one row a thing.
SCHEMA = """
WITH own_relations AS (
    SELECT pg_class.* FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relname !~ 'yoyo'
)
SELECT 'relation', relname, relkind::text, concat_ws(' ', reloptions, pg_get_partkeydef(oid),
    pg_get_expr(relpartbound, oid), CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END)
FROM own_relations
UNION ALL
SELECT 'column', attrelid::regclass::text, attname, concat_ws(' ',
    row_number() OVER (PARTITION BY attrelid ORDER BY attnum),
    format_type(atttypid, atttypmod), attnotnull, attgenerated, pg_get_expr(adbin, adrelid))
FROM pg_attribute JOIN own_relations ON attrelid = own_relations.oid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'index', relname, NULL, pg_get_indexdef(oid) FROM own_relations WHERE relkind IN ('i', 'I')
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(pg_constraint.oid)
FROM pg_constraint JOIN own_relations ON conrelid = own_relations.oid
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, tgname,
    concat_ws(' ', tgenabled, pg_get_triggerdef(pg_trigger.oid))
FROM pg_trigger JOIN own_relations ON tgrelid = own_relations.oid
UNION ALL
SELECT 'function', proname, has_function_privilege('public', oid, 'EXECUTE')::text,
    pg_get_functiondef(oid)
FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
UNION ALL
SELECT 'state', typname, enumlabel, enumsortorder::text
FROM pg_enum JOIN pg_type ON enumtypid = pg_type.oid
ORDER BY 1, 2, 3, 4
"""

GUARDS = "0003_guards"
MAKE_PARTITION = "SELECT make_task_partition(now(), 'month')"
RECORD = """
INSERT INTO tasks (task_id, request_text, status)
VALUES ('00000000-0000-4000-8000-000000000001', 'Deploy payments', 'completed')
"""


def schema(dsn: str) -> list[tuple[Any, ...]]:
    return execute(dsn, SCHEMA)


def applied(dsn: str) -> list[str]:
    return [migration.name for migration in migrate.status(dsn) if migration.applied]


def log(dsn: str) -> list[tuple[Any, ...]]:
    return execute(
        dsn, "SELECT operation, migration_id FROM _yoyo_log ORDER BY created_at_utc, migration_id"
    )


def start(dsn: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "audit", "migrate", "--dsn", dsn, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def guarded_dsn(empty_dsn: str) -> str:
    """The DSN of a database whose newest migration is the one that guards the history."""
    migrate.apply(empty_dsn, GUARDS)
    execute(empty_dsn, MAKE_PARTITION)
    return empty_dsn


@pytest.fixture(scope="module")
def current_schema(postgres: str) -> list[tuple[Any, ...]]:
    execute(postgres, "CREATE DATABASE reference")
    dsn = of_database(postgres, "reference")
    migrate.apply(dsn)
    return schema(dsn)


def before(name: str) -> str | None:
    position = migrations_on_disk().index(name)
    return migrations_on_disk()[position - 1] if position else None


@pytest.mark.parametrize("name", migrations_on_disk())
def test_each_migration_can_be_rolled_back_and_applied_again(empty_dsn: str, name: str) -> None:
    previous = before(name)
    if previous:
        migrate.apply(empty_dsn, previous)
    without = schema(empty_dsn)
    migrate.apply(empty_dsn, name)
    with_it = schema(empty_dsn)

    assert [name] == migrate.roll_back(empty_dsn)
    assert without == schema(empty_dsn)
    assert [name] == migrate.apply(empty_dsn, name)
    assert with_it == schema(empty_dsn)
    assert without != with_it


def test_what_the_service_made_since_goes_with_a_rollback(empty_dsn: str) -> None:
    migrate.apply(empty_dsn)
    execute(empty_dsn, MAKE_PARTITION)
    for _ in migrations_on_disk():
        migrate.roll_back(empty_dsn)

    assert [] == schema(empty_dsn)


def test_status_shows_every_migration_in_its_order(empty_dsn: str) -> None:
    first, *others = migrations_on_disk()
    migrate.apply(empty_dsn, first)

    assert [(first, True), *((other, False) for other in others)] == [
        (migration.name, migration.applied) for migration in migrate.status(empty_dsn)
    ]


def test_apply_and_roll_back_go_to_a_name(empty_dsn: str) -> None:
    first, second, *others = migrations_on_disk()

    assert [first, second] == migrate.apply(empty_dsn, second)
    assert [] == migrate.apply(empty_dsn, first)
    assert others == migrate.apply(empty_dsn)
    assert [*reversed(others), second] == migrate.roll_back(empty_dsn, first)
    assert [first] == applied(empty_dsn)


def test_a_name_that_no_migration_has_is_refused(empty_dsn: str) -> None:
    names = ", ".join(migrations_on_disk())

    for move in (migrate.apply, migrate.roll_back):
        with pytest.raises(Invalid, match=f"no migration is named 0099_x; there are {names}"):
            move(empty_dsn, "0099_x")


def test_four_that_start_at_once_apply_each_migration_once(empty_dsn: str) -> None:
    processes = [start(empty_dsn) for _ in range(4)]
    said = [process.communicate() for process in processes]

    assert [0] * 4 == [process.returncode for process in processes]
    assert [1] * 4 == [errors.count("\n") for _, errors in said], said  # the database's name alone
    assert ["nothing to do\n"] * 3 == sorted(lines for lines, _ in said)[1:]
    assert [("apply", name) for name in migrations_on_disk()] == log(empty_dsn)


#: Says when it is about to begin: what comes before takes longer than the migrations.
MIGRATOR = """
import sys
from audit.postgres import migrate
print(flush=True)
migrate.apply(sys.argv[1])
"""


@pytest.mark.parametrize("seconds", [0.01, 0.04, 0.1])
def test_what_a_killed_migrator_began_is_completed(
    empty_dsn: str, current_schema: list[tuple[Any, ...]], seconds: float
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MIGRATOR, empty_dsn], stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        time.sleep(seconds)
        killed.kill()
    migrate.apply(empty_dsn)

    assert [("apply", name) for name in migrations_on_disk()] == log(empty_dsn)
    assert current_schema == schema(empty_dsn)


def test_the_lock_of_a_killed_migrator_does_not_block(empty_dsn: str) -> None:
    migrate.apply(empty_dsn, migrations_on_disk()[0])
    execute(empty_dsn, "INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")

    assert migrations_on_disk()[1:] == migrate.apply(empty_dsn)


def test_a_user_without_a_name_can_migrate(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "")  # so that what is set here is undone
        monkeypatch.delenv(variable)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    migrate.apply(empty_dsn)

    assert [(str(os.getuid()),)] == execute(empty_dsn, "SELECT DISTINCT username FROM _yoyo_log")


def test_a_rollback_is_refused_while_a_task_is_recorded(guarded_dsn: str) -> None:
    execute(guarded_dsn, RECORD)
    intact = schema(guarded_dsn)

    with pytest.raises(Unavailable, match="tasks are recorded: rolling back would lose them"):
        migrate.roll_back(guarded_dsn)
    assert intact == schema(guarded_dsn)
    assert GUARDS == applied(guarded_dsn)[-1]
    assert [(1,)] == execute(guarded_dsn, "SELECT count(*) FROM tasks")
    with pytest.raises(psycopg.Error, match="append-only"):
        execute(guarded_dsn, "DELETE FROM tasks")
    with pytest.raises(psycopg.Error, match="can no longer change"):
        execute(guarded_dsn, "UPDATE tasks SET status = 'failed'")


def test_a_task_recorded_between_two_rollbacks_is_kept(guarded_dsn: str) -> None:
    migrate.roll_back(guarded_dsn)
    execute(guarded_dsn, RECORD)
    migrate.roll_back(guarded_dsn)

    with pytest.raises(Unavailable, match="tasks are recorded"):
        migrate.roll_back(guarded_dsn)
    assert [(1,)] == execute(guarded_dsn, "SELECT count(*) FROM tasks")


WAITING = """
SELECT pid FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


def test_a_rollback_waits_for_the_task_that_is_just_being_recorded(guarded_dsn: str) -> None:
    with psycopg.connect(guarded_dsn) as recording:
        recording.execute(RECORD)
        rollback = start(guarded_dsn, "--rollback")
        while rollback.poll() is None and not execute(guarded_dsn, WAITING):
            time.sleep(0.02)
    _, errors = rollback.communicate()

    assert "tasks are recorded" in errors
    assert GUARDS == applied(guarded_dsn)[-1]


def test_recording_goes_on_while_a_migration_waits_for_an_open_transaction(empty_dsn: str) -> None:
    bounds = "0013_queue_bounds"
    migrate.apply(empty_dsn)
    execute(empty_dsn, MAKE_PARTITION)
    with psycopg.connect(empty_dsn) as late, psycopg.connect(empty_dsn, autocommit=True) as writer:
        late.execute(RECORD)
        writer.execute("SET lock_timeout = '3s'")
        rollback = start(empty_dsn, "--rollback", "--to", str(before(bounds)))
        while rollback.poll() is None:
            writer.execute(
                "INSERT INTO tasks (task_id, request_text) SELECT gen_random_uuid(), 'x'"
            )
        _, errors = rollback.communicate()
        assert "was in use for 5 s; pg_stat_activity shows which transactions are open" in errors
        assert bounds in applied(empty_dsn)

        late.commit()
    assert bounds in migrate.roll_back(empty_dsn, before(bounds))
    assert bounds in migrate.apply(empty_dsn)


def test_every_migration_is_well_named_and_has_its_rollback() -> None:
    files = [path.name for path in Path(str(resources.folder("migrations"))).iterdir()]
    names = migrations_on_disk()

    assert names == [name for name in names if re.fullmatch(r"\d{4}_[a-z]+(_[a-z]+)*", name)]
    assert len(names) == len({name[:4] for name in names})
    assert sorted(files) == sorted(
        [*(f"{name}.sql" for name in names), *(f"{name}.rollback.sql" for name in names)]
    )
