"""Times in the forms of RFC 3339 mean the same instant here and in PostgreSQL."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from audit.errors import Invalid
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.conftest import Client, ago, task
from tests.conftest import _database as database

TASKS = "/api/v1/audit/tasks"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    yield from database(postgres, template)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(dsn: str) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(Settings(pool_size=2), dsn))) as client:
        yield client


#: As they are sent, and as they are shown.
READ = {
    "2026-10-25T10:00:00.123456789Z": "2026-10-25T10:00:00.123456Z",
    "2026-10-25T10:00:00.999999999Z": "2026-10-25T10:00:00.999999Z",
    "2026-10-25T23:59:59.9999999Z": "2026-10-25T23:59:59.999999Z",
    "2026-10-25T10:00:00.1234565Z": "2026-10-25T10:00:00.123456Z",
    "2026-10-25T10:00:00.000000000Z": "2026-10-25T10:00:00.000000Z",
    "2026-10-25T10:00:00.12345678+02:00": "2026-10-25T08:00:00.123456Z",
    "2026-10-25T10:00:00+0000": "2026-10-25T10:00:00.000000Z",
    "2026-10-25T10:00:00.123456-0330": "2026-10-25T13:30:00.123456Z",
    "2026-10-25T10:00:00+23:59": "2026-10-24T10:01:00.000000Z",
    "2026-10-25T10:00:00.7777777-23:59": "2026-10-26T09:59:00.777777Z",
    "2026-10-25T10:00:00-00:00": "2026-10-25T10:00:00.000000Z",
    "2026-10-25t10:00:00.5z": "2026-10-25T10:00:00.500000Z",
    "2026-10-25t10:00:00.123456789z": "2026-10-25T10:00:00.123456Z",
    "2026-10-25 10:00:00.123456789Z": "2026-10-25T10:00:00.123456Z",
    "2016-12-31T23:59:60Z": "2017-01-01T00:00:00.000000Z",
    "2016-12-31T23:59:60.5Z": "2017-01-01T00:00:00.500000Z",
    "2017-01-01T05:29:60.123456789+05:30": "2017-01-01T00:00:00.123456Z",
}
TIMES = ("created_at", "approved_at", "completed_at")
REFUSED = [
    "2026-10-25T10:00:00.0123456789Z", "2026-10-25T10:00:60Z", "2026-12-31T23:59:60+01:00",
    "2026-10-25T10:00:61Z", "2026-10-25T10:00:00+24:00", "2026-10-25T10:00:00+02",
    "2026-10-25T10:00:00.Z", "9999-12-31T23:59:60Z", "2026-10-25T10:00:00,123Z",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_a_time_is_recorded_to_the_microsecond_and_cut_never_rounded(
    client: Client, text: str, headers: dict[str, str]
) -> None:
    sent = task(**dict.fromkeys(TIMES, text), outcome={"created_at": text, "n": 1})
    answer = await client.post(TASKS, data=json.dumps(sent), headers=headers)
    assert answer.status == 201, await answer.text()

    shown = await (await client.get(f"{TASKS}/{sent['task_id']}")).json()

    assert [READ[text]] * 3 == [shown[name] for name in TIMES]
    assert sent["outcome"] == shown["outcome"]


@pytest.mark.parametrize("text", READ)
async def test_a_change_reads_times_as_recording_does(client: Client, text: str) -> None:
    sent = task(status="pending")
    await client.post(TASKS, json=sent)

    answer = await client.patch(
        f"{TASKS}/{sent['task_id']}", json={"completed_at": text, "approved_at": text}
    )

    shown = await answer.json()
    assert (200, [READ[text]] * 2) == (answer.status, [shown[name] for name in TIMES[1:]])


@pytest.mark.parametrize("text", READ)
async def test_the_same_instant_is_the_same_content(client: Client, text: str) -> None:
    sent = task(**dict.fromkeys(TIMES, text))
    await client.post(TASKS, json=sent)

    again = await client.post(TASKS, json={**sent, **dict.fromkeys(TIMES, READ[text])})

    assert (again.status, (await again.json())["duplicates"]) == (200, 1)


@pytest.mark.parametrize("text", READ)
async def test_a_window_begins_at_the_microsecond(client: Client, text: str) -> None:
    name = str(uuid.uuid4())
    at = datetime.fromisoformat(READ[text])
    for moved in (-1, 0, 1):
        created_at = at + timedelta(microseconds=moved)
        await client.post(TASKS, json=task(services_touched=[name], created_at=created_at))

    async def total(**params: str) -> int:
        answer = await client.get(f"/api/v1/audit/by-service/{name}", params=params)
        return int((await answer.json())["total"])

    assert (2, 1) == (await total(since=text), await total(until=text))


@pytest.mark.parametrize("text", REFUSED)
async def test_what_is_no_time_is_refused_everywhere(client: Client, text: str) -> None:
    service = client.app[SERVICE]
    sent = task(status="pending")
    await client.post(TASKS, json=sent)

    posted = await client.post(TASKS, json=task(completed_at=text))
    changed = await client.patch(f"{TASKS}/{sent['task_id']}", json={"completed_at": text})
    asked = await client.get("/api/v1/audit/query", params={"since": text})

    assert [422] * 3 == [posted.status, changed.status, asked.status]
    with pytest.raises(Invalid, match="completed_at"):
        await service.record([task(completed_at=text)])


async def test_a_program_gives_times_as_objects_or_texts(client: Client) -> None:
    service = client.app[SERVICE]
    at = ago(days=3)
    india = timezone(timedelta(hours=5, minutes=30))
    local = timezone(timedelta(minutes=53, seconds=28))
    given: list[Any] = [at, at.astimezone(india), at.astimezone(local), at.isoformat()]

    done = await service.record([{"request_text": "a", "created_at": each} for each in given])

    shown = [(await service.get_task(task_id)).task.created_at for task_id in done.task_ids]
    assert [at] * 4 == shown


async def test_a_program_may_not_give_a_time_without_an_offset(client: Client) -> None:
    service = client.app[SERVICE]
    for name in TIMES:
        with pytest.raises(Invalid, match=f"0.{name}: must be a time with an offset"):
            await service.record(
                [{"request_text": "a", name: datetime.now(UTC).replace(tzinfo=None)}]
            )
