"""A primary and two standbys, and programs that record and read through several services."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from audit.dsn import parse
from audit.postgres import embedded, migrate
from audit.postgres.embedded import Server
from tests.conftest import FAST, POSTGRES, execute
from tests.faults.feed import Change
from tests.replicas import copy_data, standby_of
from tests.waiting import until, wait_until

API: Final = "/api/v1/audit"
NAMES: Final = ("a", "b", "c")
_OPTIONS: Final = {**FAST, "wal_keep_size": "1GB", "wal_retrieve_retry_interval": "100"}
#: With these statuses, a service refuses what it cannot do now. The client sends the request again.
_RETRIED: Final = (503, 504)


class Cluster:
    """Three servers. Each commit waits for one of the two standbys."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = servers
        self._primary = NAMES[0]
        hosts = ",".join(parse(server.dsn).hosts[0].name for server in servers.values())
        self.dsn = f"host={hosts} user=audit dbname=postgres"
        # A standby uses `synchronous_standby_names` when it is promoted.
        for server in servers.values():
            execute(
                server.dsn,
                f"ALTER SYSTEM SET primary_conninfo = '{self.dsn} target_session_attrs=read-write'",
                f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({', '.join(NAMES)})'",
                "SELECT pg_reload_conf()",
            )

    @property
    def primary(self) -> Server:
        return self._servers[self._primary]

    @property
    def standbys(self) -> list[Server]:
        return [server for name, server in self._servers.items() if name != self._primary]

    def promote(self) -> Server:
        """Promote the standby that has received the most; return the primary until now."""
        old = self.primary
        received = {
            name: execute(
                server.dsn,
                "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'",
            )[0][0]
            for name, server in self._servers.items()
            if name != self._primary
        }
        self._primary = max(received, key=lambda name: received[name])
        assert execute(self.primary.dsn, "SELECT pg_promote()") == [(True,)]
        return old

    def copy_to(self, server: Server) -> None:
        """Replace the data of a server that was stopped, which may have what no other has."""
        shutil.rmtree(server._cluster)
        copy_data(self.primary.dsn, server._cluster)
        (server._cluster / "standby.signal").touch()

    def wait_until_complete(self) -> None:
        """Wait until the primary sends its changes to both standbys, and waits for one of them."""
        streaming = (
            "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'"
        )
        wait_until(lambda: len(execute(self.primary.dsn, streaming)) == len(NAMES) - 1)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a migrated primary and two standbys in new folders."""
    with ExitStack() as stack:
        first, *others = NAMES
        started = embedded.started(
            folder / first, bin_dir=POSTGRES, options={**_OPTIONS, "cluster_name": first}
        )
        servers = {first: stack.enter_context(started)}
        migrate.apply(servers[first].dsn)
        for name in others:
            standby = standby_of(servers[first], folder / name, **_OPTIONS, cluster_name=name)
            servers[name] = stack.enter_context(standby)
        made = Cluster(servers)
        made.wait_until_complete()
        yield made


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]


class Recorded(NamedTuple):
    """What is acknowledged to one recorder."""

    tasks: int = 0
    task_id: str = ""
    """The last one."""
    status: str = ""
    position: str = ""


@dataclass
class Clients:
    """Programs that record through several services, and read what was acknowledged."""

    urls: Sequence[str]
    recorders: int
    readers: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: set[Change] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    """When something was acknowledged."""
    requests: int = 0
    failures: Counter[int | str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Responses that are older than their requests, or that no fault explains."""

    def __post_init__(self) -> None:
        self._recorded = [Recorded() for _ in range(self.recorders)]
        self._is_done = False

    async def run(self) -> None:
        """Record and read until `stopping` is set, and all that was sent is acknowledged."""
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            work = [self._record(session, number) for number in range(self.recorders)]
            work += [self._read(session, number) for number in range(self.readers)]
            try:
                await asyncio.gather(*work)
            finally:
                self._is_done = True

    async def more(self, changes: int = 50) -> None:
        """Wait until the services have acknowledged this number of further changes."""
        wanted = len(self.times) + changes
        await until(lambda: self._is_done or len(self.times) >= wanted, 120)
        assert not self._is_done

    def longest_silence(self) -> float:
        """Return the longest time without an acknowledgement, in seconds."""
        return max(later - earlier for earlier, later in itertools.pairwise(self.times))

    async def _record(self, session: aiohttp.ClientSession, number: int) -> None:
        recorded = self._recorded[number]
        while not self.stopping.is_set():
            task_id = str(uuid.uuid4())
            new = {
                "task_id": task_id,
                "request_text": "Deploy",
                "status": "executing",
                "services_touched": [f"recorder-{number}"],
            }
            position = await self._acknowledge(session, "POST", "/tasks", new)
            self.acknowledged.add((task_id, "executing"))
            self._recorded[number] = recorded = Recorded(
                recorded.tasks + 1, task_id, "executing", position
            )
            await asyncio.sleep(random.uniform(0, 0.2))
            change = {"status": "completed"}
            position = await self._acknowledge(session, "PATCH", f"/tasks/{task_id}", change)
            self.acknowledged.add((task_id, "completed"))
            self._recorded[number] = recorded = Recorded(
                recorded.tasks, task_id, "completed", position
            )
            await asyncio.sleep(random.uniform(0, 0.2))

    async def _acknowledge(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any]
    ) -> str:
        """Send a request until it is acknowledged; return the position."""
        answer = await self._send(session, method, path, json=body)
        while answer is None:
            assert [] == self.wrong  # the services would refuse the request again and again
            await asyncio.sleep(0.1)
            answer = await self._send(session, method, path, json=body)
        self.times.append(time.monotonic())
        return answer.headers["Audit-Position"]

    async def _read(self, session: aiohttp.ClientSession, number: int) -> None:
        """Read what one recorder has recorded, through any service, in several ways."""
        recorder = number % self.recorders
        path = f"/by-service/recorder-{recorder}"
        etag, total = "", 0
        for turn in itertools.count(number):
            await asyncio.sleep(random.uniform(0, 0.5))
            if self.stopping.is_set():
                return
            recorded = self._recorded[recorder]
            if not recorded.tasks:
                continue
            at_least = {"Audit-Position-At-Least": recorded.position} if turn % 2 else {}
            match turn // 2 % 3:
                case 0:
                    headers = {**at_least, "If-None-Match": etag} if etag else at_least
                    answer = await self._send(session, "GET", f"{path}?limit=1", headers=headers)
                    if answer and answer.status == 200:
                        etag, total = answer.headers["ETag"], answer.body["total"]
                    is_fresh = total >= recorded.tasks
                case 1:
                    place = f"/tasks/{recorded.task_id}"
                    answer = await self._send(session, "GET", place, headers=at_least)
                    states = (recorded.status, "completed")
                    is_fresh = answer is not None and answer.body["status"] in states
                case _:
                    limit = min(1000, 1 + recorded.tasks // 3)
                    answer = await self._send(
                        session, "GET", f"{path}?limit={limit}", headers=at_least
                    )
                    found = []
                    while answer:
                        found += [task["task_id"] for task in answer.body["tasks"]]
                        if (cursor := answer.body["next_cursor"]) is None:
                            break
                        page = f"{path}?limit={limit}&cursor={cursor}"
                        answer = await self._send(session, "GET", page)
                    is_fresh = len(set(found)) == len(found) >= recorded.tasks
            if answer is not None and not is_fresh:
                self.wrong.append(f"turn {turn} for {recorded}: {answer}")

    async def _send(
        self, session: aiohttp.ClientSession, method: str, path: str, **given: Any
    ) -> Answer | None:
        """Send a request to one of the services; None if that could not do it now."""
        self.requests += 1
        url = random.choice(self.urls) + API + path
        try:
            async with session.request(method, url, **given) as response:
                body = await response.read()
                headers, status = response.headers, response.status
        except (aiohttp.ClientError, OSError) as failure:
            self.failures[type(failure).__name__] += 1
            return None
        if status in _RETRIED:
            self.failures[status] += 1
            return None
        answer = Answer(status, headers, json.loads(body) if body else {})
        if status >= 400:
            self.wrong.append(f"{method} {path} {given}: {answer}")
            return None
        return answer
