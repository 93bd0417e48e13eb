"""The routes of statistics: entity tags, the cache, and keys that are bound to a project."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.api import API
from tests.conftest import Client, ago, task
from tests.lists import get, record
from tests.waiting import quiet

DAY = datetime(2025, 11, 19, tzinfo=UTC)


async def test_a_histogram_has_an_etag_and_is_sent_again_only_after_a_change(
    client: Client,
) -> None:
    await record(client, task(created_at=DAY), task(created_at=DAY, status="pending"))
    await quiet(client)
    path = "/statistics/histogram?tz=Asia/Kathmandu&status=completed"
    first = await get(client, path)
    etag = first.headers["ETag"]

    assert 200 == first.status
    assert "private, no-cache" == first.headers["Cache-Control"]
    assert "Link" not in first.headers
    body = await first.json()
    assert "2025-11-19T00:00:00.000000Z" == body["since"]
    assert 1 == body["total"] == body["buckets"][0]["status"]["completed"]
    assert 304 == (await get(client, path, etag)).status
    # A task that does not match changes nothing.
    await record(client, task(created_at=DAY, status="failed"))
    assert 304 == (await get(client, path, etag)).status
    await record(client, task(created_at=DAY))
    changed = await get(client, path, etag)
    assert 200 == changed.status
    assert 2 == (await changed.json())["total"]


async def test_wrong_parameters_are_named(client: Client) -> None:
    for name, value in [("limit", "3"), ("offset", "1"), ("cursor", "x"), ("total", "none")]:
        refused = await client.get(f"{API}/statistics/histogram", params={name: value})

        assert 422 == refused.status
        assert [name] == [error["field"] for error in (await refused.json())["errors"]]
    refused = await client.get(f"{API}/statistics/histogram", params={"tz": "Mars/Olympus"})
    assert 422 == refused.status


async def test_a_window_that_ends_now_moves_on(client: Client) -> None:
    await record(client, task(created_at=ago(minutes=30)))

    body = await (await get(client, "/statistics/histogram?last=1h&interval=1m")).json()

    until = datetime.fromisoformat(body["until"])
    assert abs(until - datetime.now(UTC)) < timedelta(seconds=30)
    assert 61 <= len(body["buckets"]) <= 62
    assert body["buckets"][-1]["partial"]


async def test_facets_change_with_tasks_that_only_the_facet_counts(client: Client) -> None:
    """The facet of states ignores the filter by state, so its answer depends on all states."""
    path = "/statistics/facets?facet=status&status=failed"
    await record(client, task(status="failed"))
    first = await get(client, path)
    assert 304 == (await get(client, path, first.headers["ETag"])).status
    await record(client, task(status="rejected"))

    changed = await get(client, path, first.headers["ETag"])

    assert 200 == changed.status
    assert ["failed", "rejected"] == [
        each["value"] for each in (await changed.json())["facets"]["status"]["values"]
    ]


async def test_durations_change_with_the_time_of_completion(client: Client) -> None:
    one = task(status="executing", created_at=ago(hours=1))
    await record(client, one)
    path = "/statistics/durations"
    first = await get(client, path)
    assert 1 == (await first.json())["unfinished"]
    completed = {"status": "completed", "completed_at": ago(minutes=59).isoformat()}
    moved = await client.patch(f"{API}/tasks/{one['task_id']}", json=completed)
    assert 200 == moved.status

    changed = await get(client, path, first.headers["ETag"])

    assert 200 == changed.status
    assert 1 == (await changed.json())["tasks"]
