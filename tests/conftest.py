"""A real PostgreSQL for every test: one server for the run, one database for each test."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SETTINGS
from tests.inprocess import Server

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

#: Nothing here outlives the run: what makes a commit durable is left out.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "autovacuum": "off",
    "max_prepared_transactions": "10",
}

#: The programs of the PostgreSQL that the tests run on. None stands for those of the wheel.
POSTGRES = Path(named).absolute() if (named := os.environ.get("AUDIT_TEST_POSTGRES")) else None

#: The role that the service has in the tests of its API: whatever it does, its grants suffice.
SERVING = "serving"

#: A superuser may still remove tasks so.
EMPTY = (
    "SET session_replication_role = replica",
    "ALTER TABLE tasks DISABLE TRIGGER refuse_delete",
    "ALTER TABLE task_keys DISABLE TRIGGER refuse_change",
    "ALTER TABLE task_events DISABLE TRIGGER refuse_change",
    "ALTER TABLE task_event_queue DISABLE TRIGGER refuse_change",
    "DELETE FROM tasks",
    "DELETE FROM task_events",
    "DELETE FROM task_event_queue",
    "DELETE FROM task_keys",
    "DELETE FROM task_count_base",
    "DELETE FROM task_count_runs",
    "DELETE FROM task_count_run_lists WHERE list < (SELECT max(list) FROM task_count_run_lists)",
    "UPDATE task_count_run_lists SET runs = '{}', cells = '{}'",
    "DELETE FROM task_count_splits",
    "DELETE FROM task_count_splits_due",
    "DELETE FROM task_log_marks",
    "INSERT INTO task_log_marks VALUES (0, 0, 0, NULL, NULL, 0, 'infinity')",
    "DELETE FROM task_tallies",
    "DELETE FROM access_keys",
    "ALTER TABLE exports DISABLE TRIGGER refuse_change",
    "DELETE FROM exports",
    "ALTER TABLE exports ENABLE ALWAYS TRIGGER refuse_change",
    "ALTER TABLE task_event_queue ENABLE ALWAYS TRIGGER refuse_change",
    "ALTER TABLE task_events ENABLE ALWAYS TRIGGER refuse_change",
    "ALTER TABLE task_keys ENABLE ALWAYS TRIGGER refuse_change",
    "ALTER TABLE tasks ENABLE ALWAYS TRIGGER refuse_delete",
    "RESET session_replication_role",
)

RELATIONS = "SELECT count(*) FROM pg_class"

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a server's own database."""
    folder = tmp_path_factory.mktemp("postgres")
    with embedded.running(folder, bin_dir=POSTGRES, options=FAST) as address:
        yield address


def execute(dsn: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each in its own transaction; return the rows of the last."""
    rows: list[tuple[Any, ...]] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


def of_database(postgres: str, name: str) -> str:
    return postgres.replace("/postgres?", f"/{name}?")


def as_role(dsn: str, role: str) -> str:
    return dsn.replace("//audit@", f"//{role}@")


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """The name of a migrated database that tests copy."""
    execute(postgres, "CREATE DATABASE migrated", f"CREATE ROLE {SERVING} LOGIN")
    dsn = of_database(postgres, "migrated")
    migrate.apply(dsn)
    migrate.grant(dsn, [SERVING], [])
    execute(dsn, "SELECT make_task_partition(now() - m * interval '1 month', 'month') "
                 "FROM generate_series(-1, 13) AS m")  # fmt: skip
    return "migrated"


@pytest.fixture
def empty_dsn(postgres: str) -> Iterator[str]:
    """The DSN of a database with nothing in it."""
    yield from _database(postgres, "template1")


@pytest.fixture(scope="session")
def spare() -> list[tuple[str, int]]:
    """Databases that tests have left as they found them, with the number of their relations."""
    return []


@pytest.fixture
def dsn(postgres: str, template: str, spare: list[tuple[str, int]]) -> Iterator[str]:
    """The DSN of a migrated database without tasks; other tests may have recorded some there."""
    if spare:
        address, relations = spare.pop()
    else:
        address = of_database(postgres, _create(postgres, template))
        ((relations,),) = execute(address, RELATIONS)
    yield address
    execute(
        address,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    # A writer that was stopped may have left a prepared transaction, which holds its locks.
    for (prepared,) in execute(
        address, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    ):
        execute(address, f"ROLLBACK PREPARED '{prepared}'")
    ((left,),) = execute(address, *EMPTY, RELATIONS)
    if left == relations:
        spare.append((address, relations))


def _create(postgres: str, template: str) -> str:
    name = f"test_{next(_numbers)}"
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return name


def _database(postgres: str, template: str) -> Iterator[str]:
    name = _create(postgres, template)
    yield of_database(postgres, name)
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def shared_dsn(postgres: str, template: str) -> Iterator[str]:
    """The DSN of a database that the tests of a module share. Each looks at its own tasks only."""
    yield from _database(postgres, template)


@pytest.fixture
def settings() -> Settings:
    return Settings(pool_size=4)


@pytest.fixture
async def service(dsn: str, settings: Settings) -> AsyncIterator[AuditService]:
    async with open_pool(settings, dsn) as pool:
        yield AuditService(pool)


Client = TestClient[web.Request, web.Application]
#: Starts the application with settings, and returns a client of it.
Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    """A pool beside that of the service, to make and revoke keys."""
    async with open_pool(Settings(pool_size=2), dsn) as pool:
        yield pool


@pytest.fixture
def aiohttp_client(
    aiohttp_client: Callable[..., Awaitable[Client]],
) -> Callable[..., Awaitable[Client]]:
    """Start an application on the connections of a worker, and return a client of it."""

    async def start(app: web.Application, **options: Any) -> Client:
        # An application that a test has made of single handlers has no settings.
        return await aiohttp_client(Server(app) if SETTINGS in app else app, **options)

    return start


@pytest.fixture
async def start(dsn: str, aiohttp_client: Callable[..., Awaitable[Client]]) -> Start:
    """Start the application on the database of the test, as its owner."""

    async def start(**settings: Any) -> Client:
        return await aiohttp_client(create_app(Settings(pool_size=4, **settings), dsn))

    return start


@pytest.fixture
async def client(
    dsn: str, settings: Settings, aiohttp_client: Callable[..., Awaitable[Client]]
) -> Client:
    """A client of the whole application on a database without tasks."""
    return await aiohttp_client(create_app(settings, as_role(dsn, SERVING)))


def ago(**parts: float) -> datetime:
    """A time that long before now."""
    return datetime.now(UTC) - timedelta(**parts)


def task(**members: Any) -> dict[str, Any]:
    """A task ready for JSON: completed an hour ago unless its members say otherwise."""
    made: dict[str, Any] = {
        "task_id": uuid.uuid4(),
        "request_text": "Deploy payments release 7",
        "status": "completed",
        "created_at": ago(hours=1),
        "services_touched": ["payments"],
        "outcome": {"action_type": "deploy_service"},
        **members,
    }
    return {
        name: value.isoformat()
        if isinstance(value, datetime)
        else str(value)
        if isinstance(value, uuid.UUID)
        else value
        for name, value in made.items()
    }
