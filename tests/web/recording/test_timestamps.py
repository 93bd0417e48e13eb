"""Times in the forms of RFC 3339 mean the same instant here and in PostgreSQL."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from audit.errors import Invalid
from audit.web.state import SERVICE
from tests.api import API, JSON, NDJSON, get, patch, post, send
from tests.conftest import Client, ago, task

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: A time in a request, and the same time in a response.
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
async def test_times_are_cut_to_the_microsecond_and_not_rounded(
    client: Client, text: str, headers: dict[str, str]
) -> None:
    sent = task(**dict.fromkeys(TIMES, text), outcome={"created_at": text, "n": 1})
    status, body = await send(client, json.dumps(sent).encode(), headers)
    assert status == 201, body

    shown = await get(client, sent["task_id"])

    assert [READ[text]] * 3 == [shown[name] for name in TIMES]
    assert sent["outcome"] == shown["outcome"]


@pytest.mark.parametrize("text", READ)
async def test_a_change_reads_times_as_recording_does(client: Client, text: str) -> None:
    sent = task(status="pending")
    await post(client, sent)

    change = {"completed_at": text, "approved_at": text}
    status, shown = await patch(client, sent["task_id"], change)

    assert (200, [READ[text]] * 2) == (status, [shown[name] for name in TIMES[1:]])


@pytest.mark.parametrize("text", READ)
async def test_the_same_instant_is_the_same_content(client: Client, text: str) -> None:
    sent = task(**dict.fromkeys(TIMES, text))
    await post(client, sent)

    status, body = await post(client, {**sent, **dict.fromkeys(TIMES, READ[text])})

    assert (200, 1) == (status, body["duplicates"])


@pytest.mark.parametrize("text", READ)
async def test_a_window_begins_at_the_microsecond(client: Client, text: str) -> None:
    name = str(uuid.uuid4())
    at = datetime.fromisoformat(READ[text])
    for moved in (-1, 0, 1):
        created_at = at + timedelta(microseconds=moved)
        await post(client, task(services_touched=[name], created_at=created_at))

    async def total(**params: str) -> int:
        answer = await client.get(f"{API}/by-service/{name}", params=params)
        return int((await answer.json())["total"])

    assert (2, 1) == (await total(since=text), await total(until=text))


@pytest.mark.parametrize("text", REFUSED)
async def test_an_invalid_time_is_refused_everywhere(client: Client, text: str) -> None:
    service = client.app[SERVICE]
    sent = task(status="pending")
    await post(client, sent)

    posted, _ = await post(client, task(completed_at=text))
    changed, _ = await patch(client, sent["task_id"], {"completed_at": text})
    response = await client.get(f"{API}/query", params={"since": text})

    assert [422] * 3 == [posted, changed, response.status]
    with pytest.raises(Invalid, match="completed_at"):
        await service.record([task(completed_at=text)])


async def test_python_callers_may_pass_times_as_objects_or_text(client: Client) -> None:
    service = client.app[SERVICE]
    at = ago(days=3)
    india = timezone(timedelta(hours=5, minutes=30))
    local = timezone(timedelta(minutes=53, seconds=28))
    given: list[Any] = [at, at.astimezone(india), at.astimezone(local), at.isoformat()]

    done = await service.record([{"request_text": "a", "created_at": each} for each in given])

    shown = [(await service.get_task(task_id)).task.created_at for task_id in done.task_ids]
    assert [at] * 4 == shown


async def test_python_callers_must_pass_times_with_an_offset(client: Client) -> None:
    service = client.app[SERVICE]
    for name in TIMES:
        with pytest.raises(Invalid, match=f"0.{name}: must be a time with an offset"):
            await service.record(
                [{"request_text": "a", name: datetime.now(UTC).replace(tzinfo=None)}]
            )
