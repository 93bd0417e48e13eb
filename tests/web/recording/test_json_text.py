"""JSON text over HTTP: the service refuses what a decoder would accept or change silently."""

from __future__ import annotations

import json

import pytest

from tests.api import JSON, NDJSON, TASKS, fields, get, post, send
from tests.conftest import Client, task

pytestmark = pytest.mark.asyncio(loop_scope="module")

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

    one = await send(client, body, JSON)
    many = await send(client, b'[{"request_text": "a"},' + body + b"]", JSON)
    second = await send(client, b'{"request_text": "a"}\n' + body, NDJSON)

    assert [(422, [name]), (422, [f"1.{name}"]), (422, [f"line 2: {name}"])] == [
        (status, fields(problem)) for status, problem in (one, many, second)
    ]
    assert "is given twice" in one[1]["detail"]


async def test_a_member_given_twice_in_a_change_or_a_filter_is_refused(client: Client) -> None:
    sent = task(status="pending")
    await post(client, sent)

    twice = '{"status": "failed", "status": "completed"}'
    change = await client.patch(f"{TASKS}/{sent['task_id']}", data=twice, headers=JSON)
    asked = await client.get("/api/v1/audit/query", params={"outcome": '{"a": 1, "a": 2}'})

    assert (422, ["status"]) == (change.status, fields(await change.json()))
    assert (422, ["outcome"]) == (asked.status, fields(await asked.json()))
    shown = await get(client, sent["task_id"])
    assert shown["status"] == "pending"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "nan"])
async def test_nan_and_infinity_are_malformed_and_the_line_is_named(
    client: Client, constant: str
) -> None:
    bad = b'{"request_text": "a", "outcome": {"n": %b}}' % constant.encode()
    body = b'{"request_text": "a"}\n' * 2 + bad

    status, problem = await send(client, body, NDJSON)

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
        status, problem = await send(client, sent, headers)
        assert (422, True) == (status, "max_number_digits" in problem["detail"])


@pytest.mark.parametrize("number", SHORT_NUMBERS, ids=lambda number: number[:20])
async def test_python_can_read_a_number_within_the_limit(client: Client, number: str) -> None:
    body = b'{"request_text": "a", "outcome": {"n": %b}}' % number.encode()

    status, answer = await send(client, body, JSON)
    assert status == 201, answer
    shown = await (await client.get(f"{TASKS}/{answer['task_ids'][0]}")).text()

    assert len(str(json.loads(shown, parse_float=str)["outcome"]["n"]).strip("-")) <= 1001


async def test_digits_in_a_text_are_not_limited_as_numbers(client: Client) -> None:
    sent = task(error_message="1e99999, " + "9" * 5_000, outcome={"n1e99999": "1e99999"})

    assert (await post(client, sent))[0] == 201


async def test_a_task_that_grows_over_its_limit_is_refused(client: Client) -> None:
    grows = ",".join(["1e999"] * 1_100)
    fits = ",".join(["1e999"] * 1_000)
    body = '{{"request_text": "a", "outcome": {{"n": [{}]}}}}'

    status, problem = await send(client, body.format(grows).encode(), NDJSON)

    assert (422, ["line 1"]) == (status, fields(problem))
    assert "when its numbers are written out" in problem["detail"]
    assert (await send(client, body.format(fits).encode(), NDJSON))[0] == 201


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"":', "}")])
async def test_nesting_is_limited(client: Client, opened: str, closed: str) -> None:
    def body(levels: int) -> bytes:
        inside = opened * levels + "1" + closed * levels
        return f'{{"request_text": "a", "outcome": {{"a": {inside}}}}}'.encode()

    status, answer = await send(client, body(62), JSON)
    assert status == 201
    page = await (await client.get("/api/v1/audit/query?limit=1")).json()
    assert page["tasks"][0]["task_id"] == answer["task_ids"][0]
    for levels in (63, 199, 900, 100_000):
        for headers in (JSON, NDJSON):
            status, problem = await send(client, body(levels), headers)
            assert (422, True) == (status, "max_nesting" in problem["detail"])


async def test_many_brackets_on_few_levels_are_accepted(client: Client) -> None:
    sent = task(outcome={"a": [[[]] * 1_000, "[" * 1_000]})

    assert (await post(client, sent))[0] == 201


@pytest.mark.parametrize(
    "text",
    [r"\ud83d\ude00", r"\\ud83d", r"\\\\u0000", r"\\\ud83d\ude00", r"\u00e9", r"\\u0000"],
)
async def test_escapes_of_complete_characters_are_accepted(client: Client, text: str) -> None:
    body = f'{{"request_text": "{text}"}}'

    status, answer = await send(client, body.encode(), JSON)

    assert status == 201, answer
    shown = await get(client, answer["task_ids"][0])
    assert json.loads(body)["request_text"] == shown["request_text"]


@pytest.mark.parametrize(
    "text", [r"\ud83d", r"\ude00", r"\ud83d\ud83d\ude00", r"\\ud83d\ude00", r"\ud83d\\ude00"]
)
async def test_half_of_a_surrogate_pair_is_malformed(client: Client, text: str) -> None:
    body = f'{{"request_text": "a", "outcome": {{"a": ["{text}"]}}}}'.encode()

    assert (await send(client, body, JSON))[0] == 400


@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_a_byte_order_mark_is_accepted_only_at_the_start(
    client: Client, headers: dict[str, str]
) -> None:
    mark = b"\xef\xbb\xbf"
    body = b'{"request_text": "a"}'

    assert (await send(client, mark + body, headers))[0] == 201
    assert (await send(client, mark + mark + body, headers))[0] == 400
    assert (await send(client, body + b"\n" + mark + body, headers))[0] == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_an_encoding_other_than_utf8_is_refused(client: Client, encoding: str) -> None:
    body = '{"request_text": "a"}'.encode(encoding)

    for headers in (JSON, NDJSON):
        status, problem = await send(client, body, headers)
        assert (400, True) == (status, "send UTF-8" in problem["detail"])


@pytest.mark.parametrize("end", [",]", ",", "", "]]", "] 1", ";]", "}]"])
async def test_an_array_ends_with_its_bracket(client: Client, end: str) -> None:
    body = b'[{"request_text": "a"}' + end.encode()

    status, problem = await send(client, body, JSON)

    assert (400, True) == (status, "not JSON" in problem["detail"])
