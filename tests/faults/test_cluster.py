"""Three services on a primary and two standbys, whose parts are killed in turn."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from audit.deadlines import stop
from audit.postgres.embedded import Server
from tests.conftest import execute
from tests.faults.cluster import API, NAMES, Clients, Cluster, cluster
from tests.faults.feed import Reader
from tests.faults.load import running
from tests.processes import workers_of
from tests.replicas import crash
from tests.waiting import until

pytestmark = pytest.mark.faults

#: A twelfth of the soak: `make test-faults SOAK=3600` does it for five minutes.
SECONDS: Final = float(os.environ.get("AUDIT_FAULTS_SOAK_SECONDS", "180")) / 12
SERVICES: Final = 3
WORKERS: Final = 2


@pytest.fixture
def servers() -> Iterator[ThreadPoolExecutor]:
    """A thread that starts servers without stopping the clients. They end with this thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


async def test_nothing_is_lost_or_stale_while_parts_are_killed(
    tmp_path: Path, servers: ThreadPoolExecutor, figure: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        running_cluster = cluster(tmp_path)
        three = await loop.run_in_executor(servers, running_cluster.__enter__)
        stack.push_async_callback(
            loop.run_in_executor, servers, running_cluster.__exit__, None, None, None
        )
        given = ("--dsn", f"{three.dsn} target_session_attrs=read-write", "--read-dsn", three.dsn)
        options = (*given, "--workers", str(WORKERS), "--pool-size", "6")
        services = [await stack.enter_async_context(running(*options)) for _ in range(SERVICES)]
        urls = [url for _, url in services]
        clients = Clients(urls, recorders=16, readers=64)
        feeds = [Reader(url, {}) for url in urls]
        reading = [asyncio.create_task(feed.poll()) for feed in feeds]
        working = asyncio.create_task(clients.run())
        faults: Counter[str] = Counter()
        until_time = time.monotonic() + SECONDS
        try:
            await clients.more()
            for turn in count():
                if turn >= 3 and time.monotonic() > until_time:
                    break
                match turn % 3:
                    case 0:
                        process, _ = services[turn // 3 % SERVICES]
                        os.kill(min(workers_of(process)), signal.SIGKILL)
                        faults["workers"] += 1
                    case 1:
                        standby = three.standbys[turn // 3 % 2]
                        await asyncio.to_thread(crash, standby)
                        await clients.more()
                        await loop.run_in_executor(servers, standby.start)
                        faults["standbys"] += 1
                    case _:
                        await fail_over(three, servers, clients)
                        faults["primaries"] += 1
                await clients.more()
                await asyncio.to_thread(three.wait_until_complete)
            clients.stopping.set()
            await working
            for url in urls:
                clients.acknowledged.add((await until_recovered(url), "completed"))
            changes = len(clients.acknowledged)
            await until(lambda: {feed.position for feed in feeds} == {changes})
            assert not any(each.done() for each in reading)
        finally:
            working.cancel()
            await stop(*reading)
        stored = execute(
            three.primary.dsn,
            "SELECT position, task_id::text, status::text FROM task_events ORDER BY position",
        )

    figure(
        f"{SECONDS:.0f} s, {dict(faults)} killed: {clients.requests} requests,"
        f" {dict(clients.failures)} failed and were sent again, {changes} changes acknowledged,"
        f" at most {clients.longest_silence():.1f} s without an acknowledgement"
    )
    assert [] == clients.wrong
    assert [position for position, *_ in stored] == [*range(changes)]
    assert {(task_id, status) for _, task_id, status in stored} == clients.acknowledged
    for feed in feeds:
        feed.check(clients.acknowledged)


async def fail_over(three: Cluster, servers: ThreadPoolExecutor, clients: Clients) -> None:
    """Kill the primary, promote a standby, and let the old primary come back as a standby."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(crash, three.primary)
    old: Server = await asyncio.to_thread(three.promote)
    await clients.more()
    await asyncio.to_thread(three.copy_to, old)
    await loop.run_in_executor(servers, old.start)


async def until_recovered(url: str) -> str:
    """Wait until each worker of a service uses both standbys; read and record a task by it."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        in_use = 0
        while in_use < len(NAMES) - 1:
            async with session.get(f"{url}/metrics") as metrics:
                in_use = (await metrics.text()).count(f'state="in_use"}} {WORKERS}')
        async with session.get(f"{url}{API}/query?limit=1") as answer:
            assert 200 == answer.status
        new = {"request_text": "Deploy", "status": "completed"}
        async with session.post(f"{url}{API}/tasks", json=new) as answer:
            assert 201 == answer.status
            task_id: str = (await answer.json())["task_ids"][0]
            return task_id
