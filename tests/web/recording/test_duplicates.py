"""A task that is sent again is a duplicate or a conflict."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.api import FULL_TASK, JSON, get, lines, patch, post, send
from tests.conftest import Client, execute, task
from tests.web.recording.conftest import count

pytestmark = pytest.mark.asyncio(loop_scope="module")


SAME: dict[str, Callable[[dict[str, Any]], str]] = {
    "as it is": json.dumps,
    "other order of members": lambda sent: json.dumps(dict(reversed(sent.items()))),
    "other order inside outcome": lambda sent: json.dumps(
        sent | {"outcome": dict(reversed(sent["outcome"].items()))}
    ),
    "nulls written out": lambda sent: json.dumps(dict.fromkeys(FULL_TASK) | sent),
    "other spaces and escapes": lambda sent: json.dumps(sent, indent=2).replace("D", "\\u0044"),
    "other offset": lambda sent: json.dumps(
        sent | {"created_at": sent["created_at"].replace("T10:00:00Z", "T12:30:00.000+02:30")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("written", SAME)
async def test_the_same_content_again_is_a_duplicate(client: Client, written: str) -> None:
    sent = task(
        created_at="2026-10-02T10:00:00Z", outcome={"action_type": "deploy_service", "b": 1, "c": 2}
    )
    await post(client, sent)
    before = await get(client, sent["task_id"])

    status, body = await send(client, SAME[written](sent).encode(), JSON)

    expected = {"recorded": 0, "duplicates": 1, "task_ids": [sent["task_id"]]}
    assert (200, expected) == (status, body)
    assert before == await get(client, sent["task_id"])


async def test_defaults_written_out_are_the_same_content(client: Client) -> None:
    sent = {"task_id": str(uuid.uuid4()), "request_text": "Restart"}
    await post(client, sent)

    status, _ = await post(client, sent | {"status": "pending", "services_touched": []})

    assert status == 200


async def test_a_task_sent_again_after_it_moved_on_is_a_duplicate(client: Client) -> None:
    sent = task(status="pending")
    await post(client, sent)
    _, moved = await patch(client, sent["task_id"], {"status": "failed", "outcome": None})

    assert (await post(client, sent))[0] == 200
    assert moved == await get(client, sent["task_id"])


async def test_new_and_known_tasks_in_one_batch_are_counted_apart(client: Client) -> None:
    known, new = task(), task()
    await post(client, known)

    status, body = await post(client, [known, new, known])

    ids = [known["task_id"], new["task_id"], known["task_id"]]
    assert (201, {"recorded": 1, "duplicates": 2, "task_ids": ids}) == (status, body)


async def test_a_task_twice_in_one_batch_is_recorded_once(client: Client) -> None:
    sent = task()

    status, body = await send(client, lines(*[sent] * 1_500))

    assert (201, 1, 1_499) == (status, body["recorded"], body["duplicates"])


async def test_tasks_without_ids_are_never_duplicates(client: Client) -> None:
    status, body = await post(client, [{"request_text": "Restart"}] * 3)

    assert (201, 3) == (status, body["recorded"])
    assert len({*body["task_ids"]}) == 3


OTHER = {
    "project_id": str(uuid.uuid4()),
    "request_text": "Restart ",
    "created_by": "someone else",
    "status": "failed",
    "created_at": "2025-02-28T23:59:59.000002Z",
    "approved_at": None,
    "completed_at": "2031-01-01T00:00:01Z",
    "services_touched": ["search"],
    "outcome": {},
    "estimated_resources": {"cpu": 2},
    "actual_resources": None,
    "external_ai_used": {"null": 0},
    "error_message": None,
    "suggestions": [],
}


@pytest.mark.parametrize("field", OTHER)
async def test_other_content_is_a_conflict_that_names_the_id_and_records_nothing(
    client: Client, dsn: str, field: str
) -> None:
    first = FULL_TASK | {"task_id": str(uuid.uuid4())}
    await post(client, first)
    before = await get(client, first["task_id"])
    news = [task(), task()]

    status, body = await post(client, [news[0], first | {field: OTHER[field]}, news[1]])

    assert status == 409
    assert first["task_id"] in body["detail"]
    assert count(dsn, news) == 0
    assert before == await get(client, first["task_id"])


async def test_the_order_of_services_is_content(client: Client) -> None:
    sent = task(services_touched=["a", "b"])
    await post(client, sent)

    assert (await post(client, sent | {"services_touched": ["b", "a"]}))[0] == 409


async def test_one_id_with_two_contents_in_one_batch_is_a_conflict(
    client: Client, dsn: str
) -> None:
    sent = task()

    status, body = await post(client, [sent, sent | {"request_text": "Other"}])

    assert status == 409
    assert sent["task_id"] in body["detail"]
    assert count(dsn, [sent]) == 0


async def test_a_task_recorded_by_sql_conflicts_with_any_other_of_its_id(
    client: Client, dsn: str
) -> None:
    task_id = str(uuid.uuid4())
    execute(dsn, f"INSERT INTO tasks (task_id, request_text) VALUES ('{task_id}', 'By SQL')")

    assert (await post(client, {"task_id": task_id, "request_text": "By SQL"}))[0] == 409
    assert (await get(client, task_id))["request_text"] == "By SQL"
