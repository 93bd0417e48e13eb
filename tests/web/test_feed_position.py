"""A client that follows the event log from the position of a list misses no change."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from audit.history.service import AuditService
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.api import API, TASKS
from tests.conftest import Client, execute, task

LIST = f"{API}/query?limit=1000"
INSERT = (
    "INSERT INTO tasks (task_id, request_text, status, services_touched)"
    " VALUES (gen_random_uuid(), 'by SQL', 'pending', '{}') RETURNING task_id::text"
)


async def position_and_ids(client: Client, **headers: str) -> tuple[int, set[str]]:
    response = await client.get(LIST, headers=headers)
    body: dict[str, Any] = await response.json() if response.status == 200 else {"tasks": []}
    return int(response.headers["Feed-Position"]), {one["task_id"] for one in body["tasks"]}


async def positions(client: Client, dsn: str) -> dict[str, int]:
    """The position of each task's first event, once all have one."""
    service: AuditService = client.app[SERVICE]
    while execute(dsn, "SELECT 1 FROM task_event_queue LIMIT 1"):
        await service.upkeep.sequence_events()
    return dict(execute(dsn, "SELECT task_id::text, min(position) FROM task_events GROUP BY 1"))


async def test_an_idle_log_is_followed_from_its_end(client: Client, dsn: str) -> None:
    await client.post(TASKS, json=[task() for _ in range(3)])
    known = await positions(client, dsn)

    assert max(known.values()) == 2
    assert await position_and_ids(client) == (3, set(known))


async def test_changes_after_a_list_have_later_positions(client: Client, dsn: str) -> None:
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await client.post(TASKS, json=task())

    writers = [asyncio.create_task(write()) for _ in range(4)]
    looks = []
    for number in range(25):
        # Some answers come from the cache, and some are computed.
        url = LIST if number % 2 else f"{LIST}&total=none"
        response = await client.get(url)
        ids = {one["task_id"] for one in (await response.json())["tasks"]}
        looks.append((int(response.headers["Feed-Position"]), ids))
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*writers)
    known = await positions(client, dsn)

    assert len(known) < 1000
    for position, ids in looks:
        assert {task_id for task_id, first in known.items() if first < position} <= ids
    assert len({position for position, _ in looks}) > 1


async def test_a_transaction_that_commits_late_is_not_missed(client: Client, dsn: str) -> None:
    with psycopg.connect(dsn) as late:
        ((task_id,),) = late.execute(INSERT).fetchall()
        await client.post(TASKS, json=task())
        await positions_but_late(client)
        position, ids = await position_and_ids(client)
        late.commit()
    known = await positions(client, dsn)

    assert task_id not in ids
    assert known[task_id] >= position == 1


async def positions_but_late(client: Client) -> None:
    service: AuditService = client.app[SERVICE]
    async with asyncio.timeout(30):
        while (await position_and_ids(client))[0] < 1:
            await service.upkeep.sequence_events()


async def test_cached_answers_have_the_current_position(client: Client, dsn: str) -> None:
    await client.post(TASKS, json=task(services_touched=["payments"]))
    await positions(client, dsn)
    url = f"{API}/by-service/payments"
    first = await client.get(url)
    await client.post(TASKS, json=[task(services_touched=["other"]) for _ in range(5)])
    await positions(client, dsn)
    again = await client.get(url)
    unchanged = await client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    head = await client.head(url)

    assert first.headers["Feed-Position"] == "1"
    assert again.headers["ETag"] == first.headers["ETag"]
    assert unchanged.status == 304
    for response in (again, unchanged, head):
        assert response.headers["Feed-Position"] == "6"


async def test_position_needs_no_cache(dsn: str, aiohttp_client: Any) -> None:
    client = await aiohttp_client(create_app(Settings(pool_size=2, answers_bytes=0), dsn))
    await client.post(TASKS, json=[task() for _ in range(3)])
    known = await positions(client, dsn)

    assert await position_and_ids(client) == (3, set(known))


@pytest.mark.parametrize("path", ["/failures", "/by-service/a", "/query"])
async def test_every_list_of_an_empty_history_begins_at_zero(client: Client, path: str) -> None:
    assert (await client.get(API + path)).headers["Feed-Position"] == "0"
