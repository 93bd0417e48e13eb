"""Recording and moving on, over HTTP: section 4 of the contract, and the fields of section 2."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from audit.history.states import State
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import POOL
from tests.conftest import Client, ago, execute, task
from tests.conftest import _database as database
from tests.waiting import until

TASKS = "/api/v1/audit/tasks"
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
Answer = tuple[int, dict[str, Any]]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    """One database for all: every test records tasks of its own."""
    yield from database(postgres, template)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(dsn: str) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(Settings(pool_size=4), dsn))) as client:
        yield client


async def post(client: Client, body: Any) -> Answer:
    answer = await client.post(TASKS, data=json.dumps(body), headers=JSON)
    return answer.status, await answer.json()


async def post_lines(client: Client, body: bytes | AsyncIterator[bytes]) -> Answer:
    answer = await client.post(TASKS, data=body, headers=NDJSON)
    return answer.status, await answer.json()


async def patch(client: Client, task_id: str, change: Any) -> Answer:
    answer = await client.patch(f"{TASKS}/{task_id}", data=json.dumps(change), headers=JSON)
    return answer.status, await answer.json()


async def get(client: Client, task_id: str) -> dict[str, Any]:
    answer = await client.get(f"{TASKS}/{task_id}")
    assert answer.status == 200, await answer.text()
    whole: dict[str, Any] = await answer.json()
    return whole


async def recorded(client: Client, **members: Any) -> str:
    """The id of a task that is recorded."""
    sent = task(**members)
    status, body = await post(client, sent)
    assert status == 201, body
    return str(sent["task_id"])


def count(dsn: str, tasks: list[dict[str, Any]]) -> int:
    """How many of the tasks the database has, keys included."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*), (SELECT count(*) FROM task_keys WHERE task_id = ANY(%(ids)s))"
            " FROM tasks WHERE task_id = ANY(%(ids)s)",
            {"ids": [uuid.UUID(one["task_id"]) for one in tasks]},
        ).fetchone()
    assert row is not None
    assert row[0] == row[1]
    return int(row[0])


def lines(tasks: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in tasks)


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def fields(body: dict[str, Any]) -> list[str]:
    return [error["field"] for error in body["errors"]]


# --- one, an array, NDJSON ------------------------------------------------------------------------


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

    status, body = await post_lines(client, in_chunks(lines(sent), chunk_bytes))

    assert (201, 3) == (status, body["recorded"])
    assert [one["task_id"] for one in sent] == body["task_ids"]


@pytest.mark.parametrize(
    "written",
    [b"%s\n%s\n", b"%s\n%s", b"%s\r\n%s\r\n", b"\n\r\n  \n%s\n\n\t\n%s\n\n", b"  %s \n\t%s"],
    ids=["plain", "no last newline", "CRLF", "blank lines", "indented"],
)
async def test_ndjson_may_be_written_in_several_ways(client: Client, written: bytes) -> None:
    one, two = task(), task()

    status, body = await post_lines(
        client, written % (json.dumps(one).encode(), json.dumps(two).encode())
    )

    assert (201, [one["task_id"], two["task_id"]]) == (status, body["task_ids"])


async def test_ndjson_may_have_long_lines_and_thousands_of_them(client: Client, dsn: str) -> None:
    sent = [task(created_at=ago(hours=n % 100)) for n in range(4_999)]
    sent.append(task(request_text="é" * 65_536))

    status, body = await post_lines(client, in_chunks(lines(sent), 65_537))

    assert (201, 5_000, 0) == (status, body["recorded"], body["duplicates"])
    assert [one["task_id"] for one in sent] == body["task_ids"]
    assert count(dsn, sent) == 5_000
    assert "é" * 65_536 == (await get(client, sent[-1]["task_id"]))["request_text"]


async def test_the_number_of_a_line_counts_blank_ones(client: Client) -> None:
    body = b'\n{"request_text": "a"}\r\n\r\n{"request_text": "a", "status": "done"}\n'

    status, problem = await post_lines(client, body)

    assert (422, ["line 4: status"]) == (status, fields(problem))


async def test_every_line_of_ndjson_is_json_by_itself(client: Client) -> None:
    two_in_all = b'{"request_text": "a"}, {"request_text": "b"\n"status": "pending"}\n'

    status, problem = await post_lines(client, two_in_all)

    assert status == 400
    assert problem["detail"].startswith("line 1: not JSON")


@pytest.mark.parametrize(("tasks", "status"), [(0, 422), (1, 201), (1_000, 201), (1_001, 422)])
async def test_an_array_holds_up_to_a_thousand(client: Client, tasks: int, status: int) -> None:
    assert status == (await post(client, [task() for _ in range(tasks)]))[0]


@pytest.mark.parametrize("body", [b"", b"\n\n \r\n"])
async def test_ndjson_holds_a_task(client: Client, body: bytes) -> None:
    assert (await post_lines(client, body))[0] == 422


# --- the fields -----------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
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


async def test_every_field_comes_back_as_it_was_sent(client: Client) -> None:
    assert (await post(client, WHOLE))[0] == 201

    shown = await get(client, WHOLE["task_id"])

    assert shown.pop("recorded_at")
    assert shown == WHOLE


async def test_what_is_not_sent_has_its_default(client: Client, dsn: str) -> None:
    [(before,)] = execute(dsn, "SELECT clock_timestamp()")
    _, body = await post(client, {"request_text": "Restart"})
    [(after,)] = execute(dsn, "SELECT clock_timestamp()")

    shown = await get(client, body["task_ids"][0])

    assert before <= datetime.fromisoformat(shown["recorded_at"]) <= after
    assert shown == dict.fromkeys(WHOLE) | {
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
    answer = await client.post(TASKS, data=text, headers=JSON)
    assert answer.status == 201

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
        *((name, None, 201) for name in WHOLE if name != "request_text"),
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
    status, body = await post_lines(client, lines(sent))
    assert (422, ["line 2: created_at", "line 4: created_at"]) == (status, fields(body))


# --- a task is recorded once ----------------------------------------------------------------------

SAME: dict[str, Callable[[dict[str, Any]], str]] = {
    "as it is": json.dumps,
    "other order of members": lambda sent: json.dumps(dict(reversed(sent.items()))),
    "other order inside outcome": lambda sent: json.dumps(
        sent | {"outcome": dict(reversed(sent["outcome"].items()))}
    ),
    "nulls written out": lambda sent: json.dumps(dict.fromkeys(WHOLE) | sent),
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

    answer = await client.post(TASKS, data=SAME[written](sent), headers=JSON)

    expected = {"recorded": 0, "duplicates": 1, "task_ids": [sent["task_id"]]}
    assert (200, expected) == (answer.status, await answer.json())
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

    status, body = await post_lines(client, lines([sent] * 1_500))

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
    first = WHOLE | {"task_id": str(uuid.uuid4())}
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


# --- all or nothing, and many at once -------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ({"request_text": ""}, 422),
        ({"request_text": "x", "created_at": "2999-01-01T00:00:00Z"}, 422),
        ({"request_text": "x", "outcome": {"n": float("nan")}}, 400),
        ({"request_text": "x", "task_id": WHOLE["task_id"]}, 409),
    ],
    ids=["judged here", "judged by the database", "refused by the database", "conflict"],
)
async def test_a_bad_last_line_leaves_nothing(
    client: Client, dsn: str, last: dict[str, Any], status: int
) -> None:
    await post(client, WHOLE)
    sent = [task() for _ in range(1_499)]

    answered, _ = await post_lines(client, lines([*sent, last]))

    assert status == answered
    assert count(dsn, sent) == 0


async def test_the_same_task_sent_at_once_many_times_is_recorded_once(client: Client) -> None:
    sent = task()

    answers = await asyncio.gather(*(post(client, sent) for _ in range(20)))

    assert [200] * 19 + [201] == sorted(status for status, _ in answers)
    assert sum(body["recorded"] for _, body in answers) == 1


async def test_other_contents_sent_at_once_leave_one(client: Client) -> None:
    sent = [task(task_id=WHOLE["project_id"], request_text=str(n)) for n in range(20)]

    answers = await asyncio.gather(*(post(client, one) for one in sent))

    assert [201] + [409] * 19 == sorted(status for status, _ in answers)


async def test_overlapping_batches_in_opposite_orders_do_not_fail(client: Client, dsn: str) -> None:
    sent = [task() for _ in range(600)]
    parts = [sent[:400], sent[200:][::-1], sent[::-1], sent[::2], sent[1::2][::-1], sent]

    answers = await asyncio.gather(*(post_lines(client, lines(part)) for part in [*parts, *parts]))

    assert {200, 201} >= {status for status, _ in answers}
    assert sum(body["recorded"] for _, body in answers) == 600
    assert count(dsn, sent) == 600


async def test_streams_that_overlap_across_their_batches_do_not_fail(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(2_500)]

    answers = await asyncio.gather(
        post_lines(client, lines(sent)), post_lines(client, lines(sent[::-1]))
    )

    assert {200, 201} >= {status for status, _ in answers}
    assert count(dsn, sent) == 2_500


async def test_a_time_that_is_refused_makes_no_partition(client: Client, dsn: str) -> None:
    sent = [task(created_at=f"{year}-05-05T00:00:00Z") for year in (2002, 2999, 3000)]

    assert (await post(client, sent))[0] == 422
    assert [(0,)] == execute(dsn, "SELECT count(*) FROM task_partitions WHERE since > '2100-01-01'")


# --- after a 2xx ----------------------------------------------------------------------------------


async def test_the_next_read_sees_what_was_recorded(client: Client, dsn: str) -> None:
    for _ in range(20):
        name = str(uuid.uuid4())
        sent = task(services_touched=[name])
        await post(client, sent)

        answer = await client.get(f"/api/v1/audit/by-service/{name}")

        assert (await answer.json())["total"] == 1
        assert count(dsn, [sent]) == 1


async def test_commits_wait_for_the_disk(client: Client) -> None:
    pool = client.app[POOL]

    settings = [await pool.fetchval("SHOW synchronous_commit") for _ in range(pool.get_size())]

    assert {"on"} == {*settings}


# --- moving on ------------------------------------------------------------------------------------


async def test_a_task_moves_forwards_only(client: Client) -> None:
    moves = list(itertools.product(State, State))
    order = list(State)
    expected = {
        (old, new): 200
        if old == new or (not old.is_terminal and order.index(old) <= order.index(new))
        else 409
        for old, new in moves
    }

    ids = {move: await recorded(client, status=move[0]) for move in moves}
    actual = {move: (await patch(client, ids[move], {"status": move[1]}))[0] for move in moves}

    assert expected == actual
    states = {move: (await get(client, ids[move]))["status"] for move in moves}
    assert {m: m[1] if expected[m] == 200 else m[0] for m in moves} == states


async def test_a_change_answers_with_the_task_as_it_is_now(client: Client) -> None:
    sent = WHOLE | {"task_id": str(uuid.uuid4())}
    await post(client, sent)
    before = await get(client, sent["task_id"])
    change = {
        "status": "failed",
        "approved_at": "2026-01-01T00:00:00.000000Z",
        "completed_at": "2026-01-02T00:00:00.000000Z",
        "services_touched": ["z", "a"],
        "outcome": {"action_type": "restart", "n": 12345678901234567890},
        "estimated_resources": {"cpu": 2},
        "actual_resources": {"cpu": 3},
        "external_ai_used": {"model": "🚀"},
        "error_message": "no space left",
        "suggestions": ["retry"],
    }

    status, shown = await patch(client, sent["task_id"], change)

    assert (200, before | change) == (status, shown)
    assert shown == await get(client, sent["task_id"])


async def test_what_a_change_does_not_mention_stays(client: Client) -> None:
    task_id = await recorded(client, **{**WHOLE, "task_id": str(uuid.uuid4())})
    before = await get(client, task_id)

    assert (200, before) == await patch(client, task_id, {})
    assert (200, before) == await patch(client, task_id, {"status": "executing"})


async def test_null_clears_what_may_be_null(client: Client) -> None:
    task_id = await recorded(client, **{**WHOLE, "task_id": str(uuid.uuid4())})
    before = await get(client, task_id)
    names = "outcome estimated_resources actual_resources external_ai_used error_message"
    change = dict.fromkeys([*names.split(), "suggestions", "approved_at", "completed_at"])

    status, shown = await patch(client, task_id, {**change, "services_touched": None})

    assert (200, before | change | {"services_touched": []}) == (status, shown)


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ("approved", "approved_at"),
        ("completed", "completed_at"),
        ("failed", "completed_at"),
        ("rejected", "completed_at"),
    ],
)
async def test_the_time_of_a_transition_is_the_servers_unless_it_is_given(
    client: Client, dsn: str, status: str, field: str
) -> None:
    one, other = await recorded(client, status="pending"), await recorded(client, status="pending")
    given = "2026-05-05T05:05:05.555555Z"
    [(before,)] = execute(dsn, "SELECT clock_timestamp()")

    _, by_server = await patch(client, one, {"status": status})
    _, by_client = await patch(client, other, {"status": status, field: given})

    [(after,)] = execute(dsn, "SELECT clock_timestamp()")
    assert before <= datetime.fromisoformat(by_server[field]) <= after
    assert given == by_client[field]


async def test_a_time_that_is_known_already_is_kept_at_the_transition(client: Client) -> None:
    given = "2026-05-05T05:05:05.000000Z"
    task_id = await recorded(client, status="pending", approved_at=given, completed_at=given)

    await patch(client, task_id, {"status": "approved"})
    _, shown = await patch(client, task_id, {"status": "completed"})

    assert (given, given) == (shown["approved_at"], shown["completed_at"])


async def test_a_state_that_is_skipped_leaves_no_time(client: Client) -> None:
    task_id = await recorded(client, status="pending")

    _, executing = await patch(client, task_id, {"status": "executing"})

    assert (None, None) == (executing["approved_at"], executing["completed_at"])


@pytest.mark.parametrize(
    "change",
    [{"status": "completed"}, {"error_message": "late"}, {"status": "failed", "outcome": {}}],
)
async def test_a_terminal_task_never_changes(client: Client, change: dict[str, Any]) -> None:
    task_id = await recorded(client, status="failed")
    before = await get(client, task_id)

    assert (await patch(client, task_id, change))[0] == 409
    assert before == await get(client, task_id)


@pytest.mark.parametrize(
    "field", ["task_id", "project_id", "request_text", "created_by", "created_at", "recorded_at"]
)
async def test_a_field_that_may_not_change_is_refused_by_name(client: Client, field: str) -> None:
    task_id = await recorded(client, status="pending")
    before = await get(client, task_id)

    status, body = await patch(client, task_id, {"status": "failed", field: before[field]})

    assert status == 409
    assert field in body["detail"]
    assert before == await get(client, task_id)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"extra": 1}, "extra"),
        ({"intent": "x"}, "intent"),
        ({"status": None}, "status"),
        ({"status": "done"}, "status"),
        ({"status": []}, "status"),
        ({"services_touched": ["a", "a"]}, "services_touched"),
        ({"services_touched": [str(n) for n in range(101)]}, "services_touched"),
        ({"outcome": []}, "outcome"),
        ({"outcome": {"action_type": "a" * 256}}, "outcome"),
        ({"suggestions": {}}, "suggestions"),
        ({"error_message": 1}, "error_message"),
        ({"completed_at": "yesterday"}, "completed_at"),
        ({"approved_at": 0}, "approved_at"),
        ([], ""),
        ("status", ""),
        (None, ""),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_change_of_the_wrong_type_is_refused_and_named(
    client: Client, change: Any, field: str
) -> None:
    task_id = await recorded(client, status="pending")

    status, body = await patch(client, task_id, change)

    assert (422, [field]) == (status, fields(body))


async def test_a_task_that_is_not_there_is_not_found(client: Client) -> None:
    unknown = str(uuid.uuid4())

    assert (await client.get(f"{TASKS}/{unknown}")).status == 404
    assert (await patch(client, unknown, {"status": "failed"}))[0] == 404


async def test_an_id_may_be_written_in_capitals(client: Client) -> None:
    task_id = await recorded(client)

    assert task_id == (await get(client, task_id.upper()))["task_id"]


async def test_of_ends_sent_at_once_one_wins(client: Client) -> None:
    task_id = await recorded(client, status="executing")
    ends = ["completed", "failed", "rejected"] * 6

    answers = await asyncio.gather(*(patch(client, task_id, {"status": end}) for end in ends))

    # A change that came again is answered like the first one.
    assert [200] * 6 + [409] * 12 == sorted(status for status, _ in answers)
    [winner] = {body["status"] for status, body in answers if status == 200}
    assert winner == (await get(client, task_id))["status"]


async def test_changes_of_other_fields_sent_at_once_are_all_kept(client: Client) -> None:
    task_id = await recorded(client, status="executing")
    change = {
        "outcome": {"a": 1}, "error_message": "b", "suggestions": ["c"], "status": "executing",
        "external_ai_used": {"d": 4}, "services_touched": ["e"], "actual_resources": {"f": 6},
    }  # fmt: skip

    await asyncio.gather(*(patch(client, task_id, {name: change[name]}) for name in change))

    assert change == {name: (await get(client, task_id))[name] for name in change}


# --- what goes wrong on the way -------------------------------------------------------------------

KILL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'task-audit'"
)


async def test_sessions_killed_at_any_moment_leave_all_or_nothing(client: Client, dsn: str) -> None:
    for delay_seconds in (0.05, 0.1, 0.2):
        sent = [task() for _ in range(2_000)]
        posting = asyncio.ensure_future(post_lines(client, lines(sent)))
        await asyncio.sleep(delay_seconds)
        await asyncio.to_thread(execute, dsn, KILL)

        status, _ = await posting

        assert status in (201, 503)
        assert count(dsn, sent) in ((2_000,) if status == 201 else (0, 2_000))
        while status == 503:
            status, _ = await post_lines(client, lines(sent))
        assert status in (200, 201)
        assert count(dsn, sent) == 2_000


async def test_a_session_killed_before_its_commit_leaves_nothing(client: Client, dsn: str) -> None:
    sent = [task() for _ in range(10)]
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks IN SHARE MODE")
        posting = asyncio.ensure_future(post(client, sent))
        await waiting_for_a_lock(dsn)
        execute(dsn, KILL)

        status, _ = await posting

    assert status == 503
    assert count(dsn, sent) == 0


async def waiting_for_a_lock(dsn: str) -> None:
    query = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    await until(lambda: execute(dsn, query))


async def test_a_client_that_leaves_after_its_request_does_not_undo_it(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(10)]
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks IN SHARE MODE")
        posting = asyncio.ensure_future(post(client, sent))
        await waiting_for_a_lock(dsn)
        posting.cancel()
        await asyncio.sleep(0.1)

    await until(lambda: count(dsn, sent) > 0)
    assert count(dsn, sent) == 10


async def test_a_client_that_leaves_within_its_body_records_nothing(
    client: Client, dsn: str
) -> None:
    sent = [task() for _ in range(2_000)]

    async def breaks_off() -> AsyncIterator[bytes]:
        yield lines(sent)
        await asyncio.sleep(0.2)
        raise ConnectionAbortedError

    with pytest.raises(aiohttp.ClientError):
        await post_lines(client, breaks_off())

    assert count(dsn, sent) == 0
    assert (await post_lines(client, lines(sent)))[0] == 201


async def test_a_body_may_be_compressed(client: Client) -> None:
    sent = task()

    answer = await client.post(TASKS, data=lines([sent] * 100), headers=NDJSON, compress="gzip")

    assert answer.status == 201
    assert (await answer.json())["duplicates"] == 99


async def test_the_clock_of_recording_is_the_databases(client: Client, dsn: str) -> None:
    task_id = await recorded(client, created_at=ago(days=300))

    recorded_at = datetime.fromisoformat((await get(client, task_id))["recorded_at"])

    [(now,)] = execute(dsn, "SELECT now()")
    assert timedelta(0) <= now - recorded_at < timedelta(minutes=1)
    assert recorded_at.tzinfo == UTC
