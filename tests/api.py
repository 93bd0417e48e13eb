"""Requests to the API that record, change and read tasks, for tests over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from audit.web.state import METRICS
from tests.conftest import Client, task

API = "/api/v1/audit"
TASKS = f"{API}/tasks"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}

Answer = tuple[int, dict[str, Any]]

#: A task with every member that a client can send.
FULL_TASK: dict[str, Any] = {
    "task_id": "0d2b8a52-55d0-11ee-8c99-0242ac120002",
    "project_id": "7d9f1c9e-0c3f-7d0e-9a63-6b6f0b7c2d11",
    "request_text": 'Größe 🚀 e\u0301 عربي "quoted" \\ / \t\r\n\x01\x7f\u2028 \U0010ffff',
    "created_by": "zoë@example.org",
    "status": "executing",
    "created_at": "2025-02-28T23:59:59.000001Z",
    "approved_at": "2025-03-01T00:00:00.000000Z",
    "completed_at": "2031-01-01T00:00:00.999999Z",
    "services_touched": ["search", "Zoë's/media?", "a" * 255, "ß", "'; DROP TABLE tasks; --"],
    "outcome": {"action_type": "rotate_secret", "deep": [{"": [None, True, [[]], {}]}], "ß": "🚀"},
    "estimated_resources": {"cpu": 123456789012345678901234567890, "\\u": "\\"},
    "actual_resources": {},
    "external_ai_used": {"null": None},
    "error_message": "line 1\nline 2",
    "suggestions": [None, 1, "two", {"three": 3}, [4]],
}


def metric(client: Client, series: str) -> float:
    """The value of a series in the metrics of the service."""
    text, _ = client.app[METRICS].render("", None)
    return float(text.decode().partition(f"\n{series} ")[2].partition("\n")[0])


async def send(
    client: Client, body: bytes | AsyncIterator[bytes], headers: dict[str, str] = NDJSON
) -> Answer:
    """Post a body as it is, and return the status and the body of the response."""
    # aiohttp logs a warning for large bodies that are not files.
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    response = await client.post(TASKS, data=data, headers=headers)
    return response.status, await response.json()


async def post(client: Client, body: Any) -> Answer:
    """Post one task or a list of them as JSON."""
    return await send(client, json.dumps(body).encode(), JSON)


async def patch(client: Client, task_id: str, change: Any) -> Answer:
    response = await client.patch(f"{TASKS}/{task_id}", data=json.dumps(change), headers=JSON)
    return response.status, await response.json()


async def get(client: Client, task_id: str) -> dict[str, Any]:
    response = await client.get(f"{TASKS}/{task_id}")
    assert response.status == 200, await response.text()
    document: dict[str, Any] = await response.json()
    return document


async def recorded(client: Client, **members: Any) -> str:
    """Record a task and return its id."""
    sent = task(**members)
    status, body = await post(client, sent)
    assert status == 201, body
    return str(sent["task_id"])


@dataclass(frozen=True)
class Event:
    """One of the Server-Sent Events of the feed."""

    name: str
    id: int | None
    data: dict[str, Any]


async def events(stream: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Yield the events of a stream until it ends."""
    members: dict[str, str] = {}
    async for line in stream.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            members[name] = value
        elif "event" in members:
            position = int(members["id"]) if "id" in members else None
            yield Event(members["event"], position, json.loads(members["data"]))
            members = {}


async def changes(stream: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the changes of a stream, and check that each has the id after its number."""
    async for event in events(stream):
        if event.name == "change":
            assert event.id == event.data["n"] + 1
            yield event.data


def lines(*tasks: dict[str, Any]) -> bytes:
    """Return tasks as NDJSON."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in tasks)


def fields(problem: dict[str, Any]) -> list[str]:
    """Return the names of the members that a problem lists."""
    return [error["field"] for error in problem["errors"]]
