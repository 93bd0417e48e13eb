"""Recording one task, an array of tasks, or NDJSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.api import fields, get, lines, post, send
from tests.conftest import Client, ago, task
from tests.web.recording.conftest import count

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_one_task_is_recorded(client: Client) -> None:
    sent = task()

    expected = {"recorded": 1, "duplicates": 0, "task_ids": [sent["task_id"]]}
    assert (201, expected) == await post(client, sent)


async def test_an_array_is_recorded_and_answered_in_its_order(client: Client) -> None:
    sent = [task(created_at=ago(days=days)) for days in (3, 400, 0, 90, 1)]

    status, body = await post(client, sent)

    assert (201, 5, 0) == (status, body["recorded"], body["duplicates"])
    assert [one["task_id"] for one in sent] == body["task_ids"]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1021])
async def test_ndjson_may_arrive_in_any_chunks(client: Client, chunk_bytes: int) -> None:
    sent = [task(request_text="Größe 🚀", created_at=ago(days=days)) for days in (1, 3, 2)]

    status, body = await send(client, in_chunks(lines(*sent), chunk_bytes))

    assert (201, 3) == (status, body["recorded"])
    assert [one["task_id"] for one in sent] == body["task_ids"]


@pytest.mark.parametrize(
    "written",
    [b"%s\n%s\n", b"%s\n%s", b"%s\r\n%s\r\n", b"\n\r\n  \n%s\n\n\t\n%s\n\n", b"  %s \n\t%s"],
    ids=["plain", "no last newline", "CRLF", "blank lines", "indented"],
)
async def test_ndjson_may_be_written_in_several_ways(client: Client, written: bytes) -> None:
    one, two = task(), task()

    status, body = await send(
        client, written % (json.dumps(one).encode(), json.dumps(two).encode())
    )

    assert (201, [one["task_id"], two["task_id"]]) == (status, body["task_ids"])


async def test_ndjson_may_have_long_lines_and_thousands_of_them(client: Client, dsn: str) -> None:
    sent = [task(created_at=ago(hours=n % 100)) for n in range(4_999)]
    sent.append(task(request_text="é" * 65_536))

    status, body = await send(client, in_chunks(lines(*sent), 65_537))

    assert (201, 5_000, 0) == (status, body["recorded"], body["duplicates"])
    assert [one["task_id"] for one in sent] == body["task_ids"]
    assert count(dsn, sent) == 5_000
    assert "é" * 65_536 == (await get(client, sent[-1]["task_id"]))["request_text"]


async def test_the_number_of_a_line_counts_blank_ones(client: Client) -> None:
    body = b'\n{"request_text": "a"}\r\n\r\n{"request_text": "a", "status": "done"}\n'

    status, problem = await send(client, body)

    assert (422, ["line 4: status"]) == (status, fields(problem))


async def test_every_line_of_ndjson_is_json_by_itself(client: Client) -> None:
    two_in_all = b'{"request_text": "a"}, {"request_text": "b"\n"status": "pending"}\n'

    status, problem = await send(client, two_in_all)

    assert status == 400
    assert problem["detail"].startswith("line 1: not JSON")


@pytest.mark.parametrize(("tasks", "status"), [(0, 422), (1, 201), (1_000, 201), (1_001, 422)])
async def test_an_array_holds_at_most_a_thousand_tasks(
    client: Client, tasks: int, status: int
) -> None:
    assert status == (await post(client, [task() for _ in range(tasks)]))[0]


@pytest.mark.parametrize("body", [b"", b"\n\n \r\n"])
async def test_ndjson_without_a_task_is_refused(client: Client, body: bytes) -> None:
    assert (await send(client, body))[0] == 422
