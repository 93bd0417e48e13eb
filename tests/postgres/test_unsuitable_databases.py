"""Databases that the service cannot use, and roles that may not migrate, are refused."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from audit.history.changes import Changes
from audit.history.service import AuditService
from audit.postgres import migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.commandline import ENVIRONMENT
from tests.conftest import as_role, execute, of_database
from tests.processes import AUDIT


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def other_encoding(postgres: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The DSN of an empty database, and its encoding."""
    name = f"encoding_{uuid.uuid4().hex}"
    execute(
        postgres,
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' LOCALE 'C'",
    )
    yield of_database(postgres, name), request.param
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AUDIT, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False,
        timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [("migrate",), ("serve", "--port", "0"), ("serve", "--migrate", "--port", "0"),
     ("migrate", "--status")],
)  # fmt: skip
def test_a_database_that_cannot_store_all_texts_is_refused(
    other_encoding: tuple[str, str], command: tuple[str, ...]
) -> None:
    dsn, encoding = other_encoding

    done = audit(*command, "--dsn", dsn)

    assert done.returncode == 78
    assert f"the encoding of the database is {encoding}; it must be UTF8" in done.stderr
    assert "Traceback" not in done.stderr
    assert execute(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_migrating_without_privileges_says_to_run_as_the_owner(
    postgres: str, empty_dsn: str
) -> None:
    role = f"visitor_{uuid.uuid4().hex}"
    execute(postgres, f"CREATE ROLE {role} LOGIN")
    try:
        done = audit("migrate", "--dsn", as_role(empty_dsn, role))
    finally:
        execute(postgres, f"DROP ROLE {role}")

    assert done.returncode == 69
    assert "permission denied for schema public: run as the owner of the database" in done.stderr


async def _number(changes: Changes, dsn: str) -> int:
    """Read a version with a connection of its own; return its number."""
    async with (
        open_pool(Settings(pool_size=1), dsn) as pool,
        aclosing(AuditService(pool).reading.read_versions(changes)) as versions,
    ):
        return (await anext(versions)).number


async def test_a_version_belongs_to_one_database(dsn: str, postgres: str, template: str) -> None:
    """Databases with one template have equal tables, and those of a server equal snapshots."""
    name = f"copy_{uuid.uuid4().hex}"
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    other = of_database(postgres, name)
    changes = Changes()
    try:
        numbers = [await _number(changes, address) for address in (dsn, dsn, other, other, dsn)]
    finally:
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")

    assert numbers[0] == numbers[1] < numbers[2] == numbers[3] < numbers[4]


async def test_a_version_belongs_to_one_schema(empty_dsn: str) -> None:
    changes = Changes()
    migrate.apply(empty_dsn)
    before = await _number(changes, empty_dsn)

    assert before == await _number(changes, empty_dsn)
    execute(empty_dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    migrate.apply(empty_dsn)
    assert before < await _number(changes, empty_dsn)
