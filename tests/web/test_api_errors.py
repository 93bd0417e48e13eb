"""Every refusal, and what is around the API: sections 5 and 6 of the contract."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from audit.errors import TaskNotFound, Unavailable
from audit.history.cursor import _LAYOUT, _checksum
from audit.history.query import AuditQuery
from audit.history.service import AuditService
from audit.postgres import embedded, migrate, statements
from audit.process.connections import Connections
from audit.settings import Settings
from audit.web.app import create_app
from audit.web.state import SERVICE
from tests.conftest import FAST, Client, ago, execute, task
from tests.conftest import _database as database
from tests.waiting import until

API: Final = "/api/v1/audit"
TASKS: Final = f"{API}/tasks"
ONE: Final = f"{TASKS}/{uuid.UUID(int=1, version=4)}"
JSON: Final = {"Content-Type": "application/json"}
NDJSON: Final = {"Content-Type": "application/x-ndjson"}
Request = tuple[str, str, dict[str, Any]]
#: What only we, our driver or PostgreSQL would say.
INSIDE = re.compile(
    r"\b(SELECT|INSERT|UPDATE|FROM|asyncpg|psycopg|Traceback|SQLSTATE|relation|constraint|syntax)\b"
    r"|\.py\b|postgres(ql)?:|Error\b|task_keys|tasks_|secret"
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dsn(postgres: str, template: str) -> Iterator[str]:
    """One database for all: what is refused changes nothing."""
    yield from database(postgres, template)


@asynccontextmanager
async def serving(dsn: str, **settings: Any) -> AsyncIterator[Client]:
    app = create_app(Settings(**{"pool_size": 1, **settings}), dsn)
    async with TestClient[web.Request, web.Application](TestServer(app)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(dsn: str) -> AsyncIterator[Client]:
    async with serving(dsn, pool_size=4) as client:
        yield client


async def send(client: Client, method: str, path: str, **request: Any) -> aiohttp.ClientResponse:
    """Send the path as it is written here."""
    root = str(client.make_url("/")).rstrip("/")
    return await client.session.request(method, URL(root + path, encoded=True), **request)


async def problem(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The body of a refusal, which is always a problem that tells nothing of our inside."""
    assert answer.status >= 400, await answer.text()
    body: dict[str, Any] = await answer.json(content_type="application/problem+json")
    assert {"type", "title", "status", "detail", "instance"} <= {*body} <= {
        "type", "title", "status", "detail", "instance", "errors"
    }  # fmt: skip
    assert answer.status == body["status"]
    assert answer.headers["X-Request-ID"] == body["instance"]
    assert body["title"]
    assert body["detail"]
    assert not INSIDE.search(await answer.text()), await answer.text()
    return body


async def refusal(client: Client, method: str, path: str, **request: Any) -> tuple[int, list[str]]:
    """The status of a refusal, and the fields that it names."""
    body = await problem(await send(client, method, path, **request))
    return body["status"], [error["field"] for error in body.get("errors", [])]


def asked(**params: str) -> str:
    return "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in params.items())


# --- the shape of a problem -----------------------------------------------------------------------

REFUSALS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "broken JSON": (400, "POST", TASKS, {"data": b"{", "headers": JSON}),
    "broken URL": (400, "GET", f"{API}/query?service=%zz", {}),
    "no task": (404, "GET", ONE, {}),
    "no task to change": (404, "PATCH", ONE, {"json": {}}),
    "no route": (404, "GET", "/nowhere", {}),
    "no method": (405, "DELETE", ONE, {}),
    "a fixed field": (409, "PATCH", ONE, {"json": {"request_text": "x"}}),
    "no content type": (415, "POST", TASKS, {"data": b"{}"}),
    "a parameter": (422, "GET", f"{API}/query?limit=0", {}),
    "a member": (422, "POST", TASKS, {"json": {}}),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_every_refusal_is_a_problem(client: Client, case: str) -> None:
    status, method, path, request = REFUSALS[case]

    body = await problem(await send(client, method, path, **request))

    assert status == body["status"]
    assert (status == 422) == bool(body.get("errors"))


async def test_a_kind_of_problem_has_one_type_and_title(client: Client) -> None:
    one = await problem(await send(client, "GET", f"{API}/query?limit=0"))
    two = await problem(await send(client, "GET", f"{API}/failures?days=x"))

    assert (one["type"], one["title"]) == (two["type"], two["title"])
    assert one["detail"] != two["detail"]
    assert one["instance"] != two["instance"]


ROUTES: Final = ["/healthz", f"{API}/query", f"{API}/query?limit=0", ONE, "/nowhere"]


@pytest.mark.parametrize(
    "request_id", ["a", "A.b_c~d-9", str(uuid.UUID(int=2, version=4)), "x" * 128]
)
async def test_a_request_keeps_its_own_valid_id(client: Client, request_id: str) -> None:
    headers = {"X-Request-ID": request_id}

    answers = [await send(client, "GET", path, headers=headers) for path in ROUTES]

    assert [request_id] * len(ROUTES) == [answer.headers["X-Request-ID"] for answer in answers]


@pytest.mark.parametrize(
    "request_id", ["", "x" * 129, "a b", "a,b", '"a"', "<a>", "ä", "a;b", "٣", "a/b", "{}"]
)
async def test_another_id_is_replaced(client: Client, request_id: str) -> None:
    headers = {"X-Request-ID": request_id}

    answers = [await send(client, "GET", path, headers=headers) for path in ROUTES]

    given = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in given)
    assert len({*given}) == len(ROUTES)


# --- 404, 405 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/api", API, f"{API}/", f"{API}/failures/", f"{API}/Query", f"{API}/by-service",
     f"{API}/by-service/", f"{API}/by-service/a/b", f"{TASKS}/", f"{ONE}/", f"{API}//query",
     "//", "/%00", "/%zz", "/%FF", "/healthz/x", "/api/v2/audit/query", "/etc/passwd",
     "/docs/../../etc/passwd", f"{API}/query;a=1"],
)  # fmt: skip
async def test_an_unknown_route_is_not_found(client: Client, path: str) -> None:
    assert (404, []) == await refusal(client, "GET", path)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (f"{API}/failures", "GET, HEAD, OPTIONS"),
        (f"{API}/by-service/a", "GET, HEAD, OPTIONS"),
        (f"{API}/query", "GET, HEAD, OPTIONS"),
        (TASKS, "OPTIONS, POST"),
        (ONE, "GET, HEAD, OPTIONS, PATCH"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_a_route_lacks_is_refused_with_those_it_has(
    client: Client, path: str, allowed: str
) -> None:
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - {*allowed.split(", ")}

    answers = [await send(client, method, path) for method in sorted(methods)]

    assert [(405, allowed)] * len(methods) == [
        ((await problem(answer))["status"], answer.headers["Allow"]) for answer in answers
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{API}/failures", 200),
        (f"{API}/by-service/a%2Fb", 200),
        (f"{API}/query?limit=1", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        (f"{API}/query?limit=0", 422),
        (ONE, 404),
        ("/nowhere", 404),
        (TASKS, 405),
    ],
)
async def test_head_answers_like_get_without_the_body(
    client: Client, path: str, status: int
) -> None:
    head, get = [await send(client, method, path) for method in ("HEAD", "GET")]

    assert (status, status) == (head.status, get.status)
    assert await head.read() == b""
    assert get.headers["Content-Type"] == head.headers["Content-Type"]


# --- 400: what cannot be read ---------------------------------------------------------------------

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
async def test_a_url_that_is_no_text_is_malformed(
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
async def test_json_that_is_none_is_malformed(client: Client, case: str) -> None:
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


async def test_a_line_of_ndjson_that_is_none_is_named(client: Client) -> None:
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


async def test_a_body_that_is_not_what_its_coding_says_is_malformed(client: Client) -> None:
    headers = JSON | {"Content-Encoding": "gzip", "Connection": "close"}
    cut = gzip.compress(json.dumps([task()] * 100).encode())[:-20]

    answers = [await send(client, "POST", TASKS, data=b, headers=headers) for b in (b"abc", cut)]

    assert [400, 400] == [(await problem(answer))["status"] for answer in answers]


# --- what is no HTTP ------------------------------------------------------------------------------

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


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def port(client: Client) -> AsyncIterator[int]:
    """A port on which the application accepts connections as a worker does."""
    runner = client.server.runner
    assert runner is not None
    assert runner.server is not None
    connections = Connections(
        runner.server,
        lambda _: None,
        most=10,
        answer_seconds=10,
        idle_seconds=10,
        most_unread_bytes=2**20,
    )
    loop = asyncio.get_running_loop()
    async with await loop.create_server(connections, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def exchange(port: int, *sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send parts of a request on a new connection; return the status, the headers and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize("case", GARBAGE)
async def test_what_is_no_request_is_refused_as_a_problem_that_echoes_nothing(
    port: int, case: str
) -> None:
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


async def test_a_client_may_wait_to_be_told_to_continue(client: Client) -> None:
    answer = await client.post(TASKS, json=task(), expect100=True)

    assert answer.status == 201


# --- 408, 413, 415 --------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_a_body_is_taken_up_to_the_limit(dsn: str, headers: dict[str, str]) -> None:
    def body(size: int) -> bytes:
        return b'{"request_text": "'.ljust(size - 2, b"a") + b'"}'

    async def streamed(size: int) -> AsyncIterator[bytes]:
        yield body(size)[:500]
        yield body(size)[500:]

    async with serving(dsn, max_body_bytes=2_000) as client:
        expected = {2_000: 201, 2_001: 413}
        actual = {
            size: (await client.post(TASKS, data=body(size), headers=headers)).status
            for size in expected
        }
        also = {
            size: (await client.post(TASKS, data=streamed(size), headers=headers)).status
            for size in expected
        }

    assert (expected, expected) == (actual, also)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_body_over_the_limit_is_refused_before_it_is_sent(port: int, method: str) -> None:
    path = ONE if method == "PATCH" else TASKS
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"

    status, _, body = await exchange(port, head.encode() + b"Content-Length: 99999999999\r\n\r\n")

    assert (413, 413) == (status, json.loads(body)["status"])


async def test_a_body_is_measured_as_it_unpacks(dsn: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    headers = JSON | {"Content-Encoding": "gzip"}

    async with serving(dsn, max_body_bytes=100_000) as client:
        assert len(bomb) < 100_000
        assert (413, []) == await refusal(client, "POST", TASKS, data=bomb, headers=headers)


async def test_a_body_that_does_not_arrive_in_time_is_refused(dsn: str) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for byte in b'{"request_text": "a"}':
            yield bytes([byte])
            await asyncio.sleep(0.05)

    async with serving(dsn, request_timeout_seconds=0.2) as client:
        for method, path, headers in [
            ("POST", TASKS, JSON),
            ("POST", TASKS, NDJSON),
            ("PATCH", ONE, JSON),
        ]:
            assert (408, []) == await refusal(client, method, path, data=slow(), headers=headers)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "text/json", "application/jsonx", "application/ndjson",
     "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "json", "*/*",
     "application/json, text/plain", "ä/ö"],
)  # fmt: skip
async def test_another_content_type_is_refused(client: Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    answers = [
        await send(client, method, path, data=b'{"request_text": "a"}', headers=headers,
                   skip_auto_headers=["Content-Type"])
        for method, path in (("POST", TASKS), ("PATCH", ONE))
    ]  # fmt: skip

    assert [415, 415] == [(await problem(answer))["status"] for answer in answers]


async def test_a_change_is_no_ndjson(client: Client) -> None:
    assert (415, []) == await refusal(client, "PATCH", ONE, data=b"{}", headers=NDJSON)


@pytest.mark.parametrize("coding", ["zstd", "compress", "gzip, gzip", "x"])
async def test_another_content_encoding_is_refused(client: Client, coding: str) -> None:
    headers = JSON | {"Content-Encoding": coding}

    status, _ = await refusal(client, "POST", TASKS, data=b'{"request_text": "a"}', headers=headers)

    assert status in (400, 415)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"]
)
async def test_a_content_type_may_have_parameters(client: Client, content_type: str) -> None:
    data, headers = json.dumps(task()), {"Content-Type": content_type}

    assert (await client.post(TASKS, data=data, headers=headers)).status == 201


# --- 422: parameters ------------------------------------------------------------------------------

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
async def test_parameters_are_judged_alone_and_together(
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


async def test_every_parameter_that_is_wrong_is_named_at_once_with_what_is_allowed(
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
        "intent": "1 character",
        "nope": "created_by, cursor, days, intent, last, limit, offset, outcome, project_id,"
        " service, since, status, total, until",
    }
    assert {*allowed} == {*told}
    assert {} == {name: told[name] for name in allowed if allowed[name] not in told[name]}


# --- 422: cursors ---------------------------------------------------------------------------------


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
async def test_a_cursor_is_of_its_filters(
    client: Client, cursor: str, path: str, status: int
) -> None:
    assert status == (await send(client, "GET", f"{API}{path}&cursor={cursor}")).status


@pytest.mark.parametrize(
    "microseconds",
    [(2**63 - 1, 0), (-(2**63), 0), (0, 2**63 - 1), (LAST_MICROSECOND, LAST_MICROSECOND)],
)
async def test_a_cursor_that_someone_made_up_is_refused(
    client: Client, cursor: str, microseconds: tuple[int, int]
) -> None:
    payload = _LAYOUT.pack(1, *microseconds, uuid.uuid4().bytes, 5)
    forged = payload + _checksum(payload, AuditQuery().fingerprint)
    token = base64.urlsafe_b64encode(forged).decode().rstrip("=")

    assert (422, ["cursor"]) == await refusal(client, "GET", f"{API}/query?limit=1&cursor={token}")


# --- 503, 504: too much, too slow, or no database --------------------------------------------


@contextmanager
def held(dsn: str) -> Iterator[None]:
    """Everyone else waits for the tables meanwhile."""
    with psycopg.connect(dsn) as connection:
        connection.execute("LOCK TABLE tasks, task_keys IN ACCESS EXCLUSIVE MODE")
        yield


async def test_a_request_whose_turn_does_not_come_is_refused_in_time(dsn: str) -> None:
    async with serving(dsn, queue_seconds=0.2) as client:
        await send(client, "GET", ONE)
        with held(dsn):
            first = asyncio.create_task(send(client, "GET", ONE))
            await until(lambda: execute(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"))
            second = await send(client, "GET", ONE)
            assert (await problem(second))["status"] == 503
            assert int(second.headers["Retry-After"]) >= 1
            assert not first.done()

        assert (await first).status == 404


async def test_a_statement_that_takes_too_long_is_stopped(dsn: str) -> None:
    sent = task(status="pending")
    async with serving(dsn, statement_timeout_seconds=1) as client:
        await client.post(TASKS, json=sent)
        path = f"{TASKS}/{sent['task_id']}"
        with held(dsn):
            expected: dict[tuple[str, str], dict[str, Any]] = {
                ("GET", f"{API}/failures"): {}, ("GET", f"{API}/query"): {}, ("GET", path): {},
                ("POST", TASKS): {"json": task()}, ("PATCH", path): {"json": {"status": "failed"}},
            }  # fmt: skip
            actual = {key: await refusal(client, *key, **expected[key]) for key in expected}

        assert dict.fromkeys(expected, (504, [])) == actual
        assert (await (await client.get(path)).json())["status"] == "pending"


EVERY_ROUTE: Final[list[Request]] = [
    ("GET", f"{API}/failures", {}),
    ("GET", f"{API}/by-service/a", {}),
    ("GET", f"{API}/query", {}),
    ("GET", ONE, {}),
    ("POST", TASKS, {"json": {"request_text": "a"}}),
    ("PATCH", ONE, {"json": {}}),
    ("GET", "/readyz", {}),
]


async def unavailable(client: Client) -> None:
    """Every route that needs the database says 503, and when to come again; the process lives."""
    answers = [await send(client, method, path, **body) for method, path, body in EVERY_ROUTE]

    assert [503] * len(EVERY_ROUTE) == [(await problem(answer))["status"] for answer in answers]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert (await send(client, "GET", "/healthz")).status == 200


async def test_a_database_that_stops_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    with embedded.running(tmp_path, options=FAST) as dsn:
        migrate.apply(dsn)
        running = serving(dsn, pool_size=3)
        client = await running.__aenter__()
        assert (await client.post(TASKS, json={"request_text": "a"})).status == 201
    try:
        await unavailable(client)
        with embedded.running(tmp_path, options=FAST):
            answers = [await send(client, method, path, **b) for method, path, b in EVERY_ROUTE]
            assert [200, 200, 200, 404, 201, 404, 200] == [answer.status for answer in answers]
            assert (await (await client.get(f"{API}/query")).json())["total"] == 2
    finally:
        await running.__aexit__(None, None, None)


async def test_a_database_that_is_not_migrated_is_not_ready(empty_dsn: str) -> None:
    async with serving(empty_dsn) as client:
        await unavailable(client)
        body = await problem(await send(client, "GET", "/readyz"))
        assert "0001_tasks, 0002_partitions, 0003_guards" in body["detail"]

        migrate.apply(empty_dsn, "0002_partitions")
        body = await problem(await send(client, "GET", "/readyz"))
        assert "lacks migrations: 0003_guards" in body["detail"]

        migrate.apply(empty_dsn)
        assert (await send(client, "GET", "/readyz")).status == 200


async def test_a_database_that_only_reads_refuses_writes_only(postgres: str, template: str) -> None:
    for dsn in database(postgres, template):
        name = execute(dsn, "SELECT current_database()")[0][0]
        execute(dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        async with serving(dsn) as client:
            answers = [await send(client, method, path, **b) for method, path, b in EVERY_ROUTE]

    assert [200, 200, 200, 404, 503, 503, 200] == [answer.status for answer in answers]


async def test_sessions_that_end_cost_no_more_than_a_503(client: Client, dsn: str) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'task-audit'"
    )
    statuses = set()
    for _ in range(10):
        answering = [asyncio.create_task(send(client, "GET", f"{API}/query")) for _ in range(8)]
        await asyncio.sleep(0.002)
        await asyncio.to_thread(execute, dsn, kill)
        statuses |= {(await answer).status for answer in answering}

    assert statuses <= {200, 503}
    async with asyncio.timeout(60):
        while (await send(client, "GET", f"{API}/query")).status == 503:
            pass
    assert (await send(client, "GET", f"{API}/query")).status == 200


async def test_a_session_found_ended_is_a_503_at_whatever_moment(dsn: str) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'task-audit'"
    )
    async with serving(dsn) as client:
        for turns in range(8):
            with pytest.raises(TaskNotFound):
                await client.app[SERVICE].get_task(uuid.uuid4())
            execute(dsn, kill)
            time.sleep(0.05)  # noqa: ASYNC251 - the loop must not hear of it yet
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises((TaskNotFound, Unavailable)):
                await client.app[SERVICE].get_task(uuid.uuid4())


# --- 500 ------------------------------------------------------------------------------------------


async def test_what_nobody_expected_tells_nothing_and_is_logged(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret of postgresql://audit:password@host")

    monkeypatch.setattr(AuditService, "get_task", fail)
    body = await problem(await send(client, "GET", ONE))

    assert body["status"] == 500
    assert "secret" in caplog.text
    assert body["instance"] in caplog.text


async def test_what_postgresql_says_stays_inside(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(statements, "GET_TASK", "SELEC secret FROM tasks WHERE $1")

    assert (await problem(await send(client, "GET", ONE)))["status"] == 500


# --- health ---------------------------------------------------------------------------------------


async def test_health_is_told_in_json(client: Client) -> None:
    for path, told in {"/healthz": {"status": "ok"}, "/readyz": {"status": "ready"}}.items():
        answer = await send(client, "GET", path)

        assert (200, told) == (answer.status, await answer.json())
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])


# --- nothing is a 500 -----------------------------------------------------------------------------

NASTY: Final = [
    "", " ", "0", "-1", "1e9", "9" * 19, "9" * 400, "NaN", "null", "true", "[]", "{}", "[{}]", "'",
    '"', "\\", "\\u0000", "\n", "\r\n", "\x1b[31m", "\x7f", "%", "%25", "%s", "{0}", "${7*7}", ".",
    "..", "../..", "/", "a/b", "//", "?", "#", "&", ";", "=", "+", "*", "$1", "$$", "--", "/*",
    "'; DROP TABLE x", "' OR 1=1 --", "{a,b}", "(1,2)", "a" * 255, "a" * 256, "ß" * 300, "🚀", "٣",
    "e\u0301", "\u202e", "\ufeff", "\ufffe", "\U0010ffff", "İ", "2026-01-01T00:00:00Z", "infinity",
    "0001-01-01T00:00:00Z", "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", '{"a": 1e999}', "failed",
    '{"": {"": [[[[]]]]}}', "pending",
]  # fmt: skip
PARAMETERS: Final = [*REFUSED, "status", "task_id"]
MEMBERS: Final[list[Any]] = [
    None, True, 0, -1, 1.5, 10**30, 1e308, "", " ", "a", "ß" * 300, "🚀" * 66_000, "\u202e",
    "{}", "[]", "infinity", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", [], [[]], [None], [""],
    ["a", "a"], [["a"], ["b"]], ["a"] * 101, {}, {"": ""}, {"action_type": 1}, {"action_type": {}},
    {"action_type": "a" * 10_000}, {"action_type": ""}, {"a": "b" * 100_000}, {"k" * 10_000: None},
    {"a": [[[[[[[[{}]]]]]]]]}, "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11", "pending", "failed",
]  # fmt: skip


async def failures(client: Client, requests: list[Request]) -> list[str]:
    """Those of the requests that are answered with 500 or more."""
    return [
        f"{method} {path} {str(request)[:200]}"
        for method, path, request in requests
        if (await send(client, method, path, **request)).status >= 500
    ]


@pytest.mark.parametrize("route", ["/query", "/by-service/a"])
async def test_no_parameter_makes_a_failure(client: Client, route: str) -> None:
    requests: list[Request] = [
        ("GET", f"{API}{route}?{asked(**{name: value})}", {})
        for name in PARAMETERS
        for value in NASTY
    ]

    assert [] == await failures(client, requests)


async def test_no_path_makes_a_failure(client: Client) -> None:
    requests: list[Request] = [
        (method, f"{API}/{route}/{quote(value, safe=safe)}", {})
        for method, route in (("GET", "by-service"), ("GET", "tasks"), ("PATCH", "tasks"))
        for value in NASTY
        for safe in ("", "/.;=+&$'()*!,@:~")
    ]

    assert [] == await failures(client, requests)


async def test_no_member_makes_a_failure(client: Client) -> None:
    requests: list[Request] = [
        ("POST", TASKS, {"json": task(**{name: value})})
        for name in ("task_id", "project_id", "request_text", "created_by", "status", "created_at",
                     "completed_at", "services_touched", "outcome", "suggestions", "error_message",
                     "actual_resources", "intent", "", "a.b", "0")
        for value in MEMBERS
    ]  # fmt: skip
    requests += [("POST", TASKS, {"json": value}) for value in MEMBERS]

    assert [] == await failures(client, requests)


async def test_no_change_makes_a_failure(client: Client) -> None:
    waiting = task(status="pending")
    await client.post(TASKS, json=waiting)
    requests: list[Request] = [
        ("PATCH", f"{TASKS}/{waiting['task_id']}", {"json": {name: value}})
        for name in ("approved_at", "services_touched", "outcome", "suggestions", "error_message",
                     "actual_resources", "intent", "task_id", "", "status")
        for value in MEMBERS
    ]  # fmt: skip

    assert [] == await failures(client, requests)
