"""Reads stay cheap while PostgreSQL may not remove dead rows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import pq

from audit.history.query import AuditQuery, TaskQuery
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import ago, execute, task
from tests.plans import buffers_read, explained, statements_of
from tests.replicas import replicated
from tests.waiting import wait_until

QUERIES: list[TaskQuery] = [
    AuditQuery(),
    AuditQuery(service=("payments",)),
    AuditQuery(service=("payments", "search"), days=3, limit=10),
]
#: What a reader of changes has seen that has seen them all.
NOTHING_NEW = statements.READ_CHANGES.values(
    {"known_size": 10**9, "seen_to": 10**9, "gaps": [], "most": 100, "most_documents": 100}
)
#: The arguments of a page of the history of a task, and of a feed without filters.
EACH_TASK: dict[str, Any] = {"project_id": None, "after": 0, "limit": 10, "max_bytes": 100_000}
EVERYTHING: dict[str, Any] = dict.fromkeys(
    ("statuses", "services", "intents", "created_by", "project_id", "outcome")
)
FIRST_PAGE = EVERYTHING | {
    "service": "", "since": None, "until": None, "after_at": None, "offset": 0, "limit": 10,
}  # fmt: skip
INSERT = "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')"
QUEUE_BLOCKS = "SELECT pg_relation_size('task_event_queue') / 8192"
SLOT = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'abandoned'"


@contextmanager
def abandoned_slot(dsn: str) -> Iterator[None]:
    """A replication slot of a standby that has told its snapshot, and then never came back."""
    execute(dsn, "SELECT pg_create_physical_replication_slot('abandoned')")
    try:
        [(xid, position)] = execute(
            dsn, "SELECT pg_current_xact_id()::text, pg_current_wal_flush_lsn()::text"
        )
        standby = pq.PGconn.connect(f"{dsn}&replication=true".encode())
        started = standby.exec_(f"START_REPLICATION SLOT abandoned PHYSICAL {position}".encode())
        assert started.status == pq.ExecStatus.COPY_BOTH, started.error_message
        # The message "hot standby feedback" of the replication protocol.
        standby.put_copy_data(struct.pack("!cqIIII", b"h", 0, int(xid), 0, 0, 0))
        standby.flush()
        wait_until(lambda: execute(dsn, f"{SLOT} AND xmin IS NOT NULL"))
        execute(dsn, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        wait_until(lambda: execute(dsn, f"{SLOT} AND NOT active"))
        standby.finish()
        yield
    finally:
        execute(dsn, "SELECT pg_drop_replication_slot('abandoned')")


async def blocks_read(service: AuditService) -> int:
    """The blocks that the queries and the version of the history read.

    A session that runs a function for the first time also reads the catalogs.
    """
    read: list[int] = []
    for _ in range(3):
        ran = [one for query in QUERIES for one in await statements_of(service, query)]
        ran.append((statements.READ_CHANGES, NOTHING_NEW))
        plans = [await explained(service, *one) for one in ran]
        read.append(sum(root["Shared Hit Blocks"] for root, *_ in plans))
    return min(read)


async def write(service: AuditService, rounds: int) -> None:
    """Record and change tasks and count them, as the service does in the background."""
    for _ in range(rounds):
        opened = task(status="pending", created_at=ago(minutes=1))
        await service.record([task(created_at=ago(minutes=1)) for _ in range(20)])
        await service.record([opened])
        await service.update(opened["task_id"], {"status": "completed"})
        await service.upkeep.fold_counts(is_lazy=True)


@contextmanager
def long_reader(dsn: str) -> Iterator[None]:
    """A transaction that keeps its snapshot, as a dump or an analyst does."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1")
        yield


Holder = Callable[[str], AbstractContextManager[None]]
HOLDERS: dict[str, Holder] = {"abandoned slot": abandoned_slot, "long reader": long_reader}
RUNS = "SELECT cardinality(runs) FROM task_count_run_lists ORDER BY list DESC LIMIT 1"


async def reads_stay_cheap(dsn: str, hold: Callable[[], AbstractContextManager[None]]) -> None:
    """Check that reads cost at most twice as much while PostgreSQL keeps all old rows."""
    async with open_pool(Settings(pool_size=1), dsn) as pool:
        service = AuditService(pool)
        await service.record([task(created_at=ago(days=n % 30)) for n in range(500)])
        await write(service, rounds=20)
        with hold():
            await write(service, rounds=150)
            execute(dsn, "VACUUM")
            [(runs,)] = execute(dsn, RUNS)
            held = await blocks_read(service)
            assert await service.upkeep.check_counts() == []
        execute(dsn, "VACUUM")
        # The runs go back into the base, as in the background.
        for _ in range(2 * runs):
            await service.upkeep.fold_counts(is_lazy=True)
        assert execute(dsn, RUNS) == [(0,)]
        execute(dsn, "VACUUM")
        normal = await blocks_read(service)
        assert await service.upkeep.check_counts() == []
    assert 1 <= runs <= 6
    assert held <= 2 * normal, (held, normal)


@pytest.mark.parametrize("holder", sorted(HOLDERS))
async def test_reads_stay_cheap_while_old_rows_are_kept(fresh: str, holder: str) -> None:
    await reads_stay_cheap(fresh, lambda: HOLDERS[holder](fresh))


async def test_reads_of_a_primary_stay_cheap_beside_a_long_reader_on_a_standby(
    tmp_path: Path,
) -> None:
    feedback = {"hot_standby_feedback": "on", "wal_receiver_status_interval": "1s"}

    with replicated(tmp_path, **feedback) as replicas:
        primary, standby = replicas.primary.dsn, replicas.standby.dsn

        @contextmanager
        def hold() -> Iterator[None]:
            with long_reader(standby):
                wait_until(
                    lambda: execute(
                        primary, "SELECT 1 FROM pg_stat_replication WHERE backend_xmin IS NOT NULL"
                    )
                )
                yield
            wait_until(
                lambda: execute(
                    primary,
                    "SELECT pg_current_xact_id()",
                    "SELECT 1 FROM pg_stat_replication WHERE age(backend_xmin) < 10",
                )
            )

        await reads_stay_cheap(primary, hold)


async def blocks_of_looks(service: AuditService, dsn: str, task_id: str) -> dict[str, int]:
    """The blocks that each kind of look at the queue reads, and those to number one event."""
    [(size,)] = execute(dsn, "SELECT task_log_size()")
    feed = {"first": size - 1, "most": 10, "most_scanned": 100, "max_bytes": 10**6} | EVERYTHING
    looks = {
        "changes": (statements.READ_CHANGES, NOTHING_NEW),
        "history": (
            statements.GET_HISTORY,
            statements.GET_HISTORY.values({"task_id": task_id} | EACH_TASK),
        ),
        "feed": (statements.READ_FEED, statements.READ_FEED.values(feed)),
        "size": (statements.MEASURE_LOG, []),
        "deltas": (statements.MEASURE_DELTAS, []),
        "total": (statements.LOCATE_PAGE, statements.LOCATE_PAGE.values(FIRST_PAGE)),
        "numbering": (statements.SEQUENCE_EVENTS, [100]),
    }
    read: dict[str, list[int]] = {name: [] for name in looks}
    for _ in range(3):
        for name, look in looks.items():
            if name == "numbering":
                execute(dsn, INSERT)
            read[name].append(buffers_read(await explained(service, *look)))
    return {name: min(blocks) for name, blocks in read.items()}


@pytest.mark.parametrize("wrote", ["nothing", "events"])
async def test_looks_beside_an_open_transaction_read_no_moved_events(
    fresh: str, wrote: str
) -> None:
    async with open_pool(Settings(pool_size=1), fresh) as pool:
        service = AuditService(pool)
        (first, *_) = (await service.record([task() for _ in range(100)])).task_ids
        with psycopg.connect(fresh) as late:
            late.execute("SELECT pg_current_xact_id()")
            for _ in range(30):
                if wrote == "events":
                    late.execute(INSERT)
                await service.record([task() for _ in range(200)])
                await service.upkeep.sequence_events()
            while await service.upkeep.fold_counts():
                pass
            execute(fresh, "VACUUM ANALYZE")
            [(size,)] = execute(fresh, QUEUE_BLOCKS)
            beside = await blocks_of_looks(service, fresh, str(first))
            late.rollback()
        while await service.upkeep.fold_counts():
            pass
        execute(fresh, "VACUUM ANALYZE")
        alone = await blocks_of_looks(service, fresh, str(first))

        # The moved events are still there.
        assert size > 150
        assert {} == {
            name: (alone[name], beside[name])
            for name in alone
            if beside[name] > 2 * alone[name] + 10
        }
