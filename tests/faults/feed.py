"""Writers that know what they committed, and readers of the feed that are cut off and resume."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import asyncpg

from tests.api import events

API = "/api/v1/audit"
STATES = ("pending", "approved", "executing", "completed")
#: What a transaction may meet when PostgreSQL is killed.
LOST = (
    *(OSError, TimeoutError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
)

#: A task, and the state that a change left.
Change = tuple[str, str]


class Writer:
    """Runs transactions that record and move tasks, roll back to savepoints, or roll back whole."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._random = random.Random(name)
        self._open: dict[str, int] = {}
        self.committed: set[Change] = set()
        self.unknown: list[set[Change]] = []
        """The changes of transactions whose COMMIT was not answered."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Write until the event is set; connect again if the database dies."""
        while not stopping.is_set():
            with contextlib.suppress(*LOST):
                connection = await asyncpg.connect(self._dsn, timeout=5)
                try:
                    while not stopping.is_set():
                        await self._transaction(connection)
                finally:
                    connection.terminate()
                    # What the last transaction has left is not known.
                    self._open = {}
            await asyncio.sleep(0.1)

    async def hold(self, stopping: asyncio.Event) -> None:
        """Record a task, and commit it when the event is set."""
        connection = await asyncpg.connect(self._dsn)
        changes: set[Change] = set()
        async with connection.transaction():
            await self._record(connection, changes)
            await stopping.wait()
        self.committed |= changes
        await connection.close()

    async def _transaction(self, connection: asyncpg.Connection[Any]) -> None:
        known = dict(self._open)
        changes: set[Change] = set()
        transaction = connection.transaction()
        await transaction.start()
        for _ in range(self._random.randrange(1, 6)):
            before, made = dict(self._open), set(changes)
            savepoint = connection.transaction()
            await savepoint.start()
            await self._write(connection, changes)
            if self._random.random() < 0.2:
                await savepoint.rollback()
                self._open, changes = before, made
            else:
                await savepoint.commit()
        await asyncio.sleep(self._random.choice((0, 0, 0, 0.01, 0.1, 1)))
        if self._random.random() < 0.1:
            await transaction.rollback()
            self._open = known
            return
        try:
            await asyncio.wait_for(transaction.commit(), 20)
        except BaseException:
            self.unknown.append(changes)
            raise
        self.committed |= changes

    async def _write(self, connection: asyncpg.Connection[Any], changes: set[Change]) -> None:
        if self._open and self._random.random() < 0.5:
            task_id = self._random.choice(list(self._open))
            state = self._open[task_id] + 1
            await connection.execute(
                "UPDATE tasks SET status = $2 WHERE task_id = $1"
                " AND created_at = created_at_of($1)",
                task_id,
                STATES[state],
            )
            changes.add((task_id, STATES[state]))
            if state + 1 < len(STATES):
                self._open[task_id] = state
            else:
                del self._open[task_id]
        else:
            for _ in range(self._random.choice((1, 1, 20))):
                self._open[await self._record(connection, changes)] = 0

    async def _record(self, connection: asyncpg.Connection[Any], changes: set[Change]) -> str:
        task_id = str(uuid.uuid4())
        await connection.execute(
            "INSERT INTO tasks (task_id, request_text, status, created_by, services_touched)"
            " VALUES ($1, 'x', 'pending', $2, '{a}')",
            task_id,
            self._name,
        )
        changes.add((task_id, "pending"))
        return task_id


@dataclass
class Reader:
    """Follows the feed with a filter, from its start, and resumes by its position."""

    url: str
    params: Mapping[str, str]
    cut_seconds: float = 0
    """How long a connection lives on average; 0: until the service ends it."""
    position: int = 0
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, the reader takes nothing more from its connection."""
    received: list[tuple[int, Change]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    """The seconds from the start of the transaction of each change until it came."""

    def __post_init__(self) -> None:
        self.reads.set()

    async def follow(self) -> None:
        """Read the stream for ever."""
        while True:
            seconds = random.uniform(0, 2 * self.cut_seconds) if self.cut_seconds else None
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with asyncio.timeout(seconds), self._session() as session:
                    headers = {"Last-Event-ID": str(self.position)}
                    url = f"{self.url}{API}/feed"
                    async with session.get(url, params=self.params, headers=headers) as stream:
                        async for event in events(stream):
                            assert event.name != "gone", event
                            if event.name == "change":
                                self._note(event.data)
                            assert event.id is not None
                            self.position = event.id
                            await self.reads.wait()
            await asyncio.sleep(0.05)

    async def poll(self) -> None:
        """Poll for ever."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with self._session() as session:
                    params = {**self.params, "position": str(self.position), "wait": "2"}
                    async with session.get(f"{self.url}{API}/changes", params=params) as response:
                        assert response.status != 410
                        response.raise_for_status()
                        body = json.loads(await response.read())
                    for change in body["changes"]:
                        self._note(change)
                    self.position = body["position"]
            await asyncio.sleep(0.05)

    def check(self, expected: set[Change]) -> None:
        """Compare what came with what was committed: nothing is missing, repeated or misplaced."""
        numbers = [n for n, _ in self.received]
        changes = [change for _, change in self.received]
        assert numbers == sorted(set(numbers))
        assert len(changes) == len(set(changes))
        assert set(changes) == expected
        states: dict[str, list[int]] = {}
        for task_id, state in changes:
            states.setdefault(task_id, []).append(STATES.index(state))
        assert all(each == sorted(each) for each in states.values())

    def _note(self, change: dict[str, Any]) -> None:
        self.received.append((change["n"], (change["task_id"], change["status"])))
        began = datetime.fromisoformat(change["changed_at"])
        self.delays.append((datetime.now(UTC) - began).total_seconds())

    @staticmethod
    @contextlib.asynccontextmanager
    async def _session() -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
        connector = aiohttp.TCPConnector(socket_factory=_with_small_buffer)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            yield session


def _with_small_buffer(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket for which the kernel holds little that its reader has not taken."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    made.setblocking(False)
    return made
