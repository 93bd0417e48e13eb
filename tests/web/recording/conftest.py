"""One database and one client for all tests of a module. Each test records tasks of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient

from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client
from tests.conftest import _database as database
from tests.inprocess import Server


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    yield from database(postgres, template)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(pool_size=4)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(dsn: str, settings: Settings) -> AsyncIterator[Client]:
    async with TestClient(Server(create_app(settings, dsn))) as client:
        yield client


def count(dsn: str, tasks: list[dict[str, Any]]) -> int:
    """Return how many of the tasks are in the database, and check that each has its key."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*), (SELECT count(*) FROM task_keys WHERE task_id = ANY(%(ids)s))"
            " FROM tasks WHERE task_id = ANY(%(ids)s)",
            {"ids": [uuid.UUID(one["task_id"]) for one in tasks]},
        ).fetchone()
    assert row is not None
    assert row[0] == row[1]
    return int(row[0])
