"""The members of a task: types, bounds, defaults, and what is returned."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.api import FULL_TASK, JSON, TASKS, fields, get, lines, post, recorded, send
from tests.conftest import Client, ago, execute, task

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_field_comes_back_as_it_was_sent(client: Client) -> None:
    assert (await post(client, FULL_TASK))[0] == 201

    shown = await get(client, FULL_TASK["task_id"])

    assert shown.pop("recorded_at")
    assert shown == FULL_TASK


async def test_members_that_are_not_sent_have_defaults(client: Client, dsn: str) -> None:
    [(before,)] = execute(dsn, "SELECT clock_timestamp()")
    _, body = await post(client, {"request_text": "Restart"})
    [(after,)] = execute(dsn, "SELECT clock_timestamp()")

    shown = await get(client, body["task_ids"][0])

    assert before <= datetime.fromisoformat(shown["recorded_at"]) <= after
    assert shown == dict.fromkeys(FULL_TASK) | {
        "task_id": str(uuid.UUID(body["task_ids"][0])),
        "request_text": "Restart",
        "status": "pending",
        "created_at": shown["recorded_at"],
        "recorded_at": shown["recorded_at"],
        "services_touched": [],
    }


@pytest.mark.parametrize(
    "number", ["123456789012345678901234567890", "-0.123456789012345678901234567890", "1E+40"]
)
async def test_numbers_keep_every_digit(client: Client, number: str) -> None:
    sent = task()
    text = json.dumps(sent | {"outcome": {"n": 0}}).replace('"n": 0', f'"n": {number}')
    assert (await send(client, text.encode(), JSON))[0] == 201

    shown = await (await client.get(f"{TASKS}/{sent['task_id']}")).text()

    assert Decimal(number) == json.loads(shown, parse_float=Decimal)["outcome"]["n"]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000000Z"),
        ("2024-02-29t12:00:00.1z", "2024-02-29T12:00:00.100000Z"),
        ("2024-02-29 12:00:00.123456+05:30", "2024-02-29T06:30:00.123456Z"),
        ("2024-02-29T12:00:00-15:59", "2024-03-01T03:59:00.000000Z"),
        ("2000-01-01T15:59:00+15:59", "2000-01-01T00:00:00.000000Z"),
    ],
)
async def test_times_come_back_in_utc_with_microseconds(
    client: Client, sent: str, shown: str
) -> None:
    task_id = await recorded(client, created_at=sent, approved_at=sent, completed_at=sent)

    whole = await get(client, task_id)

    assert [shown] * 3 == [whole[name] for name in ("created_at", "approved_at", "completed_at")]


@pytest.mark.parametrize("days_ago", [0, 45, 400, 3_000, 9_000])
async def test_a_task_of_any_month_is_recorded(client: Client, days_ago: int) -> None:
    created_at = ago(days=days_ago)

    task_id = await recorded(client, created_at=created_at)

    assert created_at == datetime.fromisoformat((await get(client, task_id))["created_at"])


async def test_tasks_of_a_month_without_a_partition_may_come_all_at_once(client: Client) -> None:
    month = "2003-05-{:02}T00:00:00Z"

    answers = await asyncio.gather(
        *(post(client, task(created_at=month.format(day))) for day in range(1, 21))
    )

    assert [201] * 20 == [status for status, _ in answers]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("request_text", "", 422),
        ("request_text", "a", 201),
        ("request_text", "🚀" * 65_536, 201),
        ("request_text", "a" * 65_537, 422),
        ("created_by", "", 422),
        ("created_by", "🚀" * 255, 201),
        ("created_by", "a" * 256, 422),
        ("services_touched", [], 201),
        ("services_touched", [f"{n:🚀>255}" for n in range(100)], 201),
        ("services_touched", [str(n) for n in range(101)], 422),
        ("services_touched", [""], 422),
        ("services_touched", ["a" * 256], 422),
        ("services_touched", ["a", "b", "a"], 422),
        ("outcome", {"action_type": "🚀" * 255}, 201),
        ("outcome", {"action_type": None}, 201),
        ("outcome", {"action_type": "a" * 256}, 422),
        ("outcome", {"action_type": ["a"]}, 422),
        ("created_at", "1999-12-31T23:59:59.999999Z", 422),
        ("created_at", "2000-01-01T00:00:00Z", 201),
        pytest.param("created_at", ago(hours=-23).isoformat(), 201, id="an hour within"),
        pytest.param("created_at", ago(hours=-25).isoformat(), 422, id="an hour beyond"),
        ("approved_at", "0001-01-01T00:00:00Z", 201),
        ("completed_at", "9999-12-31T23:59:59.999999Z", 201),
        ("completed_at", "9999-12-31T23:59:59.999999-00:01", 422),
        ("task_id", "00000000-0000-0000-0000-000000000000", 201),
        ("task_id", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", 201),
        ("suggestions", [], 201),
        ("error_message", "", 201),
        *((name, None, 201) for name in FULL_TASK if name != "request_text"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)  # fmt: skip
async def test_bounds(client: Client, field: str, value: Any, status: int) -> None:
    answered, body = await post(client, task(**{field: value}))

    assert status == answered, body
    if status == 422:
        assert field == fields(body)[0].partition(".")[0]


WRONG: dict[str, list[Any]] = {
    "task_id": [7, "7", "{7d9f1c9e-0c3f-7d0e-9a63-6b6f0b7c2d11}", "7d9f1c9e0c3f7d0e" * 2],
    "project_id": [True, "", "7d9f1c9e-0c3f-7d0e-9a63-6b6f0b7c2d11 "],
    "request_text": [None, 1, ["a"], {}],
    "created_by": [1, ["a"], {}],
    "status": [1, "done", "Pending", "", [], {}, [["pending"]]],
    "services_touched": ["a", {}, [1], [None], [["a"]]],
    "outcome": [[], "{}", 1, True],
    "estimated_resources": [[], "{}", 1],
    "actual_resources": [[], "{}", 1],
    "external_ai_used": [[], "{}", True],
    "error_message": [1, ["a"], {}],
    "suggestions": [{}, "[]", 1],
    "recorded_at": ["2026-01-01T00:00:00Z", None],
    "intent": ["deploy_service"],
    "Status": ["pending"],
}  # fmt: skip
WRONG_TIMES = [
    1_700_000_000, 1.5, True, {}, "", "now", "1700000000", "2026-01-01", "2026-01-01T00:00Z",
    "2026-01-01T00:00:00", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z",
    "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00:60", "2026-01-01T00:00:00.0123456789Z",
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "٢٠٢٦-01-01T00:00:00Z", "infinity",
    "2026-01-01T00:00:00 Z", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n",
]  # fmt: skip
WRONG |= dict.fromkeys(("created_at", "approved_at", "completed_at"), WRONG_TIMES)


@pytest.mark.parametrize("field", WRONG)
async def test_a_value_of_the_wrong_type_is_refused_and_named(client: Client, field: str) -> None:
    expected = [(value, 422, field) for value in WRONG[field]]

    actual = []
    for value in WRONG[field]:
        status, body = await post(client, task(**{field: value}))
        actual.append((value, status, fields(body)[0].partition(".")[0]))

    assert expected == actual


async def test_every_wrong_value_is_named_in_its_element(client: Client) -> None:
    status, body = await post(
        client, [task(), {"status": "done", "extra": 1}, task(services_touched=["a", ""])]
    )

    assert status == 422
    assert {"1.request_text", "1.status", "1.extra", "2.services_touched.1"} == {*fields(body)}


async def test_a_time_too_far_ahead_is_named_in_its_element(client: Client) -> None:
    sent = [
        task(),
        task(created_at=ago(hours=-24.2)),
        task(),
        task(created_at="2999-01-01T00:00:00Z"),
    ]

    status, body = await post(client, sent)

    assert (422, ["1.created_at", "3.created_at"]) == (status, fields(body))
    status, body = await send(client, lines(*sent))
    assert (422, ["line 2: created_at", "line 4: created_at"]) == (status, fields(body))


async def test_recorded_at_is_the_time_of_the_database(client: Client, dsn: str) -> None:
    task_id = await recorded(client, created_at=ago(days=300))

    recorded_at = datetime.fromisoformat((await get(client, task_id))["recorded_at"])

    [(now,)] = execute(dsn, "SELECT now()")
    assert timedelta(0) <= now - recorded_at < timedelta(minutes=1)
    assert recorded_at.tzinfo == UTC
