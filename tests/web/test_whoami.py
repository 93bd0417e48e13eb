"""`/whoami` tells a client who it is to the service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any
from uuid import UUID

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from audit.access.identity import Scope
from audit.access.keys import create_key
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client

URL = "/api/v1/audit/whoami"


async def test_without_keys_the_caller_is_nobody_and_may_do_everything(client: Client) -> None:
    response = await client.get(URL)

    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert await response.json() == {
        "name": None,
        "scopes": ["admin", "read", "record"],
        "project_id": None,
        "expires_at": None,
        "via": "nobody",
        "version": version("task-audit"),
        "trace_url": None,
    }


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_of_any_scope_learns_what_it_allows(
    dsn: str, aiohttp_client: AiohttpClient, scope: Scope
) -> None:
    project = UUID(int=7)
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        key, _ = await create_key(pool, "bot", frozenset({scope}), project, timedelta(days=90))
    client = await aiohttp_client(create_app(Settings(pool_size=1), dsn))
    response = await client.get(URL, headers={"Authorization": f"Bearer {key}"})
    caller = await response.json()

    assert response.status == 200
    assert (caller["name"], caller["scopes"], caller["via"]) == ("bot", [scope], "key")
    assert caller["project_id"] == str(project)
    left = datetime.fromisoformat(caller["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left < timedelta(days=91)
    assert (await client.get(URL)).status == 401
    assert (await client.get(URL, headers={"Authorization": "Bearer x"})).status == 401


async def test_the_url_of_traces_is_told_to_the_page(
    dsn: str, aiohttp_client: AiohttpClient
) -> None:
    url = "https://tempo.example.com/trace/{trace_id}"
    client = await aiohttp_client(create_app(Settings(pool_size=1, trace_url=url), dsn))

    assert (await (await client.get(URL)).json())["trace_url"] == url


@pytest.mark.parametrize(
    "url", ["https://x.example/", "javascript:alert({trace_id})", "{trace_id}"]
)
def test_a_url_that_leads_to_no_trace_is_refused(url: str) -> None:
    given: dict[str, Any] = {"trace_url": url}
    with pytest.raises(ValueError, match="must be an http or https URL"):
        Settings(**given)
