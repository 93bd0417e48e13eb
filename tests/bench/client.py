"""A load generator for HTTP/1.1: requests made beforehand, one protocol object a connection.

It reads of an answer its status and length, and no more, so that it takes little of the machine
that it shares with what it measures. It runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Self

import uvloop

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BODILESS = {204, 304}
_TICK_SECONDS = 0.001
_PATIENCE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and how."""

    host: str
    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    #: Requests per second, whether answers come or not; None: each connection asks again as soon
    #: as it has its answer.
    rate: float | None = None
    #: Send every request at most once; otherwise begin again at the first.
    once: bool = False
    #: So many consecutive requests go over one connection, each after the answer to the one before.
    #: Not for a given rate.
    in_order: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of a load."""

    #: From the first request to the last answer.
    seconds: float = 0.0
    #: Of each answer. At a given rate, they count from when the request was due.
    latencies: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    #: The processor time of this client.
    cpu_seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Return the answers per second."""
        return len(self.latencies) / self.seconds

    @property
    def cores(self) -> float:
        """Return how much of a core this client needed. Near 1, it measured itself."""
        return self.cpu_seconds / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Return the latency within which so many percent of the answers came."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] * 1000


class Client:
    """A process that sends loads, one after the other. Two clients send at the same time."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def send(self, load: Load, *expected: int) -> Outcome:
        """Send a load and wait for every answer.

        Raises:
            RuntimeError: an answer had another status than those expected, by default 200, or did
                not come.
        """
        return self.start(load, *expected)()

    def start(self, load: Load, *expected: int) -> Callable[[], Outcome]:
        """Begin to send a load. Return a function that waits for its end, as `send` does."""
        sent = self._pool.submit(run, load)

        def outcome() -> Outcome:
            outcome = sent.result()
            if set(outcome.statuses) != set(expected or (200,)):
                asked = load.requests[0].split(b"\r\n", 1)[0].decode()
                raise RuntimeError(f"{asked}: answers by status: {dict(outcome.statuses)}")
            return outcome

        return outcome


def request(
    target: str,
    host: str,
    *,
    method: str = "POST",
    body: bytes | None = None,
    headers: Sequence[str] = (),
) -> bytes:
    """Return a GET, or a request with a body of JSON where there is one."""
    lines = [f"{'GET' if body is None else method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def run(load: Load) -> Outcome:
    """Send a load from this process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Run(load).outcome())


class _Connection(asyncio.Protocol):
    def __init__(self, owner: _Run) -> None:
        self._owner = owner
        self._head = b""
        #: Bytes of the body to come; None: its head is not complete.
        self._left: int | None = None
        #: What has to follow the request under way over this connection.
        self.following: Iterator[bytes] = iter(())
        self._status = 0
        self._transport: Any = None
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.fail("the server closed a connection")

    def send(self, message: bytes, began: float) -> None:
        self.began = began
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._status = int(self._head[9:12])
            self._left = self._length(end) - (len(self._head) - end - 4)
            self._head = b""
        else:
            self._left -= len(data)
        if self._left == 0:
            self._left = None
            self._owner.answered(self, self._status)

    def _length(self, end: int) -> int:
        if self._status in _BODILESS:
            return 0
        found = _CONTENT_LENGTH.search(self._head, 0, end + 2)
        if found is None:
            self._owner.fail("an answer does not tell its length")
            return 0
        return int(found[1])

    def close(self) -> None:
        self._transport.close()


class _Run:
    def __init__(self, load: Load) -> None:
        self._load = load
        messages = iter(load.requests) if load.once else itertools.cycle(load.requests)
        #: The requests of one tuple follow each other over one connection.
        self._messages: Iterator[tuple[bytes, ...]] = zip(*[messages] * load.in_order, strict=False)
        self._outcome = Outcome()
        self._under_way: set[_Connection] = set()
        self._idle: list[_Connection] = []
        #: When the requests were due for which no connection was free.
        self._waiting: deque[float] = deque()
        self._sending = True
        self._deadline = 0.0
        self._last_answer = 0.0

    async def outcome(self) -> Outcome:
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        for _ in range(self._load.connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self), self._load.host, self._load.port
            )
            self._idle.append(connection)
        cpu_seconds = time.process_time()
        began = time.perf_counter()
        self._deadline = began + self._load.seconds
        self._last_answer = began
        if self._load.rate is None:
            for _ in range(self._load.connections):
                self._next(time.perf_counter())
        else:
            await self._send_at_rate(began, self._load.rate)
            self._sending = False
        self._finish_if_done()
        try:
            await asyncio.wait_for(self._done, self._load.seconds + _PATIENCE_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"{len(self._under_way)} answers did not come") from None
        self._outcome.seconds = self._last_answer - began
        self._outcome.cpu_seconds = time.process_time() - cpu_seconds
        for connection in self._idle:
            connection.close()
        return self._outcome

    async def _send_at_rate(self, began: float, rate: float) -> None:
        """Send at random moments; those due in one tick of the clock go out together."""
        chance = random.Random(1)
        due = began
        while due < self._deadline:
            now = time.perf_counter()
            if due > now:
                await asyncio.sleep(max(due - now, _TICK_SECONDS))
                now = time.perf_counter()
            while due <= now and due < self._deadline:
                # The tick is this client's; from here on, waiting is the answer's.
                if self._idle:
                    self._next(now)
                else:
                    self._waiting.append(now)
                due += chance.expovariate(rate)

    def _next(self, began: float) -> None:
        messages = next(self._messages, None)
        if messages is None:
            self._sending = False
            return
        connection = self._idle.pop()
        self._under_way.add(connection)
        connection.following = iter(messages[1:])
        connection.send(messages[0], began)

    def answered(self, connection: _Connection, status: int) -> None:
        now = self._last_answer = time.perf_counter()
        self._outcome.latencies.append(now - connection.began)
        self._outcome.statuses[status] += 1
        if (message := next(connection.following, None)) is not None:
            connection.send(message, now)
            return
        self._under_way.discard(connection)
        self._idle.append(connection)
        if self._load.rate is not None:
            if self._waiting:
                self._next(self._waiting.popleft())
        elif self._sending and now < self._deadline:
            self._next(now)
        else:
            self._sending = False
        self._finish_if_done()

    def fail(self, reason: str) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(reason))

    def _finish_if_done(self) -> None:
        idle = not self._sending and not self._under_way and not self._waiting
        if idle and not self._done.done():
            self._done.set_result(None)
