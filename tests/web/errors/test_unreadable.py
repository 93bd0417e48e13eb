"""Requests that cannot be read: broken URLs, broken JSON, and bytes that are not HTTP."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.api import API, JSON, NDJSON, TASKS
from tests.conftest import Client, task
from tests.web.errors.conftest import ONE, asked, exchange, problem, refusal, send

pytestmark = pytest.mark.asyncio(loop_scope="module")


BROKEN_URL = ["%", "%zz", "%4", "a%", "%4g", "%u0041", "%FF", "%C0%80", "%C3", "%ED%A0%80",
              "%F5%80%80%80", "%00", "a%00b"]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN_URL)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/failures?service={{}}"),
        ("GET", f"{API}/query?limit=1&{{}}=1"),
        ("GET", f"{API}/by-service/{{}}"),
        ("GET", f"{API}/by-service/a?intent={{}}"),
        ("GET", f"{TASKS}/{{}}"),
        ("PATCH", f"{TASKS}/{{}}"),
        ("PATCH", f"{ONE}?{{}}"),
        ("POST", f"{TASKS}?a={{}}"),
    ],
)
async def test_a_url_that_is_not_valid_text_is_malformed(
    client: Client, method: str, path: str, text: str
) -> None:
    assert (400, []) == await refusal(client, method, path.format(text))


BROKEN_JSON = {
    "nothing": b"",
    "cut short": b'{"request_text": "a"',
    "two values": b'{"request_text": "a"} {"request_text": "b"}',
    "a comma too many": b'{"request_text": "a",}',
    "quotes of Python": b"{'request_text': 'a'}",
    "a byte order mark within": b' \xef\xbb\xbf{"request_text": "a"}',
    "UTF-16": '{"request_text": "a"}'.encode("utf-16"),
    "no UTF-8": b'{"request_text": "\xff"}',
    "an overlong form": b'{"request_text": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"request_text": "\xed\xa0\x80"}',
    "half a surrogate pair": b'{"request_text": "\\ud800"}',
    "half a pair in a nested key": b'{"request_text": "a", "outcome": {"\\udc00": 1}}',
    "a control character": b'{"request_text": "a\tb"}',
    "NUL": b'{"request_text": "a\x00"}',
    "NUL escaped": b'{"request_text": "a\\u0000"}',
    "NUL after a backslash": b'{"request_text": "a\\\\\\u0000"}',
    "NUL in a nested value": b'{"request_text": "a", "outcome": {"a": ["\\u0000"]}}',
    "NUL in a nested key": b'{"request_text": "a", "outcome": {"a": {"\\u0000": 1}}}',
    "NUL in an unknown member": b'{"request_text": "a", "\\u0000": 1}',
    "NaN": b'{"request_text": "a", "outcome": {"a": NaN}}',
    "infinity": b'{"request_text": "a", "suggestions": [-Infinity]}',
    "a leading zero": b'{"request_text": "a", "outcome": {"a": 01}}',
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_JSON)
async def test_invalid_json_is_malformed(client: Client, case: str) -> None:
    text = BROKEN_JSON[case]
    change = text.replace(b'"request_text": "a", ', b"").replace(b"request_text", b"error_message")
    waiting = task(status="pending")
    await client.post(TASKS, json=waiting)
    one_of_two = b'{"request_text": "a"}\n' + (text or b"{")

    statuses = [
        (await refusal(client, "POST", TASKS, data=text, headers=JSON))[0],
        (await refusal(client, "POST", TASKS, data=b"[" + text + b"]", headers=JSON))[0],
        (await refusal(client, "POST", TASKS, data=one_of_two, headers=NDJSON))[0],
        (await refusal(client, "PATCH", f"{TASKS}/{waiting['task_id']}", data=change,
                       headers=JSON))[0],
    ]  # fmt: skip

    assert [400, 422 if case == "nothing" else 400, 400, 400] == statuses


async def test_an_invalid_line_of_ndjson_is_named(client: Client) -> None:
    body = b'{"request_text": "a"}\n\n{"request_text": "a"\n'

    detail = (await problem(await client.post(TASKS, data=body, headers=NDJSON)))["detail"]

    assert detail.startswith("line 3: not JSON")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("{", 400), ("", 400), ("{'a': 1}", 400), ('{"a": "\\u0000"}', 400), ('{"\\ud800": 1}', 400),
     ('{"a": NaN}', 400), ("[" * 2_000, 422), ('{"a": 1e200000}', 422), ("[]", 422), ("1", 422),
     ('"a"', 422), ("null", 422), ("{}", 200), ('{"a": "\\\\u0000"}', 200)],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
async def test_outcome_is_a_json_object(client: Client, outcome: str, status: int) -> None:
    answer = await send(client, "GET", f"{API}/query?{asked(outcome=outcome)}")

    assert status == answer.status, await answer.text()
    if status != 200:
        await problem(answer)


async def test_a_body_that_does_not_match_its_content_encoding_is_malformed(client: Client) -> None:
    headers = JSON | {"Content-Encoding": "gzip", "Connection": "close"}
    cut = gzip.compress(json.dumps([task()] * 100).encode())[:-20]

    answers = [await send(client, "POST", TASKS, data=b, headers=headers) for b in (b"abc", cut)]

    assert [400, 400] == [(await problem(answer))["status"] for answer in answers]


HEAD_OF_POST = b"POST /api/v1/audit/tasks HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "words": b"hello there\r\n\r\n",
    "no such method": b"BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bytes in the path": b"GET /api/v1/audit/by-service/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes in the query": b"GET /api/v1/audit/query?service=\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the path": b"GET /api/v1/audit/by-service/\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": HEAD_OF_POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length below zero": HEAD_OF_POST + b"Content-Length: -2\r\n\r\n{}",
    "length and chunks": HEAD_OF_POST
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "a chunk of no size": HEAD_OF_POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a later chunk of no size": HEAD_OF_POST
    + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n}\r\n0\r\n\r\n",
    "a coding that is not there": HEAD_OF_POST
    + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
}  # fmt: skip


@pytest.mark.parametrize("case", GARBAGE)
async def test_invalid_http_gets_a_problem_that_does_not_repeat_it(port: int, case: str) -> None:
    status, headers, body = await exchange(port, GARBAGE[case])

    shown = json.loads(body)
    expected = 415 if case == "a coding that is not there" else 400
    assert (expected, "application/problem+json") == (status, headers["content-type"])
    assert (expected, headers["x-request-id"]) == (shown["status"], shown["instance"])
    assert len(body) < 300


@pytest.mark.parametrize("path", ["/api/v1/audit/tasks", "/nowhere"])
async def test_an_unknown_expectation_is_refused_with_a_problem(port: int, path: str) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: b\r\nExpect: miracles\r\n\r\n"
    status, headers, body = await exchange(port, request.encode())

    assert (417, "application/problem+json", "b") == (
        status,
        headers["content-type"],
        headers["x-request-id"],
    )
    assert 417 == json.loads(body)["status"]
    assert b"miracles" not in body


async def test_a_client_can_wait_for_100_continue(client: Client) -> None:
    answer = await client.post(TASKS, json=task(), expect100=True)

    assert answer.status == 201
