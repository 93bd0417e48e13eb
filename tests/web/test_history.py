"""The route to the events of a task."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from yarl import URL

from audit.settings import Settings
from audit.web.app import create_app
from tests.api import TASKS, fields, patch, recorded
from tests.commandline import audit
from tests.conftest import SERVING, Client, as_role, execute, task

SEQUENCE = "SELECT sequence_task_events(1000)"


async def history(client: Client, task_id: str, **params: Any) -> dict[str, Any]:
    answer = await client.get(f"{TASKS}/{task_id}/history", params=params)
    assert answer.status == 200, await answer.text()
    body: dict[str, Any] = await answer.json()
    return body


async def test_a_new_task_has_one_event(client: Client) -> None:
    task_id = await recorded(client, status="pending")

    body = await history(client, task_id)

    (event,) = body["events"]
    assert {"task_id": task_id, "events": [event], "next_cursor": None} == body
    known = {"kind": "recorded", "status": "pending", "role": SERVING, "changed": {}}
    assert known.items() <= event.items()


async def test_each_change_names_the_members_that_it_replaced(client: Client) -> None:
    task_id = await recorded(client, status="pending", outcome={"action_type": "x", "n": [1]})
    changes: list[dict[str, Any]] = [
        {"status": "approved", "approved_at": "2026-01-01T01:00:00+01:00"},
        {"outcome": None, "services_touched": ["b", "a"]},
        {"outcome": {"action_type": "y"}, "error_message": "Größe \u2028"},
        {"status": "failed", "completed_at": "2026-01-02T00:00:00.5Z", "suggestions": [1.5]},
    ]
    for change in changes:
        assert (await patch(client, task_id, change))[0] == 200

    events = (await history(client, task_id))["events"]

    assert ["pending", "approved", "approved", "approved", "failed"] == [
        e["status"] for e in events
    ]
    assert [
        {},
        {
            "status": {"from": "pending", "to": "approved"},
            "approved_at": {"from": None, "to": "2026-01-01T00:00:00.000000Z"},
        },
        {
            "services_touched": {"from": ["payments"], "to": ["b", "a"]},
            "outcome": {"from": {"action_type": "x", "n": [1]}, "to": None},
        },
        {
            "outcome": {"from": None, "to": {"action_type": "y"}},
            "error_message": {"from": None, "to": "Größe \u2028"},
        },
        {
            "status": {"from": "approved", "to": "failed"},
            "completed_at": {"from": None, "to": "2026-01-02T00:00:00.500000Z"},
            "suggestions": {"from": None, "to": [1.5]},
        },
    ] == [event["changed"] for event in events]


async def test_an_event_names_its_request(client: Client) -> None:
    one = task(status="pending")
    sent = await client.post(TASKS, json=one, headers={"X-Request-ID": "deploy-7"})
    changed = await client.patch(f"{TASKS}/{one['task_id']}", json={"status": "failed"})

    events = (await history(client, one["task_id"]))["events"]

    ids = [answer.headers["X-Request-ID"] for answer in (sent, changed)]
    assert ["deploy-7", ids[1]] == ids == [event["request_id"] for event in events]


async def test_a_change_that_is_already_made_adds_no_event(client: Client) -> None:
    task_id = await recorded(client, status="pending")
    for _ in range(3):
        await patch(client, task_id, {"status": "failed"})

    assert ["recorded", "changed"] == [
        e["kind"] for e in (await history(client, task_id))["events"]
    ]


async def test_position_is_null_until_the_event_is_in_the_log(client: Client, dsn: str) -> None:
    first, second = await recorded(client, status="pending"), await recorded(client)
    execute(dsn, SEQUENCE)
    await patch(client, first, {"status": "executing"})

    start, none = (event["position"] for event in (await history(client, first))["events"])
    (other,) = (event["position"] for event in (await history(client, second))["events"])

    assert none is None
    assert other == start + 1
    execute(dsn, SEQUENCE)
    events = (await history(client, first))["events"]
    assert [start, start + 2] == [event["position"] for event in events]


async def test_pages_are_the_whole_history_while_the_events_move(client: Client, dsn: str) -> None:
    task_id = await recorded(client, status="pending")
    for n in range(7):
        await patch(client, task_id, {"error_message": f"try {n}"})
    whole = (await history(client, task_id))["events"]

    for limit in (1, 3, 8):
        body = await history(client, task_id, limit=limit)
        events = body["events"]
        while body["next_cursor"]:
            assert len(body["events"]) == limit
            execute(dsn, "SELECT sequence_task_events(1)")
            body = await history(client, task_id, limit=limit, cursor=body["next_cursor"])
            events += body["events"]

        assert without_positions(whole) == without_positions(events)


def without_positions(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "position": None} for event in events]


async def test_limit_is_a_hundred_by_default_and_at_most_a_thousand(
    client: Client, dsn: str
) -> None:
    task_id = await recorded(client, status="pending")
    execute(
        dsn,
        "DO $$ BEGIN FOR n IN 1..1100 LOOP"
        f" UPDATE tasks SET error_message = n::text WHERE task_id = '{task_id}'; COMMIT;"
        " END LOOP; END $$",
    )

    default, most = await history(client, task_id), await history(client, task_id, limit=1000)

    assert (100, 1000) == (len(default["events"]), len(most["events"]))
    assert {"from": "998", "to": "999"} == most["events"][-1]["changed"]["error_message"]
    rest = await history(client, task_id, limit=1000, cursor=most["next_cursor"])
    assert (101, None) == (len(rest["events"]), rest["next_cursor"])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": ""}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"offset": 1}, "offset"),
        ({"days": 1}, "days"),
        ({"task_id": uuid.uuid4().hex}, "task_id"),
    ],
)
async def test_wrong_parameters_are_refused(
    client: Client, params: dict[str, Any], field: str
) -> None:
    task_id = await recorded(client)

    answer = await client.get(f"{TASKS}/{task_id}/history", params=params)

    assert answer.status == 422
    assert [field] == fields(await answer.json())


async def test_a_cursor_belongs_to_one_task(client: Client) -> None:
    one, other = await recorded(client, status="pending"), await recorded(client, status="pending")
    await patch(client, one, {"status": "failed"})
    cursor = (await history(client, one, limit=1))["next_cursor"]

    answer = await client.get(f"{TASKS}/{other}/history", params={"cursor": cursor})

    assert answer.status == 422
    assert ["cursor"] == fields(await answer.json())
    for place in range(len(cursor)):
        forged = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        answer = await client.get(f"{TASKS}/{one}/history", params={"cursor": forged})
        assert answer.status == 422


@pytest.mark.parametrize("path", ["00000000-0000-4000-8000-000000000000", "7", "%zz", "%00"])
async def test_errors_are_those_of_the_task(client: Client, path: str) -> None:
    answers = [await client.get(f"{TASKS}/{path}{end}") for end in ("", "/history")]

    one, other = [{**await answer.json(), "instance": ""} for answer in answers]
    assert one == other
    assert answers[0].status == answers[1].status >= 400


async def test_a_task_that_was_recorded_before_the_log_has_no_events(
    client: Client, dsn: str
) -> None:
    execute(
        dsn,
        "ALTER TABLE tasks DISABLE TRIGGER queue_recorded",
        "INSERT INTO tasks (task_id, request_text)"
        " VALUES ('7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11', 'Old')",
        "ALTER TABLE tasks ENABLE ALWAYS TRIGGER queue_recorded",
    )
    task_id = "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"

    assert [] == (await history(client, task_id))["events"]
    await patch(client, task_id, {"status": "approved"})
    (event,) = (await history(client, task_id))["events"]
    assert ("changed", "pending") == (event["kind"], event["changed"]["status"]["from"])


async def test_a_write_is_in_the_history_as_soon_as_it_is_confirmed(client: Client) -> None:
    task_id = await recorded(client, status="pending")
    for n in range(20):
        await patch(client, task_id, {"error_message": str(n)})
        *_, last = (await history(client, task_id))["events"]
        assert last["changed"]["error_message"]["to"] == str(n)


async def test_an_event_is_in_one_page_only_while_it_moves_to_the_log(
    client: Client, dsn: str
) -> None:
    """One statement reads the queue and the log in one snapshot."""
    task_id = await recorded(client, status="pending")
    for n in range(30):
        await patch(client, task_id, {"error_message": str(n)})

    async def sequence() -> None:
        for _ in range(31):
            await asyncio.to_thread(execute, dsn, "SELECT sequence_task_events(1)")

    moving = asyncio.create_task(sequence())
    while not moving.done():
        events = (await history(client, task_id))["events"]
        assert [None, *map(str, range(30))] == [
            event["changed"].get("error_message", {"to": None})["to"] for event in events
        ]
    await moving


async def test_content_is_the_digest_of_what_the_task_was(client: Client) -> None:
    task_id = await recorded(client, status="pending", outcome={"n": 1.50, "ü": "🚀"})
    bodies = []
    for change in ({}, {"error_message": "late"}, {"status": "completed"}):
        await patch(client, task_id, change)
        bodies.append(await (await client.get(f"{TASKS}/{task_id}")).read())

    events = (await history(client, task_id))["events"]

    assert [event["content"] for event in events] == [
        hashlib.sha256(event["salt"].encode() + b"\n" + body).hexdigest()
        for event, body in zip(events, bodies, strict=True)
    ]


async def test_conditional_requests_work_as_for_the_task(client: Client, dsn: str) -> None:
    task_id = await recorded(client, status="pending")
    url = f"{TASKS}/{task_id}/history"
    first = await client.get(url)
    held = {"If-None-Match": first.headers["ETag"]}

    unchanged = await client.get(url, headers=held)
    failed = await client.get(url, headers={"If-Match": '"other"'})
    head = await client.head(url)

    assert (304, b"") == (unchanged.status, await unchanged.read())
    assert failed.status == 412
    assert (200, b"") == (head.status, await head.read())
    assert first.headers["ETag"] == unchanged.headers["ETag"] == head.headers["ETag"]
    assert (
        "private, no-cache" == first.headers["Cache-Control"] == unchanged.headers["Cache-Control"]
    )
    execute(dsn, SEQUENCE)
    assert (await client.get(url, headers=held)).status == 200
    await patch(client, task_id, {"status": "failed"})
    assert (await client.get(url, headers=held)).status == 200


async def test_link_leads_to_the_next_page(client: Client) -> None:
    task_id = await recorded(client, status="pending")
    await patch(client, task_id, {"status": "failed"})
    url = f"{TASKS}/{task_id}/history"

    first = await client.get(url, params={"limit": 1})
    second = await client.get(URL(first.links["next"]["url"]).relative())

    assert [["recorded"], ["changed"]] == [
        [event["kind"] for event in (await page.json())["events"]] for page in (first, second)
    ]
    assert set(second.links) == {"first"}


async def test_a_page_is_limited_in_bytes_but_has_at_least_one_event(
    dsn: str, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    settings = Settings(pool_size=2, max_page_bytes=1024 * 1024)
    client = await aiohttp_client(create_app(settings, as_role(dsn, SERVING)))
    task_id = await recorded(client, status="pending")
    texts = [None, *(str(n) * 200_000 for n in range(6)), "x" * 900_000, "y" * 900_000, "z"]
    for text in texts[1:]:
        assert (await patch(client, task_id, {"error_message": text}))[0] == 200

    sizes: list[int] = []
    shown: list[dict[str, Any]] = []
    cursor = None
    while cursor or not sizes:
        body = await history(client, task_id, **({"cursor": cursor} if cursor else {}))
        sizes.append(len(json.dumps(body)))
        shown += body["events"]
        cursor = body["next_cursor"]

    assert texts[1:] == [event["changed"]["error_message"]["to"] for event in shown[1:]]
    assert texts[:-1] == [event["changed"]["error_message"]["from"] for event in shown[1:]]
    assert max(sizes) < 3 * 1024 * 1024
    assert len(sizes) < len(texts)


async def test_a_key_of_a_project_sees_the_history_of_its_tasks_only(
    dsn: str, settings: Settings, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    project = str(uuid.uuid4())
    both = ("--scope", "read", "--scope", "record")
    made = [
        audit("keys", "create", "--name", name, *both, *bound, AUDIT_DSN=dsn)[1].strip()
        for name, bound in (("all", ()), ("bound", ("--project-id", project)))
    ]
    client = await aiohttp_client(create_app(settings, as_role(dsn, SERVING)))
    wide, bound = ({"Authorization": f"Bearer {key}"} for key in made)
    ids = [str(uuid.uuid4()) for _ in range(2)]
    for task_id, of in zip(ids, (project, None), strict=True):
        sent = {"task_id": task_id, "request_text": "x", "project_id": of}
        assert (await client.post(TASKS, json=sent, headers=wide)).status == 201

    (event,) = (await (await client.get(f"{TASKS}/{ids[0]}/history", headers=bound)).json())[
        "events"
    ]
    assert ("all", SERVING) == (event["actor"], event["role"])
    statuses = [
        [(await client.get(f"{TASKS}/{one}/history", headers=who)).status for one in ids]
        for who in (wide, bound)
    ]

    assert [[200, 200], [200, 404]] == statuses
    assert (await client.get(f"{TASKS}/{ids[0]}/history")).status == 401
