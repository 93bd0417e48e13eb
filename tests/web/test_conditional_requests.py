"""Requests with `If-Match` and `If-None-Match`, and changes that are sent again."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from audit import PreconditionFailed
from audit.history.service import AuditService
from tests.conftest import Client, execute, task

TASKS = "/api/v1/audit/tasks"
MERGE_PATCH = "application/merge-patch+json"


async def recorded(client: Client, **members: Any) -> str:
    """The URL of a new task, which is open unless its members say otherwise."""
    one = task(**{"status": "executing", **members})
    answer = await client.post(TASKS, json=one)
    assert answer.status == 201
    return f"{TASKS}/{one['task_id']}"


async def etag_of(client: Client, url: str) -> str:
    answer = await client.get(url)
    assert answer.status == 200
    return answer.headers["ETag"]


def versions(dsn: str) -> list[tuple[Any, ...]]:
    """What changes with each write of a row, even one of the same values."""
    return execute(dsn, "SELECT xmin::text, xmax::text, ctid::text FROM tasks ORDER BY task_id")


async def test_the_etag_changes_with_the_task(client: Client) -> None:
    url = await recorded(client)
    first = await etag_of(client, url)

    changed = await client.patch(url, json={"error_message": "late"})

    assert first.startswith('"')
    assert first == first.strip()
    assert changed.headers["ETag"] not in (first, None)
    assert changed.headers["ETag"] == await etag_of(client, url)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_if_none_match_with_the_current_etag_is_304(client: Client, form: str) -> None:
    url = await recorded(client)
    etag = await etag_of(client, url)

    answer = await client.get(url, headers={"If-None-Match": form.format(etag)})

    assert answer.status == 304
    assert b"" == await answer.read()
    assert etag == answer.headers["ETag"]


async def test_if_none_match_with_an_old_etag_is_200(client: Client) -> None:
    url = await recorded(client)
    etag = await etag_of(client, url)
    await client.patch(url, json={"error_message": "late"})

    answer = await client.get(url, headers={"If-None-Match": etag})

    assert answer.status == 200
    assert (await answer.json())["error_message"] == "late"


async def test_get_with_an_old_if_match_is_412(client: Client) -> None:
    url = await recorded(client)

    assert 412 == (await client.get(url, headers={"If-Match": '"stale"'})).status
    held = {"If-Match": await etag_of(client, url)}
    assert 200 == (await client.get(url, headers=held)).status


@pytest.mark.parametrize("form", ["{}", '"stale", {}', "*", '"a,b",{}'])
async def test_a_change_with_the_current_if_match_is_made(client: Client, form: str) -> None:
    url = await recorded(client)
    held = {"If-Match": form.format(await etag_of(client, url))}

    answer = await client.patch(url, json={"status": "failed"}, headers=held)

    assert answer.status == 200
    assert (await answer.json())["status"] == "failed"


@pytest.mark.parametrize("form", ['"stale"', "W/{}", "stale", "", '"a", "b"'])
async def test_a_change_with_an_old_if_match_is_412(client: Client, dsn: str, form: str) -> None:
    url = await recorded(client)
    before = versions(dsn)
    held = {"If-Match": form.format(await etag_of(client, url))}

    answer = await client.patch(url, json={"status": "failed"}, headers=held)

    assert answer.status == 412
    assert answer.content_type == "application/problem+json"
    assert (await answer.json())["type"] == "urn:task-audit:problem:precondition-failed"
    assert before == versions(dsn)


async def test_412_comes_before_409_and_after_404(client: Client) -> None:
    url = await recorded(client, status="completed")
    stale = {"If-Match": '"stale"'}
    nobody = f"{TASKS}/{uuid.uuid4()}"

    assert 412 == (await client.patch(url, json={"status": "failed"}, headers=stale)).status
    assert 404 == (await client.patch(nobody, json={"status": "failed"}, headers=stale)).status


async def test_if_none_match_of_a_change(client: Client) -> None:
    url = await recorded(client)
    etag = await etag_of(client, url)

    for given, expected in [("*", 412), (etag, 412), (f"W/{etag}", 412), ('"other"', 200)]:
        answer = await client.patch(
            url, json={"error_message": given}, headers={"If-None-Match": given}
        )
        assert (given, expected) == (given, answer.status)


async def test_concurrent_changes_with_if_match_lose_nothing(client: Client) -> None:
    url = await recorded(client, services_touched=[], outcome={"n": 0})

    async def agent(name: str) -> None:
        while True:
            read = await client.get(url)
            one = await read.json()
            change = {
                "services_touched": [*one["services_touched"], name],
                "outcome": {"n": one["outcome"]["n"] + 1},
            }
            held = {"If-Match": read.headers["ETag"]}
            answer = await client.patch(url, json=change, headers=held)
            if answer.status == 200:
                return
            assert answer.status == 412

    names = [f"agent-{n}" for n in range(8)]
    await asyncio.gather(*map(agent, names))

    one = await (await client.get(url)).json()
    assert sorted(names) == sorted(one["services_touched"])
    assert one["outcome"] == {"n": 8}


async def test_update_in_process_accepts_an_etag(service: AuditService) -> None:
    (task_id,) = (await service.record([task(status="executing")])).task_ids
    document = await service.get_task(task_id)

    changed = await service.update(task_id, {"error_message": "late"}, if_match=document.etag)

    assert changed.etag == (await service.get_task(task_id)).etag
    with pytest.raises(PreconditionFailed):
        await service.update(task_id, {"status": "failed"}, if_match=document.etag)


CHANGES: list[dict[str, Any]] = [
    {"status": "completed"},
    {"status": "failed", "error_message": "late", "completed_at": "2026-06-01T10:00:00+02:00"},
    {"status": "completed", "completed_at": None},
    {"status": "approved", "approved_at": None},
    {"status": "executing", "outcome": {"action_type": "x", "n": 1.0, "deep": [{"a": None}]}},
    {"services_touched": ["b", "a"]},
    {"outcome": None},
    {},
]


@pytest.mark.parametrize("change", CHANGES, ids=json.dumps)
async def test_a_repeated_change_is_200_and_writes_nothing(
    client: Client, dsn: str, change: dict[str, Any]
) -> None:
    url = await recorded(client, status="pending")
    first = await client.patch(url, json=change)
    before = versions(dsn)

    again = await client.patch(url, json=change)

    assert (200, 200) == (first.status, again.status)
    assert await first.json() == await again.json()
    assert first.headers["ETag"] == again.headers["ETag"]
    assert before == versions(dsn)


async def test_a_repeated_change_in_another_spelling_writes_nothing(
    client: Client, dsn: str
) -> None:
    url = await recorded(client)
    change = {"status": "failed", "completed_at": "2026-06-01T10:00:00Z", "outcome": {"n": 1}}
    await client.patch(url, json=change)
    before = versions(dsn)

    again = await client.patch(
        url,
        data='{"outcome":{"n":1.00e0},"completed_at":"2026-06-01T12:00:00.000+02:00",'
        '"status":"failed"}',
        headers={"Content-Type": MERGE_PATCH},
    )

    assert again.status == 200
    assert before == versions(dsn)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed", "error_message": "other"},
        {"status": "completed"},
        {"completed_at": None},
        {"outcome": {"n": 2}},
    ],
    ids=json.dumps,
)
async def test_another_change_of_a_terminal_task_is_409(
    client: Client, change: dict[str, Any]
) -> None:
    url = await recorded(client)
    await client.patch(url, json={"status": "failed", "outcome": {"n": 1}})

    assert 409 == (await client.patch(url, json=change)).status


async def test_equal_concurrent_changes_are_both_200(client: Client) -> None:
    url = await recorded(client)

    for n in range(5):
        change = {"error_message": f"attempt {n}"}
        answers = await asyncio.gather(*(client.patch(url, json=change) for _ in range(4)))
        assert [200] * 4 == [answer.status for answer in answers]
    answers = await asyncio.gather(
        *(client.patch(url, json={"status": "failed", "completed_at": None}) for _ in range(4))
    )
    assert [200] * 4 == [answer.status for answer in answers]
    assert 1 == len({answer.headers["ETag"] for answer in answers})


async def test_merge_patch_is_accepted_and_named_in_a_415(client: Client) -> None:
    url = await recorded(client)
    change = json.dumps({"status": "failed"})

    taken = await client.patch(
        url, data=change, headers={"Content-Type": f"{MERGE_PATCH}; charset=utf-8"}
    )
    refused = await client.patch(
        url, data=change, headers={"Content-Type": "application/json-patch+json"}
    )
    posted = await client.post(TASKS, data="{}", headers={"Content-Type": MERGE_PATCH})

    assert (200, 415, 415) == (taken.status, refused.status, posted.status)
    assert f"application/json, {MERGE_PATCH}" == refused.headers["Accept-Patch"]
    assert "Accept-Patch" not in posted.headers
