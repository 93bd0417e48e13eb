"""Bodies that take long to parse do not delay other requests, and memory is bounded."""

from __future__ import annotations

import asyncio
import gc
import gzip
import http.client
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient

from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client
from tests.inprocess import Server

MEGABYTE = 1024 * 1024
NDJSON = "application/x-ndjson"
JSON = "application/json"
SLOW_SECONDS = 0.05
#: The machine may be busy with other work: some slow polls are not the parser's.
MOST_SLOW_POLLS = 3
MOST_SLOW_SHARE = 0.15
#: The parser has stopped the event loop if this long passes.
STOPPED_SECONDS = 1.5


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    """A service that expands a body as far as gzip can, so that what follows is tried too."""
    settings = Settings(pool_size=2, max_expansion=2_000)
    async with TestClient(Server(create_app(settings, dsn))) as client:
        yield client


def one(value: str, size: int = MEGABYTE - 100) -> bytes:
    """A task of that size, full of one value."""
    values = ",".join([value] * ((size - 60) // (len(value.encode()) + 1)))
    return f'{{"request_text": "a", "outcome": {{"a": [{values}]}}}}'.encode()


def members(size: int) -> bytes:
    return json.dumps({"request_text": "a", "outcome": {f"{n:x}": 1 for n in range(size)}}).encode()


BODIES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "32 MB of line feeds": lambda: (NDJSON, b"\n" * 32 * MEGABYTE),
    "32 MB of spaces": lambda: (JSON, b" " * 32 * MEGABYTE),
    "1.6 million tiny tasks": lambda: (NDJSON, b'{"request_text":"a"}\n' * 1_590_000),
    "as many that are none": lambda: (NDJSON, b"{}\n" * 1_600_000),
    "as many in an array": lambda: (JSON, b"[" + b'{"request_text":"a"},' * 1_500_000 + b"{}]"),
    "100,000 lines with errors": lambda: (NDJSON, b'{"a":1,"status":1}\n' * 100_000),
    "unknown members": lambda: (JSON, json.dumps(dict.fromkeys(map(str, range(70_000)))).encode()),
    "a long line": lambda: (NDJSON, one("[1]", 31 * MEGABYTE)),
    "a long element": lambda: (JSON, b"[" + one("[1]", 31 * MEGABYTE) + b"]"),
    "a long text": lambda: (JSON, b'[{"request_text": "' + b"a" * 31 * MEGABYTE + b'"}]'),
    "many large elements": lambda: (JSON, b"[" + b",".join([one("[]")] * 30) + b",{}]"),
    "empty arrays": lambda: (NDJSON, one("[]")),
    "empty objects": lambda: (NDJSON, one("{}")),
    "small objects": lambda: (NDJSON, one('{"a":1}')),
    "small arrays": lambda: (NDJSON, one("[1]")),
    "ones": lambda: (NDJSON, one("1")),
    "fractions": lambda: (NDJSON, one("1.5")),
    "exponents": lambda: (NDJSON, one("1e0")),
    "growing numbers": lambda: (NDJSON, one("1e999")),
    "long numbers": lambda: (NDJSON, one("9" * 999)),
    "empty texts": lambda: (NDJSON, one('""')),
    "escapes": lambda: (NDJSON, one(r'"\ud83d\ude00"')),
    "backslashes": lambda: (NDJSON, one('"' + "\\" * 1_000 + '"')),
    "characters of four bytes": lambda: (NDJSON, one('"🚀"')),
    "names": lambda: (NDJSON, members(90_000)),
    "levels": lambda: (NDJSON, b'{"request_text": ' + b"[" * (MEGABYTE - 100)),
    "levels by level": lambda: (NDJSON, one("[" * 61 + "]" * 61)),
    "a member twice at the end": lambda: (NDJSON, one("{}")[:-3] + b',{"a":1,"a":2}]}}'),
    "names of services": lambda: (
        NDJSON, b'{"request_text": "a", "services_touched": [%b]}' % b",".join([b"1"] * 500_000)
    ),
    "UTF-16": lambda: (NDJSON, ("\n" * 15 * MEGABYTE).encode("utf-16")),
}  # fmt: skip


def send(client: Client, content_type: str, body: bytes, coding: str) -> tuple[int, int]:
    """Post a body from a thread; return the status and the size of the answer."""
    connection = http.client.HTTPConnection(client.host, client.port or 0, timeout=300)
    headers = {"Content-Type": content_type, "Content-Encoding": coding}
    try:
        connection.request("POST", "/api/v1/audit/tasks", body, headers)
        answer = connection.getresponse()
        return answer.status, len(answer.read())
    finally:
        connection.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def poll(client: Client, until: asyncio.Future[tuple[int, int]]) -> tuple[list[float], int]:
    """Ask /healthz every 10 ms; return the seconds that each took, and the peak of memory."""
    took: list[float] = []
    peak = 0
    while not until.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.01)
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        took.append(time.perf_counter() - begun - 0.01)
        peak = max(peak, resident_bytes())
    return took, peak


async def usual(client: Client) -> float:
    """How long the slowest of thirty polls takes while nothing is parsed."""
    waiting: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.5, waiting.set_result, (0, 0))
    took, _ = await poll(client, waiting)
    return max(took)


@dataclass(frozen=True)
class Sent:
    """What came of a body, and of polls while it was parsed."""

    status: int
    response_bytes: int
    memory_bytes: int
    polls: list[float]
    slowest_otherwise: float

    @property
    def slow_polls(self) -> list[float]:
        return sorted(s for s in self.polls if s > self.slowest_otherwise + SLOW_SECONDS)

    @property
    def is_smooth(self) -> bool:
        most = max(MOST_SLOW_POLLS, MOST_SLOW_SHARE * len(self.polls))
        return len(self.slow_polls) <= most and max(self.polls) < STOPPED_SECONDS


async def send_and_poll(client: Client, content_type: str, body: bytes, coding: str) -> Sent:
    """Send a body up to three times, since another process may take the time that polls need."""
    for _ in range(3):
        gc.collect()
        otherwise = await usual(client)
        before = resident_bytes()
        sending = asyncio.ensure_future(asyncio.to_thread(send, client, content_type, body, coding))
        polls, peak = await poll(client, sending)
        sent = Sent(*await sending, peak - before, polls, otherwise)
        if sent.is_smooth:
            break
    return sent


@pytest.mark.parametrize(
    ("case", "coding"),
    [(case, "identity") for case in BODIES] + [(case, "gzip") for case in list(BODIES)[:6]],
)
async def test_other_requests_are_answered_while_a_body_is_parsed(
    client: Client, case: str, coding: str
) -> None:
    content_type, body = BODIES[case]()
    if coding == "gzip":
        body = gzip.compress(body, 6)

    sent = await send_and_poll(client, content_type, body, coding)

    assert sent.status in (201, 400, 413, 422)
    assert sent.response_bytes < 5_000
    assert sent.is_smooth, sent.slow_polls
    assert sent.memory_bytes < 400 * MEGABYTE


async def test_many_empty_gzip_members_do_not_delay_other_requests(client: Client) -> None:
    sent = await send_and_poll(client, NDJSON, gzip.compress(b"") * 1_000_000, "gzip")

    assert sent.status == 413
    assert sent.is_smooth, sent.slow_polls
