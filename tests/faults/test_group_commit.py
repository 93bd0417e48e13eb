"""Many small writes at once while processes are killed: what a response says is what is stored."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from audit.postgres import embedded, migrate
from tests.conftest import ago, execute
from tests.faults.load import API, running
from tests.processes import workers_of
from tests.waiting import until

Figure = Callable[[str], None]
ORCHESTRATORS = 48
STATES = ("pending", "executing", "completed")
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'task-audit' AND datname = current_database()"
    " ORDER BY random() LIMIT 4"
)


class Orchestrators:
    """Clients that record tasks and move them on, each with one request at a time.

    Some requests are refused, whatever happens to the service.
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url}{API}/tasks"
        self._stopping = asyncio.Event()
        #: The last state that a response has confirmed.
        self.confirmed: dict[str, str] = {}
        #: The last state that was sent.
        self.sent: dict[str, str] = {}
        self.refused: set[str] = set()
        self.statuses: Counter[int | str] = Counter()

    async def run(self, number: int) -> None:
        """Record and change tasks until the block of `working` ends."""
        dice = random.Random(number)
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self._stopping.is_set():
                task_id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
                if dice.random() < 0.1:
                    await self._send_refused(session, task_id)
                elif await self._record(session, task_id):
                    await self._move_on(session, task_id, dice)

    async def _record(self, session: aiohttp.ClientSession, task_id: str) -> bool:
        self.sent[task_id] = "pending"
        task = {"task_id": task_id, "request_text": "Deploy payments"}
        if await self._status(session, "POST", "", task) not in {200, 201}:
            return False
        self.confirmed[task_id] = "pending"
        return True

    async def _move_on(
        self, session: aiohttp.ClientSession, task_id: str, dice: random.Random
    ) -> None:
        for status in STATES[1:]:
            self.sent[task_id] = status
            if await self._status(session, "PATCH", f"/{task_id}", {"status": status}) != 200:
                return
            self.confirmed[task_id] = status
        if dice.random() < 0.2:
            back = await self._status(session, "PATCH", f"/{task_id}", {"status": "approved"})
            assert back == 409 or not isinstance(back, int) or back >= 500

    async def _send_refused(self, session: aiohttp.ClientSession, task_id: str) -> None:
        task = {
            "task_id": task_id,
            "request_text": "of the day after tomorrow",
            "created_at": ago(days=-2).isoformat(),
        }
        if await self._status(session, "POST", "", task) == 422:
            self.refused.add(task_id)

    async def _status(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, str]
    ) -> int | str:
        try:
            async with session.request(method, self._url + path, json=body) as response:
                await response.read()
                status: int | str = response.status
        except (aiohttp.ClientError, OSError) as broken:
            status = type(broken).__name__
        self.statuses[status] += 1
        if not isinstance(status, int) or status >= 500:
            await asyncio.sleep(0.02)
        return status

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self.run(number)) for number in range(ORCHESTRATORS)]
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.gather(*clients)

    async def check(self, dsn: str, figure: Figure) -> None:
        """Compare what is stored with what the responses said."""
        await until(lambda: execute(dsn, "SELECT 1"))
        stored = dict(execute(dsn, "SELECT task_id::text, status::text FROM tasks"))
        figure(f"{len(self.confirmed)} tasks; responses {dict(self.statuses)}")
        assert len(self.confirmed) > ORCHESTRATORS
        assert self.refused
        assert not self.refused & stored.keys()
        for task_id, status in self.confirmed.items():
            # The last request may have been made although its response did not come.
            assert stored[task_id] in {status, self.sent[task_id]}
        assert stored.keys() <= self.sent.keys()
        # Every state that was confirmed has its event, and no event is there twice.
        events = Counter(
            execute(
                dsn,
                "SELECT task_id::text, status::text FROM task_event_queue"
                " UNION ALL SELECT task_id::text, status::text FROM task_events",
            )
        )
        expected = {
            (task_id, state)
            for task_id, last in stored.items()
            for state in STATES[: STATES.index(last) + 1]
        }
        assert dict.fromkeys(expected, 1) == events


@pytest.mark.faults
async def test_sessions_that_are_killed_lose_nothing_that_was_confirmed(
    dsn: str, figure: Figure
) -> None:
    async with running("--dsn", dsn) as (_, url):
        load = Orchestrators(url)
        async with load.working():
            for _ in range(30):
                await asyncio.sleep(0.1)
                await asyncio.to_thread(execute, dsn, TERMINATE)
            await asyncio.sleep(1)
        await load.check(dsn, figure)

    assert {200, 201, 409, 422} <= load.statuses.keys()
    assert load.statuses.keys() <= {200, 201, 409, 422, 503}


@pytest.mark.faults
async def test_workers_that_are_killed_lose_nothing_that_was_confirmed(
    dsn: str, figure: Figure
) -> None:
    async with running("--dsn", dsn, "--workers", "2") as (process, url):
        load = Orchestrators(url)
        async with load.working():
            for _ in range(3):
                await asyncio.sleep(1)
                os.kill(min(workers_of(process)), signal.SIGKILL)
            await asyncio.sleep(1)
        await load.check(dsn, figure)

    assert {200, 201, 409, 422} <= load.statuses.keys()
    assert {status for status in load.statuses if isinstance(status, int)} <= {
        200, 201, 409, 422, 503,
    }  # fmt: skip


@pytest.mark.faults
async def test_a_postmaster_that_is_killed_loses_nothing_that_was_confirmed(
    tmp_path: Path, figure: Figure
) -> None:
    with embedded.started(tmp_path) as server:
        migrate.apply(server.dsn)
        async with running("--dsn", server.dsn) as (_, url):
            load = Orchestrators(url)
            async with load.working():
                for _ in range(2):
                    await asyncio.sleep(1)
                    pid = (tmp_path / "postgresql" / "postmaster.pid").read_text().split()[0]
                    os.kill(int(pid), signal.SIGKILL)
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(server.keep_running)
                await asyncio.sleep(2)
            await load.check(server.dsn, figure)

    assert load.statuses.keys() <= {200, 201, 409, 422, 503, 504}
    assert load.statuses[503]
