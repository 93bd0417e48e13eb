"""List requests over HTTP, and a count of the pages that are computed for them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from aiohttp import ClientResponse

from audit.history.asking import Reading
from audit.history.freshness import Version
from audit.history.query import TaskQuery
from audit.history.task import TaskPage
from tests.api import API
from tests.conftest import Client

_PLAIN = {"Accept-Encoding": "identity"}


async def record(client: Client, *tasks: dict[str, Any]) -> None:
    answer = await client.post(f"{API}/tasks", json=list(tasks))
    assert answer.status in (200, 201), await answer.text()


async def get(client: Client, path: str, held: str | None = None, **headers: str) -> ClientResponse:
    """Get a list; `held` is sent as `If-None-Match`."""
    if held is not None:
        headers["If-None-Match"] = held
    answer = await client.get(API + path, headers={**_PLAIN, **headers})
    await answer.read()
    return answer


class Computed:
    """Counts the pages that a service computes. They wait for `gate`, and fail with `failure`."""

    def __init__(self, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self._list_tasks = reading.list_tasks
        monkeypatch.setattr(reading, "list_tasks", self.list_tasks)

    async def list_tasks(
        self, query: TaskQuery, *, version: Version | None = None, clock: datetime | None = None
    ) -> TaskPage:
        self.pages += 1
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return await self._list_tasks(query, version=version, clock=clock)
