"""A read that names the position of a write contains the write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api import API, TASKS
from tests.conftest import Client, Start, task

AT_LEAST = "Audit-Position-At-Least"
POSITION = "Audit-Position"
#: Of no cluster that a test has.
FOREIGN = "1-00000001-0/1A2B3C4D-900"


async def test_every_write_has_a_position(client: Client) -> None:
    made, pair = task(status="pending"), [task(), task()]
    url = f"{TASKS}/{made['task_id']}"
    responses = [
        await client.post(TASKS, json=made),
        await client.post(TASKS, json=made),
        await client.post(TASKS, json=pair),
        await client.post(TASKS, json=[*pair, task()]),
        await client.patch(url, json={"status": "executing"}),
        await client.patch(url, json={"status": "executing"}),
    ]
    assert [201, 200, 201, 201, 200, 200] == [response.status for response in responses]
    for response in responses:
        read = await client.get(url, headers={AT_LEAST: response.headers[POSITION]})
        assert 200 == read.status


async def test_writes_of_a_group_have_positions(client: Client) -> None:
    made = [task(status="pending") for _ in range(20)]
    recorded = await asyncio.gather(*(client.post(TASKS, json=one) for one in made))
    changed = await asyncio.gather(
        *(client.patch(f"{TASKS}/{one['task_id']}", json={"status": "executing"})
          for one in made)
    )  # fmt: skip
    assert {201} == {response.status for response in recorded}
    assert {200} == {response.status for response in changed}
    assert all(POSITION in response.headers for response in (*recorded, *changed))


async def test_refusal_that_tells_of_the_history_has_a_position(client: Client) -> None:
    made = task(status="completed")
    await client.post(TASKS, json=made)
    url = f"{TASKS}/{made['task_id']}"
    refused = [
        await client.post(TASKS, json={**made, "request_text": "other"}),
        await client.patch(url, json={"status": "failed"}),
        await client.patch(url, json={"status": "failed"}, headers={"If-Match": '"other"'}),
    ]
    assert [409, 409, 412] == [response.status for response in refused]
    for response in refused:
        read = await client.get(url, headers={AT_LEAST: response.headers[POSITION]})
        assert 200 == read.status


async def test_every_read_takes_positions(client: Client) -> None:
    made = task()
    responses = [await client.post(TASKS, json=one) for one in (made, task())]
    positions = [response.headers[POSITION] for response in responses]
    url = f"{TASKS}/{made['task_id']}"
    for path in (
        url, f"{url}/history", f"{API}/query", f"{API}/failures", f"{API}/by-service/payments",
        f"{API}/statistics/histogram", f"{API}/statistics/facets?facet=status",
        f"{API}/statistics/durations", f"{API}/changes?position=0",
    ):  # fmt: skip
        for given in (positions[0], ",".join(positions), " , ".join(positions)):
            response = await client.get(path, headers={AT_LEAST: given})
            assert (path, 200) == (path, response.status), await response.text()
        response = await client.get(path, headers={AT_LEAST: FOREIGN})
        assert (path, 409) == (path, response.status)


@pytest.mark.parametrize("given", ["", ",", "7", "now", f"{FOREIGN},", "1-1-0/0-1", f"{FOREIGN};"])
async def test_text_that_is_no_position_is_refused(client: Client, given: str) -> None:
    response = await client.get(f"{API}/query", headers={AT_LEAST: given})
    body: dict[str, Any] = await response.json()
    assert 422 == response.status
    assert [AT_LEAST] == [error["field"] for error in body["errors"]]


async def test_position_of_another_cluster_is_unknown(client: Client) -> None:
    response = await client.get(f"{API}/query", headers={AT_LEAST: FOREIGN})
    assert 409 == response.status
    assert "urn:task-audit:problem:unknown-position" == (await response.json())["type"]


async def test_position_of_a_later_timeline_is_awaited_and_refused(start: Start) -> None:
    client = await start(staleness_wait_seconds=0.05)
    response = await client.post(TASKS, json=task())
    cluster, _, place, transaction = response.headers[POSITION].split("-")
    later = f"{cluster}-0000FFFF-{place}-{transaction}"
    refused = await client.get(f"{API}/query", headers={AT_LEAST: later})
    assert 503 == refused.status
    assert "1" == refused.headers["Retry-After"]


async def test_requests_that_arrive_one_after_the_other_wait_together(start: Start) -> None:
    client = await start(staleness_wait_seconds=0.5)
    response = await client.post(TASKS, json=task())
    cluster, _, place, transaction = response.headers[POSITION].split("-")

    async def status(number: int) -> int:
        await asyncio.sleep(number / 1000)
        later = f"{cluster}-0000FFFF-{place}-{int(transaction) + number}"
        return (await client.get(f"{API}/query", headers={AT_LEAST: later})).status

    assert [503] * 50 == await asyncio.gather(*map(status, range(50)))


async def test_a_primary_looks_for_no_position(start: Start) -> None:
    client = await start()
    response = await client.post(TASKS, json=task())
    headers = {AT_LEAST: response.headers[POSITION]}
    for _ in range(3):
        assert 200 == (await client.get(f"{API}/query", headers=headers)).status
    metrics = await (await client.get("/metrics")).text()
    count = 'task_audit_statement_duration_seconds_count{statement="%s"}'
    assert f"{count % 'list_tasks'} 1.0" in metrics
    assert f"{count % 'find_positions'} 0.0" in metrics


async def test_cached_page_contains_the_write(client: Client) -> None:
    for total in range(1, 6):
        response = await client.post(TASKS, json=task())
        for _ in range(2):
            page = await client.get(f"{API}/query", headers={AT_LEAST: response.headers[POSITION]})
            assert total == (await page.json())["total"]
