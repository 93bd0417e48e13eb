"""Clients that ask and record all the time, and what came of each request."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Self
from urllib.parse import parse_qs, urlsplit

import aiohttp

from tests.conftest import execute
from tests.processes import get, serving

API = "/api/v1/audit"
QUESTIONS = ("/query?limit=5", "/failures?limit=5", "/by-service/payments?limit=5", "/query?days=7")


class Load:
    """Recorders on kept-alive connections, and askers each of whose requests is on a new one.

    A recorder sends its task again, under its id, until it is acknowledged; a failure waits 20 ms.
    """

    def __init__(self, url: str, recorders: int = 4, askers: int = 4) -> None:
        self._url = url + API
        self._counts = (recorders, askers)
        self._stopping = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []
        #: By status, or by the name of what broke the connection.
        self.outcomes: Counter[int | str] = Counter()
        #: The same, of recorders alone, who have one request at a time each.
        self.recorded: Counter[int | str] = Counter()
        self.acknowledged: set[str] = set()
        #: When the first answer below 400 came after `watch`.
        self.watched_at = 0.0
        self.first_success_at: float | None = None
        self.slowest = 0.0

    @property
    def failures(self) -> dict[int | str, int]:
        """All that was not answered as asked."""
        return {
            what: n
            for what, n in self.outcomes.items()
            if not (isinstance(what, int) and what < 400)
        }

    def watch(self) -> None:
        """Look for the first success from now on."""
        self.watched_at, self.first_success_at = time.monotonic(), None

    async def until_success(self) -> float:
        """Wait for the first success after `watch`; return the seconds since then."""
        async with asyncio.timeout(60):
            while self.first_success_at is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.first_success_at - self.watched_at

    async def until_calm(self) -> float:
        """Wait until all requests of two seconds succeed; return the seconds to the first success.

        After a fault the service may refuse requests for a while, since it expects that work takes
        as long as the work before it. It has 30 seconds to learn that the fault is over.
        """
        self.watch()
        seconds = await self.until_success()
        async with asyncio.timeout(30):
            while True:
                before = self.outcomes.copy()
                await asyncio.sleep(2)
                new = self.outcomes - before
                if set(new) == {200, 201}:
                    return seconds

    async def __aenter__(self) -> Self:
        recorders, askers = self._counts
        self._clients = [asyncio.create_task(self._record()) for _ in range(recorders)]
        self._clients += [asyncio.create_task(self._ask(n)) for n in range(askers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.gather(*self._clients)

    async def _record(self) -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self._stopping.is_set():
                task = {"task_id": str(uuid.uuid4()), "request_text": "Deploy payments"}
                while not await self._sent(session, "POST", "/tasks", task):
                    await asyncio.sleep(0.02)
                    if self._stopping.is_set():
                        return
                self.acknowledged.add(task["task_id"])

    async def _ask(self, number: int) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self._stopping.is_set():
                number += 1
                if not await self._sent(session, "GET", QUESTIONS[number % len(QUESTIONS)]):
                    await asyncio.sleep(0.02)

    async def _sent(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        task: dict[str, str] | None = None,
    ) -> bool:
        started = time.monotonic()
        try:
            async with session.request(method, self._url + path, json=task) as answer:
                await answer.read()
                what: int | str = answer.status
                if what == 503:
                    assert int(answer.headers["Retry-After"]) >= 1
        except (aiohttp.ClientError, OSError) as broken:
            what = type(broken).__name__
        now = time.monotonic()
        self.slowest = max(self.slowest, now - started)
        self.outcomes[what] += 1
        if task:
            self.recorded[what] += 1
        is_done = isinstance(what, int) and what < 400
        if is_done and self.first_success_at is None and started >= self.watched_at:
            self.first_success_at = now
        return is_done


@contextlib.asynccontextmanager
async def running(
    *options: str, **variables: str
) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """Run the service while this loop goes on; yield its process and URL once it is ready."""
    with contextlib.ExitStack() as stack:
        service = serving(*options, log=None, **variables)
        process, url, _ = await asyncio.to_thread(stack.enter_context, service)
        await asyncio.to_thread(get, f"{url}/readyz")
        yield process, url
        await asyncio.to_thread(stack.close)


def recorded(dsn: str) -> set[str]:
    """The ids of all tasks in the database."""
    return {task_id for (task_id,) in execute(dsn, "SELECT task_id::text FROM tasks")}


class Proxy:
    """A network between the service and PostgreSQL, that can be stopped and cut."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._name = parts.path
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: list[asyncio.StreamWriter] = []
        self.dsn = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://audit@127.0.0.1:{port}{self._name}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.flow()
        self._server.close()
        self.cut()

    def stall(self) -> None:
        """Let nothing through, and say nothing."""
        self._flows.clear()

    def flow(self) -> None:
        """Go on where it stopped."""
        self._flows.set()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        self._writers += [writer, server_writer]
        await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
