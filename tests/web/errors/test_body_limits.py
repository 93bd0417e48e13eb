"""Limits of the size, the time and the type of a body."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from tests.api import JSON, NDJSON, TASKS
from tests.conftest import Client, task
from tests.web.errors.conftest import ONE, exchange, problem, refusal, send, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_a_body_is_accepted_up_to_the_limit(dsn: str, headers: dict[str, str]) -> None:
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


async def test_the_limit_applies_to_the_decompressed_body(dsn: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    headers = JSON | {"Content-Encoding": "gzip"}

    async with serving(dsn, max_body_bytes=100_000) as client:
        assert len(bomb) < 100_000
        assert (413, []) == await refusal(client, "POST", TASKS, data=bomb, headers=headers)


async def test_a_slow_body_gets_408(dsn: str) -> None:
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


async def test_a_change_cannot_be_ndjson(client: Client) -> None:
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
