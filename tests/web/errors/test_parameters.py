"""Parameters and cursors that are not valid."""

from __future__ import annotations

import base64
import hashlib
import struct
import uuid
from typing import Any, Final

import pytest
import pytest_asyncio

from audit.history.query import AuditQuery
from tests.api import API, TASKS
from tests.conftest import Client, ago, task
from tests.web.errors.conftest import ONE, asked, problem, refusal, send

pytestmark = pytest.mark.asyncio(loop_scope="module")


NO_NUMBER = ["", " ", " 5", "5 ", "+5", "1_000", "1.0", "1e2", "0x10", "true", "٣", "-0.0",
             "five", "5,6", "5\n", "NaN", "9" * 30, "-1"]  # fmt: skip
NO_TIME = [
    "", "now", "today", "1700000000", "1700000000000", "0.5", "-1", "infinity", "epoch",
    "2026-01-01", "2026-01-01T00:00Z", "2026-01-01T00:00:00", "20260101T000000Z", "2026-W01-1",
    "2026-13-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00+99:99", "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00",
    "2026-01-01T00:00:00.0123456789Z", "2026-01-01T00:00:00,5Z", "2026-01-01T00:00:00 UTC",
    "2026-01-01T00:00:00Z[UTC]", "2026-01-01T00:00:00 00:00", "٢٠٢٦-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-12:00", "2026-01-01T00:00:00Z\n",
]  # fmt: skip
NO_UUID = [
    "", "x", "7d9f1c9e0c3f4d0e9a636b6f0b7c2d11", "{7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11}",
    "urn:uuid:7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d1",
]  # fmt: skip
REFUSED = {
    "limit": [*NO_NUMBER, "0", "1001"],
    "offset": [*NO_NUMBER, str(2**63)],
    "days": [*NO_NUMBER, "0", "366"],
    "since": NO_TIME,
    "until": NO_TIME,
    "service": ["", "a" * 256],
    "intent": ["", "a" * 256],
    "created_by": ["", "a" * 256],
    "project_id": NO_UUID,
    "outcome": ["[]", "null", '"{}"'],
    "cursor": ["", "x", "AAAA", "a" * 201, "A" * 200, "=", "%%%", "é", "null"],
    "service_name": ["a"],
    "Limit": ["1"],
    "limit ": ["1"],
    "status.x": ["1"],
    "status[]": ["failed"],
    "sort": ["asc"],
    "_": ["1"],
}


@pytest.mark.parametrize("route", ["/failures", "/query", "/by-service/a"])
@pytest.mark.parametrize("name", REFUSED)
async def test_a_parameter_that_is_not_valid_is_named(
    client: Client, route: str, name: str
) -> None:
    expected = {value: (422, [name]) for value in REFUSED[name]}

    actual = {
        value: await refusal(client, "GET", f"{API}{route}?{asked(**{name: value})}")
        for value in expected
    }

    assert expected == actual


@pytest.mark.parametrize(
    ("sent", "details"),
    [
        ({}, ["request_text: is required"]),
        (
            {"request_text": 1, "services_touched": "a", "outcome": [], "suggestions": {}},
            [
                "request_text: must be text",
                "services_touched: must be a JSON array",
                "outcome: must be a JSON object",
                "suggestions: must be a JSON array",
            ],
        ),
        (
            {"request_text": "", "created_by": "a" * 256, "services_touched": ["a", ""]},
            [
                "request_text: must not be empty",
                "created_by: must have at most 255 characters",
                "services_touched.1: must not be empty",
            ],
        ),
    ],
    ids=["missing", "types", "lengths"],
)
async def test_what_is_wrong_is_said_in_plain_words(
    client: Client, sent: dict[str, Any], details: list[str]
) -> None:
    body = await problem(await send(client, "POST", TASKS, json=sent))

    said = {f"{error['field']}: {error['detail']}" for error in body["errors"]}
    assert said == set(details)


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/query?status=", 422, ["status"]),
        ("/query?status=done", 422, ["status"]),
        ("/query?status=FAILED", 422, ["status"]),
        ("/query?status=failed,completed", 422, ["status"]),
        ("/query?status=failed&status=nope&status=", 422, ["status", "status"]),
        ("/failures?status=failed", 422, ["status"]),
        ("/failures?days=90", 200, []),
        ("/failures?days=91", 422, ["days"]),
        ("/query?days=365", 200, []),
        ("/query?limit=1000&offset=9223372036854775807", 200, []),
        ("/query?limit=0001", 200, []),
        ("/query?=1", 422, [""]),
        ("/query?limit", 422, ["limit"]),
        ("/query?limit=1&limit=1", 422, ["limit"]),
        ("/query?offset=1&offset=2", 422, ["offset"]),
        ("/query?days=1&days=1", 422, ["days"]),
        ("/query?since=2026-01-01T00:00:00Z&since=2026-01-01T00:00:00Z", 422, ["since"]),
        ("/query?until=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z", 422, ["until"]),
        ("/query?created_by=a&created_by=b", 422, ["created_by"]),
        ("/query?outcome={}&outcome={}", 422, ["outcome"]),
        ("/query?cursor=a&cursor=b", 422, ["cursor"]),
        ("/query?cursor=AAAA&offset=0", 422, ["offset"]),
        ("/query?days=1&since=2026-01-01T00:00:00Z", 422, ["days"]),
        ("/failures?days=7&until=2026-01-01T00:00:00Z", 422, ["days"]),
        ("/query?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", 422, ["until"]),
        ("/query?since=2026-01-01T02:00:00%2B02:00&until=2026-01-01T00:00:00Z", 200, []),
        ("/query?since=2026-01-01T00:00:00+00:00", 422, ["since"]),
        ("/query?since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59.999999Z", 200, []),
        ("/query?since=0001-01-01T00:00:00-15:59", 200, []),
        ("/query?until=9999-12-31T23:59:59.999999%2B15:59", 200, []),
        ("/query?since=2026-01-01t00:00:00z", 200, []),
        ("/query?project_id=7D9F1C9E-0C3F-4D0E-9A63-6B6F0B7C2D11", 200, []),
        ("/query?service=" + "%F0%9F%9A%80" * 255, 200, []),
        ("/query?" + "service=a&" * 100, 200, []),
        ("/query?" + "service=a&" * 101, 422, ["service"]),
        ("/query?" + "intent=a&" * 101, 422, ["intent"]),
        ("/by-service/a?" + "service=a&" * 100, 422, ["service"]),
        ("/by-service/" + "a" * 256, 422, ["service"]),
        ("/tasks/7", 422, ["task_id"]),
        ("/tasks/7d9f1c9e0c3f4d0e9a636b6f0b7c2d11", 422, ["task_id"]),
        (f"/tasks/{uuid.UUID(int=3, version=4)}?limit=1", 422, ["limit"]),
        (
            f"/tasks/{uuid.UUID(int=3, version=4)}?task_id={uuid.UUID(int=3, version=4)}",
            422,
            ["task_id"],
        ),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_parameters_are_validated_alone_and_together(
    client: Client, path: str, status: int, named: list[str]
) -> None:
    answer = await send(client, "GET", API + path)

    assert status == answer.status, await answer.text()
    if status != 200:
        errors = (await problem(answer)).get("errors", [])
        assert named == [error["field"] for error in errors]


@pytest.mark.parametrize(("method", "path"), [("POST", TASKS), ("PATCH", ONE)])
async def test_a_route_that_takes_no_parameters_refuses_them(
    client: Client, method: str, path: str
) -> None:
    assert (422, ["dry_run"]) == await refusal(client, method, f"{path}?dry_run=1", json={})


async def test_all_wrong_parameters_are_named_with_what_is_allowed(
    client: Client,
) -> None:
    wrong = "status=done&days=0&limit=1001&offset=-1&since=now&project_id=x&until=&intent=&nope=1"

    body = await problem(await send(client, "GET", f"{API}/query?{wrong}"))

    told = {error["field"]: error["detail"] for error in body["errors"]}
    allowed = {
        "status": "pending, approved, executing, completed, failed, rejected",
        "days": "from 1 to 365",
        "limit": "from 1 to 1000",
        "offset": "from 0 to",
        "since": "RFC 3339",
        "until": "RFC 3339",
        "project_id": "UUID",
        "intent": "must not be empty",
        "nope": "created_by, cursor, days, intent, last, limit, offset, outcome, project_id,"
        " service, since, status, total, until",
    }
    assert {*allowed} == {*told}
    assert {} == {name: told[name] for name in allowed if allowed[name] not in told[name]}


#: Of the year 9999: our driver sends it as infinity.
LAST_MICROSECOND: Final = 253_402_300_799_999_999


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cursor(client: Client) -> str:
    """The cursor after one of two tasks, of the filter service=turned."""
    two = [task(services_touched=["turned", "other"], created_at=ago(hours=n)) for n in (1, 2)]
    await client.post(TASKS, json=two)
    answer = await client.get(f"{API}/query?service=turned&limit=1")
    return str((await answer.json())["next_cursor"])


async def test_a_cursor_with_any_character_changed_is_refused(client: Client, cursor: str) -> None:
    garbled = [
        cursor[:place] + ("B" if character == "A" else "A") + cursor[place + 1 :]
        for place, character in enumerate(cursor)
    ]
    garbled += [cursor[:-1], cursor + "A", cursor + "=", cursor[1:], cursor * 2, cursor.swapcase()]

    answers = [
        await refusal(client, "GET", f"{API}/query?service=turned&cursor={g}") for g in garbled
    ]

    assert [(422, ["cursor"])] * len(garbled) == answers


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/query?service=turned", 200),
        ("/query?service=turned&limit=7", 200),
        ("/by-service/turned?", 200),
        ("/query?", 422),
        ("/query?service=other", 422),
        ("/query?service=turned&service=other", 422),
        ("/query?service=turned&status=completed", 422),
        ("/query?service=turned&intent=deploy_service", 422),
        ("/query?service=turned&days=7", 422),
        ("/query?service=turned&since=2020-01-01T00:00:00Z", 422),
        ("/query?service=turned&until=2030-01-01T00:00:00Z", 422),
        ("/query?service=turned&created_by=a", 422),
        ("/query?service=turned&outcome={}", 422),
        (f"/query?service=turned&project_id={uuid.UUID(int=4, version=4)}", 422),
        ("/failures?service=turned", 422),
    ],
)
async def test_a_cursor_is_valid_only_for_its_filters(
    client: Client, cursor: str, path: str, status: int
) -> None:
    assert status == (await send(client, "GET", f"{API}{path}&cursor={cursor}")).status


@pytest.mark.parametrize(
    "microseconds",
    [(2**63 - 1, 0), (-(2**63), 0), (0, 2**63 - 1), (LAST_MICROSECOND, LAST_MICROSECOND)],
)
async def test_a_forged_cursor_is_refused(
    client: Client, cursor: str, microseconds: tuple[int, int]
) -> None:
    payload = struct.pack(">Bqq16sq", 1, *microseconds, uuid.uuid4().bytes, 5)
    checksum = hashlib.blake2b(payload + AuditQuery().fingerprint, digest_size=8).digest()
    token = base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")

    assert (422, ["cursor"]) == await refusal(client, "GET", f"{API}/query?limit=1&cursor={token}")
