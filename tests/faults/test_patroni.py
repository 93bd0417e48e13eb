"""What is acknowledged survives a failover by Patroni, and the service follows by itself."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import pytest

from audit.client import AsyncClient
from audit.deadlines import stop
from audit.postgres import migrate
from tests.conftest import SERVING, execute
from tests.faults.feed import Change, Reader
from tests.faults.load import running
from tests.faults.patroni import PROGRAMS, Cluster, Node, patroni
from tests.needs import needs_installed
from tests.processes import workers_of
from tests.waiting import until, wait_until

pytestmark = [
    pytest.mark.faults,
    needs_installed("Patroni", ".venv/installed-patroni", found=(PROGRAMS / "patroni").exists()),
]

Figure = Callable[[str], None]

RECORDERS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with patroni(tmp_path_factory.mktemp("patroni")) as cluster:
        execute(cluster.dsn("postgres"), f"CREATE ROLE {SERVING} LOGIN")
        yield cluster


@dataclass
class Recorders:
    """Programs that record and complete tasks. They do nothing about failures."""

    url: str
    acknowledged: set[Change] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    async def run(self, stopping: asyncio.Event) -> None:
        """Record until the event is set."""
        # Each call may take as long as a failover. A call that fails raises, and ends the test.
        async with AsyncClient(self.url, timeout=120) as client:
            while not stopping.is_set():
                task_id = await client.record(request_text="Deploy", status="executing")
                self._note(task_id, "executing")
                await client.update(task_id, status="completed")
                self._note(task_id, "completed")
                await asyncio.sleep(0.02)

    async def more(self, changes: int = 50) -> None:
        """Wait until the services have acknowledged this number of further changes."""
        wanted = len(self.times) + changes
        await until(lambda: len(self.times) >= wanted)

    def longest_silence(self) -> float:
        return max(later - earlier for earlier, later in itertools.pairwise(self.times))

    def _note(self, task_id: object, state: str) -> None:
        self.acknowledged.add((str(task_id), state))
        self.times.append(time.monotonic())


@asynccontextmanager
async def recording(cluster: Cluster, database: str, *options: str) -> AsyncIterator[Recorders]:
    """Record through a service, and check at the end that all of it was kept once.

    The service and the readers of its feed run all the time.
    """
    execute(cluster.dsn("postgres"), f"CREATE DATABASE {database}")
    migrate.apply(cluster.dsn(database))
    migrate.grant(cluster.dsn(database), [SERVING], [])
    stopping = asyncio.Event()
    service = running("--dsn", cluster.dsn(database, SERVING), "--workers", "2", *options)
    async with service as (process, url):
        workers = workers_of(process)
        recorders = Recorders(url)
        readers = [Reader(url, {}), Reader(url, {})]
        reading = [asyncio.create_task(each) for each in (readers[0].follow(), readers[1].poll())]
        writing = asyncio.gather(*(recorders.run(stopping) for _ in range(RECORDERS)))
        try:
            await recorders.more()
            yield recorders
            await recorders.more()
            stopping.set()
            await writing
            changes = len(recorders.acknowledged)
            await until(lambda: {reader.position for reader in readers} == {changes})
            assert not any(each.done() for each in reading)
            assert workers == workers_of(process)
        finally:
            writing.cancel()
            await stop(*reading)
    stored = execute(
        cluster.dsn(database),
        "SELECT position, task_id::text, status::text FROM task_events ORDER BY position",
    )
    assert [position for position, *_ in stored] == [*range(changes)]
    assert {(task_id, state) for _, task_id, state in stored} == recorders.acknowledged
    for reader in readers:
        assert [position for position, _ in reader.received] == [*range(changes)]
        reader.check(recorders.acknowledged)


def is_writable(node: Node) -> bool:
    try:
        return execute(node.dsn, "SELECT pg_is_in_recovery()") == [(False,)]
    except psycopg.OperationalError:
        return False


def told(recorders: Recorders) -> str:
    return (
        f"{len(recorders.acknowledged)} changes acknowledged, none lost or repeated;"
        f" at most {recorders.longest_silence():.1f} s without an acknowledgement"
    )


async def test_a_leader_that_is_killed(cluster: Cluster, figure: Figure) -> None:
    async with recording(cluster, "killed") as recorders:
        leader = cluster.leader()
        leader.kill()
        await recorders.more()
        assert cluster.leader() is not leader
        # Not in a thread of its own: the node would end with that.
        leader.start()
        await asyncio.to_thread(cluster.wait_until_complete)
    figure(told(recorders))


async def test_a_switchover(cluster: Cluster, figure: Figure) -> None:
    async with recording(cluster, "switched") as recorders:
        leader = cluster.leader()
        await asyncio.to_thread(cluster.switch_over)
        await recorders.more()
        assert cluster.leader() is not leader
        await asyncio.to_thread(cluster.wait_until_complete)
    figure(told(recorders))


async def test_a_leader_that_is_cut_off_from_the_other_nodes_and_etcd(
    cluster: Cluster, figure: Figure
) -> None:
    """The service still reaches the old leader, which knows of the cut as late as it can.

    The time limit of a statement ends earlier, so that writes are sent again to the old leader.
    """
    options = ("--statement-timeout-seconds", "1")
    async with recording(cluster, "cut_off", *options) as recorders:
        leader = cluster.leader()
        leader.cut_off()
        cut_at = time.monotonic()
        await asyncio.to_thread(wait_until, lambda: not is_writable(leader))
        refused_at = time.monotonic()
        await recorders.more()
        assert cluster.leader() is not leader
        leader.reconnect()
        await asyncio.to_thread(cluster.wait_until_complete)
    figure(f"{told(recorders)}; the leader accepted writes for {refused_at - cut_at:.1f} s more")
