"""Grants to a role by `audit migrate --grant-to` and `--grant-read-to`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from audit.errors import Invalid, Unavailable
from audit.history.task import NewTask, TaskChange
from audit.postgres import migrate
from tests.commandline import audit
from tests.conftest import as_role, execute, of_database
from tests.security.roles import DENIED, LONE, OWNER, READING, SERVING, SUPERUSER, refusal


def columns(dsn: str, privilege: str) -> set[str]:
    return {
        name
        for (name,) in execute(
            dsn,
            "SELECT column_name FROM information_schema.column_privileges WHERE"
            f" table_name = 'tasks' AND grantee = '{SERVING}' AND privilege_type = '{privilege}'",
        )
    }


def test_grants_on_columns_match_the_models(history: dict[str, str]) -> None:
    assert set(NewTask.model_fields) == columns(history[OWNER], "INSERT")
    assert set(TaskChange.model_fields) == columns(history[OWNER], "UPDATE")


@pytest.mark.parametrize("role", [SERVING, READING])
def test_roles_can_call_only_functions_that_are_granted(history: dict[str, str], role: str) -> None:
    [(writing,)] = execute(
        history[OWNER],
        "SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND (prosecdef OR provolatile = 'v')"
        f" AND has_function_privilege('{role}', oid, 'EXECUTE') AND NOT EXISTS"
        " (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')",
    )

    serving = [
        "fold_task_counts", "make_task_partition", "make_task_partitions", "record_tasks",
        "save_task_tally", "sequence_task_events", "update_task", "update_tasks",
    ]  # fmt: skip
    assert (serving if role == SERVING else None) == writing


def rights(dsn: str) -> list[tuple[Any, ...]]:
    """Return all grants in the schema except for those to the owner."""
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


def test_granting_revokes_all_other_privileges(history: dict[str, str], other: str) -> None:
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
            "as a member of another role: INSERT on exports, INSERT on task_keys, .* on tasks$",
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
def test_a_role_that_grants_cannot_restrict_is_refused(
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
def test_an_unknown_role_is_named(history: dict[str, str], role: str) -> None:
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
            (("--grant-to", SERVING, "--status"), "do not give --status"),
            (("--grant-read-to", SERVING, "--rollback"), "do not give --status"),
            (("--grant-to", SERVING, "--to", "0001_tasks"), "do not give --status"),
            (("--grant-to", "a\nb"), "is not the name of a role"),
        ):
            code, _, err = audit(*ours, *wrong)
            assert code == 2
            assert part in err
            assert len(err.splitlines()) == 1
    finally:
        execute(postgres, "DROP DATABASE granted WITH (FORCE)")
