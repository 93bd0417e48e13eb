"""Databases that the service cannot use, and roles that may not migrate, are refused."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import pytest

from audit.history.answers import Answers
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.commandline import ENVIRONMENT
from tests.conftest import as_role, execute, of_database, task
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


async def test_a_version_belongs_to_one_database(dsn: str, postgres: str, template: str) -> None:
    """Two databases of one server have their snapshots in common."""
    name = f"copy_{uuid.uuid4().hex}"
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    other = of_database(postgres, name)

    async def text_of(answers: Answers) -> str | None:
        version = await answers.current_version(AuditQuery(created_by="ada"))
        return version.text if version else None

    try:
        async with (
            open_pool(Settings(pool_size=1), dsn) as first,
            open_pool(Settings(pool_size=1), other) as second,
        ):
            await AuditService(first).record([task(created_by="ada")])
            await AuditService(second).record([task(created_by="ada") for _ in range(2)])
            answers = [Answers(AuditService(pool).reading, 1_000_000) for pool in (first, second)]
            versions = [await text_of(each) for each in answers]
            again = [await text_of(each) for each in answers]
    finally:
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")

    assert None not in versions
    assert versions[0] != versions[1]
    assert versions == again


async def test_a_version_belongs_to_one_schema(dsn: str) -> None:
    async def version() -> str:
        async with open_pool(Settings(pool_size=1), dsn) as pool:
            versions = AuditService(pool).reading.read_versions()
            read = await anext(versions)
            await versions.aclose()
            return read.text

    same = await version()
    assert same == await version()
    execute(dsn, "CREATE SCHEMA other", "CREATE TABLE other.tasks ()")
    try:
        before = await version()
        async with open_pool(Settings(pool_size=1), f"{dsn}&options=-csearch_path%3Dother") as pool:
            versions = AuditService(pool).reading.read_versions()
            elsewhere = await anext(versions)
            await versions.aclose()
        assert before != elsewhere.text
    finally:
        execute(dsn, "DROP SCHEMA other CASCADE")
