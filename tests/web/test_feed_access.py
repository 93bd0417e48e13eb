"""Who may follow the feed, and what ends a stream when that changes."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from audit.access.identity import Scope
from audit.access.keys import create_key, revoke_key
from tests.api import API, TASKS, Event, events, metric
from tests.conftest import Client, Start, task
from tests.waiting import sequenced, until

if TYPE_CHECKING:
    from audit.postgres.pool import Pool

FEED, CHANGES = f"{API}/feed", f"{API}/changes"
OURS, THEIRS = uuid.UUID(int=1), uuid.UUID(int=2)


async def make(pool: Pool, name: str, *scopes: Scope, **other: Any) -> dict[str, str]:
    """Create a key; return the header that sends it."""
    key, _ = await create_key(pool, name, frozenset(scopes), **other)
    return {"Authorization": f"Bearer {key}"}


async def record(client: Client, key: dict[str, str], *tasks: dict[str, Any]) -> None:
    assert (await client.post(TASKS, json=list(tasks), headers=key)).status == 201
    await sequenced(client)


async def readers(client: Client, number: int) -> None:
    await until(lambda: metric(client, "task_audit_feed_readers") == number)


async def test_a_key_of_a_project_gets_the_changes_of_this_project(
    start: Start, pool: Pool
) -> None:
    orchestrator = await make(pool, "orchestrator", Scope.RECORD)
    ours = await make(pool, "ours", Scope.READ, project_id=OURS)
    client = await start()
    tasks = [task(project_id=project) for project in (OURS, THEIRS, None, THEIRS, OURS)]
    await record(client, orchestrator, *tasks)
    expected = [tasks[0]["task_id"], tasks[4]["task_id"]]

    polled = await (
        await client.get(CHANGES, params={"position": 0, "wait": 0}, headers=ours)
    ).json()
    streamed = []
    async with client.get(FEED, params={"position": 0}, headers=ours) as stream:
        async for event in events(stream):
            if event.name == "change":
                streamed.append(event.data)
            elif event.id == 5:
                break
            if len(streamed) == 2:
                break

    assert [change["task_id"] for change in polled["changes"]] == expected
    assert polled["position"] == 5
    assert streamed == polled["changes"]
    assert {change["by"] for change in streamed} == {"orchestrator"}
    for url in (FEED, CHANGES):
        response = await client.get(url, params={"project_id": str(THEIRS)}, headers=ours)
        assert response.status == 403


async def test_a_key_that_only_records_does_not_read(start: Start, pool: Pool) -> None:
    recorder = await make(pool, "recorder", Scope.RECORD)
    client = await start()

    for url in (FEED, CHANGES):
        assert (await client.get(url)).status == 401
        assert (await client.get(url, headers=recorder)).status == 403


async def test_a_revoked_key_ends_its_streams(start: Start, pool: Pool) -> None:
    ours = await make(pool, "ours", Scope.READ)
    other = await make(pool, "other", Scope.READ)
    client = await start()
    async with client.get(FEED, headers=ours) as stream, client.get(FEED, headers=other) as kept:
        polling = asyncio.create_task(client.get(CHANGES, params={"wait": 25}, headers=ours))
        await readers(client, 3)
        await revoke_key(pool, "ours")
        rest = await asyncio.wait_for(collected(stream), 60)
        answer = await polling
        await readers(client, 1)

        assert [event.name for event in rest] == ["position"]
        assert not kept.content.at_eof()
    assert answer.status == 401
    assert (await client.get(FEED, headers=ours)).status == 401


async def test_the_first_key_ends_the_streams_of_those_who_have_none(
    start: Start, pool: Pool
) -> None:
    client = await start()
    async with client.get(FEED) as stream:
        await readers(client, 1)
        await make(pool, "first", Scope.READ)
        rest = await asyncio.wait_for(collected(stream), 60)

    assert [event.name for event in rest] == ["position"]
    await readers(client, 0)


async def test_the_session_of_the_page_may_follow_the_feed(start: Start, pool: Pool) -> None:
    key, _ = await create_key(pool, "ada", frozenset({Scope.READ}))
    client = await start()
    cookie = {"Cookie": f"task_audit_session={key}"}
    async with client.get(FEED, headers={**cookie, "Sec-Fetch-Site": "same-origin"}) as stream:
        first = await anext(events(stream))
    other_site = await client.get(FEED, headers={**cookie, "Sec-Fetch-Site": "cross-site"})

    assert (stream.status, first.name) == (200, "position")
    assert other_site.status == 401


async def collected(stream: Any) -> list[Event]:
    """Read a stream to its end."""
    return [event async for event in events(stream)]
