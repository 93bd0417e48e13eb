"""JSON text over HTTP: what a decoder would accept or alter in silence is refused by its name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client, task
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


async def answered(client: Client, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    answer = await client.post(TASKS, data=body, headers=headers)
    return answer.status, await answer.json()


def fields(problem: dict[str, Any]) -> list[str]:
    return [error["field"] for error in problem["errors"]]


REPEATED = {
    '{"request_text":"x","status":"failed","status":"completed"}': "status",
    '{"task_id":null,"request_text":"x","task_id":null}': "task_id",
    r'{"request_text":"x","status":"failed","st\u0061tus":"failed"}': "status",
    '{"request_text":"x","outcome":{"a":1,"b":{"c":[{},{"d":1,"d":1}]}}}': "outcome.b.c.1.d",
    '{"request_text":"x","suggestions":[{"a":1,"a":2}]}': "suggestions.0.a",
    '{"request_text":"x","other":{"":1,"":2}}': "other.",
}


@pytest.mark.parametrize("text", REPEATED)
async def test_a_member_given_twice_is_refused_and_named(client: Client, text: str) -> None:
    name = REPEATED[text]
    body = text.encode()

    one = await answered(client, body, JSON)
    many = await answered(client, b'[{"request_text": "a"},' + body + b"]", JSON)
    second = await answered(client, b'{"request_text": "a"}\n' + body, NDJSON)

    assert [(422, [name]), (422, [f"1.{name}"]), (422, [f"line 2: {name}"])] == [
        (status, fields(problem)) for status, problem in (one, many, second)
    ]
    assert "is given twice" in one[1]["detail"]


async def test_a_member_given_twice_in_a_change_or_a_filter_is_refused(client: Client) -> None:
    sent = task(status="pending")
    await answered(client, json.dumps(sent).encode(), JSON)

    twice = '{"status": "failed", "status": "completed"}'
    change = await client.patch(f"{TASKS}/{sent['task_id']}", data=twice, headers=JSON)
    asked = await client.get("/api/v1/audit/query", params={"outcome": '{"a": 1, "a": 2}'})

    assert (422, ["status"]) == (change.status, fields(await change.json()))
    assert (422, ["outcome"]) == (asked.status, fields(await asked.json()))
    shown = await (await client.get(f"{TASKS}/{sent['task_id']}")).json()
    assert shown["status"] == "pending"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "nan"])
async def test_a_constant_that_is_no_json_is_malformed_and_its_line_named(
    client: Client, constant: str
) -> None:
    bad = b'{"request_text": "a", "outcome": {"n": %b}}' % constant.encode()
    body = b'{"request_text": "a"}\n' * 2 + bad

    status, problem = await answered(client, body, NDJSON)

    assert (400, True) == (status, problem["detail"].startswith("line 3: not JSON: "))


LONG_NUMBERS = [
    "1e1000", "1E+1000", "-1e5000", "1e131071", "1e999999", "1e-1000", "1.5e1001",
    "1e99999999999999999999", "1e-99999999999999999999", "9" * 1001, "-" + "9" * 5_000,
    "0." + "1" * 1_000, "1" * 500 + "." + "1" * 501,
]  # fmt: skip
SHORT_NUMBERS = [
    "1e999", "-1e999", "1e-999", "0.001e1000", "9" * 1000, "-" + "9" * 1000, "0." + "1" * 999,
    "1" * 500 + "." + "1" * 500, "0e5000", "0.0e1000000000", "1e0000000000009", "-0",
]  # fmt: skip


@pytest.mark.parametrize("number", LONG_NUMBERS, ids=lambda number: number[:20])
async def test_a_number_too_long_when_written_out_is_refused(client: Client, number: str) -> None:
    body = b'{"request_text": "a", "outcome": {"n": [%b]}}' % number.encode()

    for sent, headers in ((body, JSON), (b"[" + body + b"]", JSON), (body, NDJSON)):
        status, problem = await answered(client, sent, headers)
        assert (422, True) == (status, "max_number_digits" in problem["detail"])


@pytest.mark.parametrize("number", SHORT_NUMBERS, ids=lambda number: number[:20])
async def test_a_number_within_the_limit_is_read_by_python_again(
    client: Client, number: str
) -> None:
    body = b'{"request_text": "a", "outcome": {"n": %b}}' % number.encode()

    status, answer = await answered(client, body, JSON)
    assert status == 201, answer
    shown = await (await client.get(f"{TASKS}/{answer['task_ids'][0]}")).text()

    assert len(str(json.loads(shown, parse_float=str)["outcome"]["n"]).strip("-")) <= 1001


async def test_what_looks_like_a_number_in_a_text_is_no_number(client: Client) -> None:
    sent = task(error_message="1e99999, " + "9" * 5_000, outcome={"n1e99999": "1e99999"})

    assert (await answered(client, json.dumps(sent).encode(), JSON))[0] == 201


async def test_a_task_that_grows_over_its_limit_is_refused(client: Client) -> None:
    grows = ",".join(["1e999"] * 1_100)
    fits = ",".join(["1e999"] * 1_000)
    body = '{{"request_text": "a", "outcome": {{"n": [{}]}}}}'

    status, problem = await answered(client, body.format(grows).encode(), NDJSON)

    assert (422, ["line 1"]) == (status, fields(problem))
    assert "when its numbers are written out" in problem["detail"]
    assert (await answered(client, body.format(fits).encode(), NDJSON))[0] == 201


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"":', "}")])
async def test_nesting_is_limited(client: Client, opened: str, closed: str) -> None:
    def body(levels: int) -> bytes:
        inside = opened * levels + "1" + closed * levels
        return f'{{"request_text": "a", "outcome": {{"a": {inside}}}}}'.encode()

    status, answer = await answered(client, body(62), JSON)
    assert status == 201
    page = await (await client.get("/api/v1/audit/query?limit=1")).json()
    assert page["tasks"][0]["task_id"] == answer["task_ids"][0]
    for levels in (63, 199, 900, 100_000):
        for headers in (JSON, NDJSON):
            status, problem = await answered(client, body(levels), headers)
            assert (422, True) == (status, "max_nesting" in problem["detail"])


async def test_many_brackets_that_are_not_deep_are_taken(client: Client) -> None:
    sent = task(outcome={"a": [[[]] * 1_000, "[" * 1_000]})

    assert (await answered(client, json.dumps(sent).encode(), JSON))[0] == 201


@pytest.mark.parametrize(
    "text",
    [r"\ud83d\ude00", r"\\ud83d", r"\\\\u0000", r"\\\ud83d\ude00", r"\u00e9", r"\\u0000"],
)
async def test_escapes_that_are_whole_characters_are_taken(client: Client, text: str) -> None:
    body = f'{{"request_text": "{text}"}}'

    status, answer = await answered(client, body.encode(), JSON)

    assert status == 201, answer
    shown = await (await client.get(f"{TASKS}/{answer['task_ids'][0]}")).json()
    assert json.loads(body)["request_text"] == shown["request_text"]


@pytest.mark.parametrize(
    "text", [r"\ud83d", r"\ude00", r"\ud83d\ud83d\ude00", r"\\ud83d\ude00", r"\ud83d\\ude00"]
)
async def test_half_a_character_is_malformed(client: Client, text: str) -> None:
    body = f'{{"request_text": "a", "outcome": {{"a": ["{text}"]}}}}'.encode()

    assert (await answered(client, body, JSON))[0] == 400


@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_a_byte_order_mark_is_passed_over_at_the_start_only(
    client: Client, headers: dict[str, str]
) -> None:
    mark = b"\xef\xbb\xbf"
    body = b'{"request_text": "a"}'

    assert (await answered(client, mark + body, headers))[0] == 201
    assert (await answered(client, mark + mark + body, headers))[0] == 400
    assert (await answered(client, body + b"\n" + mark + body, headers))[0] == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_another_encoding_is_named(client: Client, encoding: str) -> None:
    body = '{"request_text": "a"}'.encode(encoding)

    for headers in (JSON, NDJSON):
        status, problem = await answered(client, body, headers)
        assert (400, True) == (status, "send UTF-8" in problem["detail"])


@pytest.mark.parametrize("end", [",]", ",", "", "]]", "] 1", ";]", "}]"])
async def test_an_array_ends_with_its_bracket(client: Client, end: str) -> None:
    body = b'[{"request_text": "a"}' + end.encode()

    status, problem = await answered(client, body, JSON)

    assert (400, True) == (status, "not JSON" in problem["detail"])
