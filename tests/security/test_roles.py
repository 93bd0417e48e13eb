"""The three roles of the database: what each may do, and what it is refused when it attacks."""

from __future__ import annotations

import logging
import re
import shlex
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit.errors import Invalid, Unavailable
from audit.history.service import AuditService
from audit.history.task import NewTask, TaskChange
from audit.postgres import migrate, statements
from audit.postgres.failures import NotGranted
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.commands.test_cli import audit
from tests.conftest import Client, ago, as_role, execute, of_database, task

OWNER, SERVING, READING = "audit_owner", "audit_service", "audit_reader"
SUPERUSER = "audit"
ROLES = (OWNER, SERVING, READING)

DENIED, WRONG = "42501", "22023"
TERMINAL, FIXED, REMOVAL, NOT_THE_CLOCK, PARTITION, LONE = (
    "TA001", "TA003", "TA004", "TA005", "TA006", "TA007",
)  # fmt: skip
OPEN_ID, DONE_ID = (str(uuid.UUID(int=n, version=4)) for n in (1, 2))
API = "/api/v1/audit"


@pytest.fixture(scope="module")
def history(postgres: str) -> Iterator[dict[str, str]]:
    """The DSN of one database for each role: set up by what docs/security.md says.

    It holds the executing task OPEN_ID and the completed one DONE_ID, both of now.
    """
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    page = page[page.index("## Database roles") :]
    [set_up] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    [commands] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    execute(postgres, *filter(None, map(str.strip, set_up.split(";"))))
    dsn = of_database(postgres, "audit")
    dsns = {role: as_role(dsn, role) for role in (*ROLES, SUPERUSER)}
    first, _, _ = commands.replace("\\\n", "").partition("\n")
    _, *migration = shlex.split(first)
    migration[migration.index("--dsn") + 1] = dsns[OWNER]
    assert (0, "") == audit(*migration)[::2]
    execute(
        dsns[SERVING],
        "SELECT make_task_partition(now(), 'month')",
        f"INSERT INTO tasks (task_id, request_text, status, services_touched)"
        f" VALUES ('{OPEN_ID}', 'Open', 'executing', '{{a}}'),"
        f" ('{DONE_ID}', 'Done', 'completed', '{{a}}')",
    )
    yield dsns
    execute(
        postgres,
        "DROP DATABASE audit WITH (FORCE)",
        *(f"DROP ROLE {role}" for role in reversed(ROLES)),
    )


def refusal(dsn: str, statement: str) -> str | None:
    """The SQLSTATE that the database refuses with; nothing stays of what it takes."""
    with psycopg.connect(dsn) as connection:
        try:
            connection.execute(statement)
        except psycopg.Error as refused:
            return refused.sqlstate
        finally:
            connection.rollback()
    return None


def told(history: dict[str, str], statement: str) -> list[str | None]:
    """What each role is told to a statement, in the order of ROLES."""
    [(partition,)] = execute(
        history[SUPERUSER], f"SELECT tableoid::regclass FROM tasks WHERE task_id = '{DONE_ID}'"
    )
    return [refusal(history[role], statement.replace("{partition}", partition)) for role in ROLES]


# --- attacks --------------------------------------------------------------------------------------

OF_OPEN, OF_DONE = f"WHERE task_id = '{OPEN_ID}'", f"WHERE task_id = '{DONE_ID}'"
MERGE = f"MERGE INTO tasks USING (SELECT 1) AS one ON task_id = '{DONE_ID}' WHEN MATCHED THEN"
UPSERT = (
    "INSERT INTO tasks (task_id, created_at, request_text)"
    f" SELECT task_id, created_at, 'x' FROM tasks {OF_DONE}"
    " ON CONFLICT (task_id, created_at) DO UPDATE SET"
)
PAST = "'2020-01-01 00:00:00Z'"

#: What is told to the owner, to the role that serves, and to the one that reads.
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
    # What the owner may: the history is not safe from whoever owns it.
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
            ("INSERT INTO task_counts (service, grain, bucket, status, n)"
            " VALUES ('', 'year', '2020-01-01Z', 'failed', 9)"),
            "UPDATE task_counts SET n = 9",
            "INSERT INTO task_count_splits VALUES ('a', 'month', '2020-01-01Z')",
            "INSERT INTO task_count_deltas VALUES ('2020-01-01Z', 'failed', '{}', 'x', 1)",
            "UPDATE task_count_deltas SET n = -1",
            "INSERT INTO task_day_changes VALUES ('2020-01-01Z', 1)",
            "INSERT INTO access_keys (name, digest, scopes) VALUES ('x', sha256('x'), '{read}')",
            "UPDATE access_keys SET scopes = '{read,record,admin}'",
            "UPDATE access_keys SET revoked_at = NULL",
            "DELETE FROM access_keys",
            *(
                f"{verb} {table}"
                for verb in ("DELETE FROM", "TRUNCATE")
                for table in (
                    "task_counts", "task_count_splits", "task_count_deltas", "task_day_changes",
                )
            ),
            "SELECT rebuild_task_counts()",
            "SELECT split_task_counts(ARRAY[('a', 'month', '2020-01-01Z')::task_bucket], now())",
            "SELECT move_task_count_deltas(1, now())",
            "SELECT grant_serving('audit_reader')",
            "SELECT grant_reading('audit_reader')",
        )
    },
    "what the service calls: fold": ("SELECT fold_task_counts(1)", None, None, DENIED),
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
        for function, told_to_owner in (("note_new_tasks", None), ("keep_task_keys", LONE))
    },
}  # fmt: skip

ATTACKS = {
    f"{group}: {name}": attack
    for group, attacks in (("history", HISTORY), ("guards", GUARDS), ("counts", COUNTS))
    for name, attack in attacks.items()
}


@pytest.mark.parametrize("case", ATTACKS)
def test_each_role_is_told_what_it_may_not(history: dict[str, str], case: str) -> None:
    statement, *expected = ATTACKS[case]

    assert expected == told(history, statement)


@pytest.mark.parametrize("role", [SERVING, READING])
def test_no_copy_back_dates(history: dict[str, str], role: str) -> None:
    copy = "COPY tasks (task_id, request_text, recorded_at) FROM STDIN"
    with (
        psycopg.connect(history[role]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        connection.cursor().copy(copy) as copying,
    ):
        copying.write_row((str(uuid.uuid4()), "x", "2020-01-01"))


TABLES = (
    "tasks", "task_keys", "task_counts", "task_count_splits", "task_count_deltas",
    "task_day_changes", "task_partitions", "access_keys",
)  # fmt: skip


def test_functions_of_the_owner_do_not_look_where_a_role_tells_them_to(
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


def test_a_partition_made_later_is_the_owners(history: dict[str, str]) -> None:
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
def test_a_superuser_does_not_change_what_is_recorded_by_replication_role(
    history: dict[str, str], statement: str
) -> None:
    [(partition,)] = execute(
        history[SUPERUSER], f"SELECT tableoid::regclass FROM tasks WHERE task_id = '{DONE_ID}'"
    )
    attack = (
        f"SET session_replication_role = replica; {statement.replace('{partition}', partition)}"
    )

    assert UNGUARDED[statement] == refusal(history[SUPERUSER], attack)


# --- what is granted ------------------------------------------------------------------------------


def columns(dsn: str, privilege: str) -> set[str]:
    return {
        name
        for (name,) in execute(
            dsn,
            "SELECT column_name FROM information_schema.column_privileges WHERE"
            f" table_name = 'tasks' AND grantee = '{SERVING}' AND privilege_type = '{privilege}'",
        )
    }


def test_columns_are_granted_as_clients_may_set_and_change_them(history: dict[str, str]) -> None:
    assert set(NewTask.model_fields) == columns(history[OWNER], "INSERT")
    assert set(TaskChange.model_fields) == columns(history[OWNER], "UPDATE")


@pytest.mark.parametrize("role", [SERVING, READING])
def test_only_functions_that_read_may_be_called(history: dict[str, str], role: str) -> None:
    [(writing,)] = execute(
        history[OWNER],
        "SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND (prosecdef OR provolatile = 'v')"
        f" AND has_function_privilege('{role}', oid, 'EXECUTE') AND NOT EXISTS"
        " (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')",
    )

    serving = ["fold_task_counts", "make_task_partition", "make_task_partitions"]
    assert (serving if role == SERVING else None) == writing


def rights(dsn: str) -> list[tuple[Any, ...]]:
    """All grants in the schema, but the owner's own."""
    return execute(
        dsn,
        "SELECT name, of_column, granted FROM ("
        "SELECT relname, NULL, acl::text FROM pg_class, unnest(relacl) AS acl"
        " WHERE relnamespace = 'public'::regnamespace"
        " UNION SELECT attrelid::regclass::text, attname, acl::text"
        " FROM pg_attribute, unnest(attacl) AS acl WHERE attrelid >= 16384"
        " UNION SELECT proname, NULL, acl::text FROM pg_proc, unnest(proacl) AS acl"
        " WHERE pronamespace = 'public'::regnamespace) AS rights (name, of_column, granted)"
        f" WHERE granted NOT LIKE '{OWNER}=%' ORDER BY name, of_column, granted",
    )


def test_granting_again_changes_nothing(history: dict[str, str]) -> None:
    once = rights(history[OWNER])
    with ThreadPoolExecutor(4) as at_once:
        for _ in range(4):
            at_once.submit(migrate.grant, history[OWNER], [SERVING], [READING])
    migrate.grant(history[OWNER], [SERVING], [READING])

    assert once == rights(history[OWNER])


@pytest.fixture
def other(history: dict[str, str]) -> Iterator[str]:
    """A role whose name needs quotes, without any rights."""
    name = 'Odd "role"; x'
    quoted = '"Odd ""role""; x"'
    execute(history[SUPERUSER], f"CREATE ROLE {quoted} LOGIN")
    yield name
    execute(history[SUPERUSER], f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}")


def test_granting_takes_what_a_role_had_besides(history: dict[str, str], other: str) -> None:
    migrate.grant(history[OWNER], [], [other])
    reads = rights(history[OWNER])
    migrate.grant(history[OWNER], [other], [])
    serves = rights(history[OWNER])
    for statement in (
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO {}",
        "GRANT DELETE ON tasks TO {}",
        "GRANT UPDATE (recorded_at), INSERT (recorded_at) ON tasks TO {}",
        "GRANT EXECUTE ON FUNCTION rebuild_task_counts TO {}",
    ):
        execute(history[OWNER], statement.format('"Odd ""role""; x"'))
        assert serves != rights(history[OWNER])
        migrate.grant(history[OWNER], [other], [])
        assert serves == rights(history[OWNER])
    migrate.grant(history[OWNER], [], [other])

    assert reads == rights(history[OWNER])


@pytest.mark.parametrize(
    ("given", "taken", "part"),
    [
        ("GRANT audit_owner TO {}", "REVOKE audit_owner FROM {}", "acts for the owner audit_owner"),
        ("ALTER ROLE {} SUPERUSER", "ALTER ROLE {} NOSUPERUSER", "it is a superuser"),
        (
            "GRANT pg_write_all_data TO {}", "REVOKE pg_write_all_data FROM {}",
            "as a member of another role: .*DELETE on tasks,",
        ),
        (
            "GRANT audit_service TO {}", "REVOKE audit_service FROM {}",
            "as a member of another role: INSERT on task_keys, INSERT on tasks, UPDATE on tasks$",
        ),
        (
            "GRANT UPDATE (recorded_at) ON tasks TO PUBLIC",
            "REVOKE UPDATE (recorded_at) ON tasks FROM PUBLIC", "by PUBLIC .*: UPDATE on tasks$",
        ),
        (
            "GRANT CREATE ON SCHEMA public TO PUBLIC", "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        ),
    ],
    ids=["owner", "superuser", "all data", "who serves", "public", "creator"],
)  # fmt: skip
def test_a_role_that_grants_do_not_bind_is_refused(
    history: dict[str, str], other: str, given: str, taken: str, part: str
) -> None:
    quoted = '"Odd ""role""; x"'
    before = rights(history[OWNER])
    execute(history[SUPERUSER], given.format(quoted))
    try:
        with pytest.raises(Unavailable, match=part):
            migrate.grant(history[OWNER], [], [other])
    finally:
        execute(history[SUPERUSER], taken.format(quoted))

    assert before == rights(history[OWNER])


@pytest.mark.parametrize("role", ["nobody", "", "Audit_Service", "PUBLIC", "public", "tasks; x"])
def test_a_role_that_is_not_there_is_named(history: dict[str, str], role: str) -> None:
    before = rights(history[OWNER])

    with pytest.raises(Invalid, match="there is no role"):
        migrate.grant(history[OWNER], [SERVING], [role])
    assert before == rights(history[OWNER])


def test_only_the_owner_grants_and_migrates(history: dict[str, str]) -> None:
    for role in (SERVING, READING):
        with pytest.raises(Unavailable, match="the database refuses: permission denied"):
            migrate.grant(history[role], [READING], [])
        with pytest.raises(Unavailable, match="the database refuses: permission denied"):
            migrate.apply(history[role])


def test_the_command_grants_with_the_migrations(postgres: str, history: dict[str, str]) -> None:
    execute(postgres, f"CREATE DATABASE granted OWNER {OWNER}")
    dsn = of_database(postgres, "granted")
    try:
        ours = ("migrate", "--dsn", as_role(dsn, OWNER))
        both = (*ours, "--grant-to", SERVING, "--grant-read-to", READING)
        said = f"granted {SERVING} to serve\ngranted {READING} to read\n"

        code, out, err = audit(*both)

        assert (0, "") == (code, err)
        assert out.startswith("applied 0001_tasks\n")
        assert out.endswith(said)
        assert (0, said, "") == audit(*both)
        for role, expected in ((READING, DENIED), (SERVING, LONE)):
            key = "INSERT INTO task_keys (task_id, created_at) VALUES (gen_random_uuid(), now())"
            assert expected == refusal(as_role(dsn, role), key)

        for wrong, part in (
            (("--grant-to", "nobody"), "there is no role nobody"),
            (("--grant-to", "a", "--grant-read-to", "a"), "--grant-to lets a read already"),
            (("--grant-to", SERVING, "--status"), "leave out --status"),
            (("--grant-read-to", SERVING, "--rollback"), "leave out --status"),
            (("--grant-to", SERVING, "--to", "0001_tasks"), "leave out --status"),
            (("--grant-to", "a\nb"), "is not the name of a role"),
        ):
            code, _, err = audit(*ours, *wrong)
            assert code == 2
            assert part in err
            assert len(err.splitlines()) == 1
    finally:
        execute(postgres, "DROP DATABASE granted WITH (FORCE)")


# --- the service in each role ---------------------------------------------------------------------

Connect = Callable[[str], Awaitable[Client]]


@pytest.fixture
def connect(
    history: dict[str, str], aiohttp_client: Callable[..., Awaitable[Client]]
) -> Callable[[str], Awaitable[Client]]:
    """Run the whole service in a role; return its client."""

    async def start(role: str) -> Client:
        return await aiohttp_client(create_app(Settings(pool_size=3), history[role]))

    return start


@pytest.fixture
async def services(history: dict[str, str]) -> AsyncIterator[dict[str, AuditService]]:
    async with (
        open_pool(Settings(pool_size=1), history[OWNER]) as owner,
        open_pool(Settings(pool_size=1), history[SERVING]) as serving,
        open_pool(Settings(pool_size=1), history[READING]) as reading,
    ):
        yield {
            role: AuditService(pool)
            for role, pool in zip(ROLES, (owner, serving, reading), strict=True)
        }


async def answer(client: Client, path: str, **parameters: Any) -> dict[str, Any]:
    response = await client.get(path, params=parameters)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


async def test_the_whole_service_runs_as_the_role_that_serves(
    connect: Connect, history: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    client = await connect(SERVING)
    name, person, project = f"s-{uuid.uuid4()}", f"p-{uuid.uuid4()}", str(uuid.uuid4())
    started = task(
        status="pending", services_touched=[name], created_by=person, project_id=project,
        outcome=None,
    )  # fmt: skip
    old = task(
        status="failed", services_touched=[name], created_at=datetime(2013, 5, 5, tzinfo=UTC)
    )

    for expected in (201, 200):
        sent = await client.post(f"{API}/tasks", json=[started, old])
        assert expected == sent.status, await sent.text()
    changed = await client.patch(
        f"{API}/tasks/{started['task_id']}",
        json={"status": "failed", "outcome": {"action_type": "x"}, "error_message": "y"},
    )
    assert changed.status == 200, await changed.text()
    again = await client.patch(f"{API}/tasks/{started['task_id']}", json={"status": "completed"})
    assert again.status == 409

    assert (await answer(client, "/readyz")) == {"status": "ready"}
    assert (await answer(client, f"{API}/tasks/{old['task_id']}"))["status"] == "failed"
    for path, parameters, total in (
        ("failures", {"service": name}, 1),
        (f"by-service/{name}", {}, 2),
        ("query", {"service": name, "status": "failed", "intent": "x", "days": "30"}, 1),
        ("query", {"created_by": person}, 1),
        ("query", {"project_id": project, "outcome": '{"action_type":"x"}'}, 1),
        ("query", {"service": name, "until": "2014-01-01T00:00:00Z", "limit": "1"}, 1),
        ("query", {"service": name, "limit": "1", "offset": "1"}, 2),
    ):
        assert total == (await answer(client, f"{API}/{path}", **parameters))["total"], path
    first = await answer(client, f"{API}/by-service/{name}", limit=1)
    second = await answer(client, f"{API}/by-service/{name}", limit=1, cursor=first["next_cursor"])
    assert [started["task_id"], old["task_id"]] == [
        page["tasks"][0]["task_id"] for page in (first, second)
    ]
    assert [] == [record.getMessage() for record in caplog.records]


async def test_the_role_that_serves_folds_and_makes_partitions(
    services: dict[str, AuditService], history: dict[str, str]
) -> None:
    serving = services[SERVING]
    await serving.partitions.make_coming()
    await serving.record([task(), task(created_at=ago(days=1500))])

    while await serving.upkeep.fold_counts():
        pass

    assert [(0,)] == execute(history[OWNER], "SELECT count(*) FROM task_count_deltas")
    for role in ROLES:
        assert [] == await services[role].upkeep.check_counts()


def test_a_role_vacuums_only_where_it_may(history: dict[str, str]) -> None:
    """Elsewhere PostgreSQL would write a warning into its log, about every second."""
    for role in (OWNER, SERVING):
        with psycopg.connect(history[role], autocommit=True) as connection:
            said: list[psycopg.errors.Diagnostic] = []
            connection.add_notice_handler(said.append)
            row = psycopg.RawCursor(connection).execute(statements.FOLD_COUNTS, [1, 0.0]).fetchone()
            connection.execute(statements.VACUUM_DELTAS)
            is_new = connection.info.server_version >= 170_000

        assert row is not None
        assert (not said) == row[2] == (role == OWNER or is_new)


async def test_the_role_that_reads_reads(
    services: dict[str, AuditService], connect: Connect
) -> None:
    name = f"s-{uuid.uuid4()}"
    ours = task(services_touched=[name], status="failed", created_by=name)
    await services[SERVING].record([ours])
    reading = services[READING]

    pages = [
        await reading.get_failures(service=name),
        await reading.get_by_service(name),
        await reading.audit_query(created_by=name, days=3),
    ]
    assert [1, 1, 1] == [page.total for page in pages]
    assert await reading.get_task_count(service=name) == 1
    assert (await reading.get_task(ours["task_id"])).task.request_text == ours["request_text"]

    client = await connect(READING)
    assert (await answer(client, "/readyz")) == {"status": "ready"}
    assert (await answer(client, f"{API}/failures", service=name))["total"] == 1
    assert (await answer(client, f"{API}/query", created_by=name))["total"] == 1


async def test_the_role_that_reads_is_told_that_it_may_not_record(
    services: dict[str, AuditService], connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    for change in (
        services[READING].record([task()]),
        services[READING].update(uuid.UUID(OPEN_ID), {"status": "failed"}),
        services[READING].upkeep.fold_counts(),
        services[READING].partitions.make_coming(),
        services[READING].upkeep.rebuild_counts(),
        services[SERVING].upkeep.rebuild_counts(),
    ):
        with pytest.raises(NotGranted):
            await change

    caplog.set_level(logging.WARNING)
    client = await connect(READING)
    answers = [
        await client.post(f"{API}/tasks", json=task()),
        await client.post(f"{API}/tasks", json=task(created_at="2014-01-01T00:00:00Z")),
        await client.patch(f"{API}/tasks/{OPEN_ID}", json={"status": "failed"}),
    ]
    for one in answers:
        problem = await one.json()
        assert (503, "10") == (one.status, one.headers["Retry-After"])
        assert "application/problem+json" == one.content_type
        assert problem["detail"].startswith("the role of the service in the database may not do")
    assert {logging.WARNING} == {record.levelno for record in caplog.records}
    assert 1 == sum("folding the counts" in record.getMessage() for record in caplog.records)


def test_the_counts_are_checked_by_all_and_rebuilt_by_the_owner(history: dict[str, str]) -> None:
    for role in ROLES:
        assert (0, "all counts are exact\n", "") == audit(
            "counts", "--check", "--dsn", history[role]
        )
    for role in (SERVING, READING):
        code, out, err = audit("counts", "--rebuild", "--dsn", history[role])
        assert (69, "") == (code, out)
        assert "permission denied for function rebuild_task_counts" in err
        assert len(err.splitlines()) == 1
    code, out, err = audit("counts", "--rebuild", "--dsn", history[OWNER])
    assert (0, "") == (code, err)
    assert out.startswith("counted ")
