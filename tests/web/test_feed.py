"""The feed as Server-Sent Events, and its changes by long polling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from audit.web.state import DRAINING
from tests.api import API, TASKS, changes, events, get, metric, patch, post, recorded
from tests.conftest import Client, execute, task
from tests.waiting import sequenced, until

FEED = f"{API}/feed"
CHANGES = f"{API}/changes"


async def take(stream: aiohttp.ClientResponse, most: int) -> list[dict[str, Any]]:
    """Return the next changes of a stream."""
    taken: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        async for change in changes(stream):
            taken.append(change)
            if len(taken) == most:
                break
    return taken


async def poll(client: Client, position: int | str = 0, **params: Any) -> dict[str, Any]:
    given = {"position": position, "wait": 0, **params}
    response = await client.get(CHANGES, params=given)
    assert response.status == 200, await response.text()
    body: dict[str, Any] = await response.json()
    return body


async def poll_all(client: Client, **params: Any) -> list[dict[str, Any]]:
    """Return all changes that match, from the start of the log."""
    await sequenced(client)
    found: list[dict[str, Any]] = []
    position, more = 0, True
    while more:
        body = await poll(client, position, **params)
        position, more = body["position"], body["more"]
        found += body["changes"]
    return found


async def test_a_change_has_the_values_after_it_and_the_task_as_it_is_now(client: Client) -> None:
    task_id = await recorded(client, status="executing", outcome={"try": 1})
    await patch(client, task_id, {"outcome": {"try": 2}, "error_message": "slow"})
    await patch(client, task_id, {"status": "failed", "outcome": None})
    first, second, third = await poll_all(client)
    history = await (await client.get(f"{TASKS}/{task_id}/history")).json()
    now = await get(client, task_id)

    assert [each["n"] for each in (first, second, third)] == [0, 1, 2]
    assert [each["status"] for each in (first, second, third)] == [
        "executing",
        "executing",
        "failed",
    ]
    assert first["changed"] is None
    assert second["changed"] == {"outcome": {"try": 2}, "error_message": "slow"}
    assert third["changed"] == {
        "status": "failed",
        "outcome": None,
        "completed_at": now["completed_at"],
    }
    for change, event in zip((first, second, third), history["events"], strict=True):
        assert list(change) == [
            *("n", "task_id", "status", "changed_at", "by", "changed", "task"),
        ]
        assert (change["n"], change["changed_at"]) == (event["position"], event["at"])
        assert change["task"] == {name: now[name] for name in change["task"]}
        assert len(change["task"]) == 8


async def test_a_stream_begins_with_its_position_and_brings_new_changes(client: Client) -> None:
    before = await recorded(client)
    await sequenced(client)
    async with client.get(FEED) as stream:
        incoming = events(stream)
        start = await anext(incoming)
        task_id = await recorded(client)
        change = await anext(incoming)

    assert stream.headers["Content-Type"] == "text/event-stream"
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert stream.headers["Cache-Control"] == "no-store"
    assert "X-Request-ID" in stream.headers
    assert (start.name, start.id, start.data) == ("position", 1, {"behind_seconds": 0})
    assert (change.name, change.id, change.data["task_id"]) == ("change", 2, task_id)
    assert before != task_id


async def test_a_stream_continues_where_a_former_one_ended(client: Client) -> None:
    ids = [await recorded(client) for _ in range(5)]
    seen = []
    position = "0"
    for _ in ids:
        async with client.get(FEED, headers={"Last-Event-ID": position}) as stream:
            (change,) = await take(stream, 1)
        seen.append(change["task_id"])
        position = str(change["n"] + 1)

    assert seen == ids


async def test_the_last_event_id_overrides_the_position(client: Client) -> None:
    ids = [await recorded(client) for _ in range(3)]
    await sequenced(client)
    headers = {"Last-Event-ID": "2"}
    async with client.get(FEED, params={"position": 0}, headers=headers) as stream:
        (change,) = await take(stream, 1)

    assert change["task_id"] == ids[2]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"status": "failed"}, [2, 4]),
        ({"status": ["failed", "pending"]}, [0, 2, 4, 5]),
        ({"service": "search"}, [0, 2, 5]),
        ({"intent": ["rotate_secret", "other"]}, [3]),
        ({"created_by": "ada"}, [1]),
        ({"project_id": "00000000-0000-0000-0000-000000000007"}, [4]),
        ({"outcome": '{"region": "eu"}'}, [4]),
        ({"status": "completed", "service": "payments"}, [1, 3]),
    ],
)
async def test_filters_select_changes(
    client: Client, params: dict[str, Any], expected: list[int]
) -> None:
    task_id = await recorded(client, status="pending", services_touched=["search"])
    await recorded(client, created_by="ada")
    await patch(client, task_id, {"status": "failed"})
    await recorded(client, outcome={"action_type": "rotate_secret"})
    await recorded(
        client,
        status="failed",
        project_id="00000000-0000-0000-0000-000000000007",
        outcome={"region": "eu"},
    )
    await recorded(client, status="pending", services_touched=["search", "payments-db"])

    assert [change["n"] for change in await poll_all(client, **params)] == expected


async def test_a_limit_divides_the_changes(client: Client) -> None:
    await post(client, [task() for _ in range(5)])
    await sequenced(client)
    first = await poll(client, limit=2)
    second = await poll(client, first["position"], limit=2)
    third = await poll(client, second["position"], limit=2)

    bodies = (first, second, third)
    assert [[change["n"] for change in body["changes"]] for body in bodies] == [[0, 1], [2, 3], [4]]
    assert [(body["position"], body["more"]) for body in bodies] == [
        *((2, True), (4, True), (5, False)),
    ]


async def test_a_portion_is_limited_in_bytes_but_has_a_change(start: Any) -> None:
    client = await start(max_page_bytes=1500)
    for size in (10, 300, 2000, 300):
        await recorded(client, request_text="x" * size)

    await sequenced(client)
    numbers = []
    position = 0
    while position < 4:
        body = await poll(client, position)
        position = body["position"]
        numbers.append([change["n"] for change in body["changes"]])

    assert numbers == [[0, 1], [2], [3]]


async def test_polling_waits_for_a_change(client: Client) -> None:
    waiting = asyncio.create_task(poll(client, "now", wait=25))
    await until(lambda: metric(client, "task_audit_feed_readers") == 1)
    task_id = await recorded(client)
    body = await waiting

    assert [change["task_id"] for change in body["changes"]] == [task_id]
    assert (body["position"], body["more"]) == (1, False)


async def test_polling_in_vain_returns_a_newer_position(client: Client) -> None:
    await recorded(client, status="completed")
    await sequenced(client)

    assert await poll(client, 0, wait=1, status="failed") == {
        "changes": [],
        "position": 1,
        "more": False,
    }


async def test_changes_of_others_move_the_bookmark(client: Client) -> None:
    async with client.get(FEED, params={"status": "failed"}) as stream:
        incoming = events(stream)
        assert (await anext(incoming)).id == 0
        await recorded(client, status="completed")
        bookmark = await anext(incoming)

    assert (bookmark.name, bookmark.id) == ("position", 1)


async def test_a_position_that_the_log_does_not_reach_is_gone(client: Client) -> None:
    await recorded(client)
    await sequenced(client)
    response = await client.get(CHANGES, params={"position": 2})
    problem = await response.json()
    async with client.get(FEED, params={"position": 2}) as stream:
        received = [event async for event in events(stream)]

    assert response.status == 410
    assert problem["type"] == "urn:task-audit:problem:position-gone"
    assert (problem["position"], problem["log_size"]) == (2, 1)
    assert [event.name for event in received] == ["position", "gone"]
    assert received[-1].id is None
    assert received[-1].data == {"position": 2, "log_size": 1}


@pytest.mark.parametrize(
    "params",
    [
        *({"position": "-1"}, {"position": "x"}, {"position": ""}, {"position": str(2**63)}),
        *({"days": "1"}, {"since": "2026-01-01T00:00:00Z"}, {"last": "1h"}, {"until": "x"}),
        *({"offset": "0"}, {"cursor": "x"}, {"total": "none"}, {"limit": "0"}, {"wait": "26"}),
        *({"status": "done"}, {"outcome": "[]"}, {"unknown": "1"}),
    ],
    ids=lambda params: "=".join(next(iter(params.items()))),
)
async def test_what_the_feed_does_not_take_is_named(client: Client, params: dict[str, str]) -> None:
    for url in (CHANGES, FEED):
        response = await client.get(url, params=params)
        problem = await response.json()

        assert response.status == 422
        assert [error["field"] for error in problem["errors"]] == list(params)


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "٣", str(2**63)])
async def test_an_id_of_no_event_is_refused(client: Client, header: str) -> None:
    response = await client.get(FEED, headers={"Last-Event-ID": header})

    assert response.status == 422
    assert (await response.json())["errors"][0]["field"] == "Last-Event-ID"


async def test_a_worker_that_ends_lets_its_readers_go(client: Client) -> None:
    async with client.get(FEED) as stream:
        incoming = events(stream)
        await anext(incoming)
        polling = asyncio.create_task(poll(client, "now", wait=25))
        await until(lambda: metric(client, "task_audit_feed_readers") == 2)
        client.app[DRAINING].set()
        rest = [event async for event in incoming]
        body = await polling

    assert rest == []
    assert body == {"changes": [], "position": 0, "more": False}
    assert stream.connection is None
    await until(lambda: metric(client, "task_audit_feed_readers") == 0)


async def test_readers_over_the_limit_are_refused(start: Any) -> None:
    client = await start(max_feeds=2)
    async with client.get(FEED) as first, client.get(FEED):
        await until(lambda: metric(client, "task_audit_feed_readers") == 2)
        for url in (FEED, CHANGES):
            response = await client.get(url)
            assert response.status == 503
            assert response.headers["Retry-After"] == "5"
            assert (await response.json())["type"] == "urn:task-audit:problem:too-many-feeds"
        first.close()
        await until(lambda: metric(client, "task_audit_feed_readers") == 1)

    assert (await client.get(CHANGES, params={"wait": 0})).status == 200


async def test_head_requests_get_no_stream(client: Client) -> None:
    response = await client.head(FEED)

    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert metric(client, "task_audit_feed_readers") == 0


@asynccontextmanager
async def streams(client: Client, number: int) -> AsyncIterator[list[aiohttp.ClientResponse]]:
    opened = [await client.get(FEED) for _ in range(number)]
    try:
        yield opened
    finally:
        for stream in opened:
            stream.close()


async def test_equal_readers_share_the_reads_of_the_database(client: Client) -> None:
    series = 'task_audit_statement_duration_seconds_count{statement="read_feed"}'
    async with streams(client, 20) as opened:
        await until(lambda: metric(client, "task_audit_feed_readers") == 20)
        before = metric(client, series)
        await post(client, [task() for _ in range(10)])
        received = await asyncio.gather(*(take(stream, 10) for stream in opened))
        reads = metric(client, series) - before

    assert all(changes == received[0] for changes in received)
    assert [change["n"] for change in received[0]] == list(range(10))
    assert reads < 20


async def test_the_delay_of_changes_is_measured(client: Client) -> None:
    async with client.get(FEED) as stream, asyncio.timeout(60):
        incoming = changes(stream)
        while not metric(client, "task_audit_feed_delay_seconds_count"):
            await recorded(client)
            await anext(incoming)


async def test_tasks_recorded_by_sql_are_changes_of_nobody(client: Client, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, status, services_touched)"
        " VALUES (gen_random_uuid(), 'by SQL', 'pending', '{}')",
        "UPDATE tasks SET status = 'completed', outcome = '{\"a\": 1}'",
        "SELECT 1",
    )
    first, second = await poll_all(client)

    assert (first["by"], first["changed"], first["status"]) == (None, None, "pending")
    assert second["changed"]["outcome"] == {"a": 1}
    assert second["changed"]["status"] == second["status"] == "completed"
