"""Requests that are refused: their database, their client and their responses."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient
from yarl import URL

from audit.settings import Settings
from audit.web.app import create_app
from tests.api import TASKS
from tests.conftest import Client
from tests.conftest import _database as database
from tests.inprocess import Server

ONE: Final = f"{TASKS}/{uuid.UUID(int=1, version=4)}"
Request = tuple[str, str, dict[str, Any]]
#: Words that only the code of the service, its driver, PostgreSQL or pydantic use.
INSIDE = re.compile(
    r"\b(SELECT|INSERT|UPDATE|FROM|asyncpg|psycopg|Traceback|SQLSTATE|relation|constraint|syntax)\b"
    r"|\.py\b|postgres(ql)?:|Error\b|task_keys|tasks_|secret|(Input|String|List) should|Field req"
)


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    """One database for a module, because a refused request changes nothing."""
    yield from database(postgres, template)


@asynccontextmanager
async def serving(dsn: str, **settings: Any) -> AsyncIterator[Client]:
    app = create_app(Settings(**{"pool_size": 1, **settings}), dsn)
    async with TestClient[web.Request, web.Application](Server(app)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(dsn: str) -> AsyncIterator[Client]:
    async with serving(dsn, pool_size=4) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def port(client: Client) -> int:
    """A port on which the application accepts connections as a worker does."""
    assert client.port
    return client.port


async def send(client: Client, method: str, path: str, **request: Any) -> aiohttp.ClientResponse:
    """Send a request without encoding the path again."""
    root = str(client.make_url("/")).rstrip("/")
    return await client.session.request(method, URL(root + path, encoded=True), **request)


async def problem(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the body of a refusal; check that it is a problem and reveals nothing internal."""
    assert answer.status >= 400, await answer.text()
    body: dict[str, Any] = await answer.json(content_type="application/problem+json")
    assert {"type", "title", "status", "detail", "instance"} <= {*body} <= {
        "type", "title", "status", "detail", "instance", "errors"
    }  # fmt: skip
    assert answer.status == body["status"]
    assert answer.headers["X-Request-ID"] == body["instance"]
    assert body["title"]
    assert body["detail"]
    assert not INSIDE.search(await answer.text()), await answer.text()
    return body


async def refusal(client: Client, method: str, path: str, **request: Any) -> tuple[int, list[str]]:
    """Return the status of a refusal and the fields that it names."""
    body = await problem(await send(client, method, path, **request))
    return body["status"], [error["field"] for error in body.get("errors", [])]


def asked(**params: str) -> str:
    return "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in params.items())


async def exchange(port: int, *sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send parts of a request on a new connection; return the status, the headers and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(status.split()[1]), headers, body
