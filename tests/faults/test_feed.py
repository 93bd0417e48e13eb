"""Readers of the feed get exactly what was committed, whatever is cut, killed or held open."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from audit.deadlines import stop
from audit.postgres import embedded, migrate
from tests.conftest import execute
from tests.faults.feed import Change, Reader, Writer
from tests.faults.load import running
from tests.processes import memory_kib, workers_of
from tests.waiting import until

Figure = Callable[[str], None]
Fault = Callable[[], object]

SECONDS = float(os.environ.get("AUDIT_FAULTS_FEED_SECONDS", "8"))
STALL_SECONDS = float(os.environ.get("AUDIT_FAULTS_STALL_SECONDS", "4"))
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"status": "completed"},
    {"created_by": "writer-0"},
    {"service": "a"},
)

#: Twenty changes of ten kilobytes, and one for the readers that do not stop.
LARGE = """
INSERT INTO tasks (task_id, request_text, status, services_touched)
SELECT gen_random_uuid(), repeat('x', 10000), 'completed', ARRAY(
    SELECT 'large-' || number FROM generate_series(0, 9) AS number
)
FROM generate_series(1, 20)
"""
SMALL = """
INSERT INTO tasks (task_id, request_text, status, services_touched)
VALUES (gen_random_uuid(), 'x', 'completed', '{small}')
"""


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])


def resolved(dsn: str, writers: list[Writer]) -> None:
    """Find out which transactions whose COMMIT was not answered are committed."""
    for writer in writers:
        for changes in filter(None, writer.unknown):
            ids = ", ".join(f"'{task_id}'" for task_id, _ in changes)
            found = set(
                execute(
                    dsn,
                    f"SELECT task_id::text, status::text FROM task_events WHERE task_id IN ({ids})",
                )
            )
            assert changes <= found or not changes & found
            writer.committed |= changes & found


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["none", "cuts", "kills"])
async def test_each_reader_gets_what_was_committed_once(
    tmp_path: Path, figure: Figure, fault: str
) -> None:
    stopping = asyncio.Event()
    cut_seconds = 0 if fault == "none" else 0.5
    with embedded.started(tmp_path) as server:
        migrate.apply(server.dsn)
        execute(server.dsn, "SELECT make_task_partition(now(), 'month')")
        async with AsyncExitStack() as stack:
            service = running("--dsn", server.dsn, "--workers", "2")
            process, url = await stack.enter_async_context(service)
            writers = [Writer(server.dsn, f"writer-{number}") for number in range(8)]
            streams = [Reader(url, each, cut_seconds) for each in FILTERS]
            pollers = [Reader(url, each) for each in FILTERS[:2]]
            reading = [
                *(asyncio.create_task(reader.follow()) for reader in streams),
                *(asyncio.create_task(reader.poll()) for reader in pollers),
            ]
            stack.push_async_callback(stop, *reading)
            holder = Writer(server.dsn, "holder")
            working = [writer.run(stopping) for writer in writers]
            if fault != "kills":
                working.append(holder.hold(stopping))
            writing = asyncio.gather(*working)
            if fault == "kills":
                for _ in range(2):
                    await asyncio.sleep(SECONDS / 6)
                    os.kill(min(workers_of(process)), signal.SIGKILL)
                    await asyncio.sleep(SECONDS / 6)
                    os.kill(postmaster(tmp_path), signal.SIGKILL)
                    await asyncio.sleep(0.1)
                    await asyncio.to_thread(server.keep_running)
                    await asyncio.sleep(SECONDS / 6)
                    process.send_signal(signal.SIGHUP)
            else:
                await asyncio.sleep(SECONDS)
            stopping.set()
            await writing
            await until(lambda: not execute(server.dsn, "SELECT 1 FROM task_event_queue LIMIT 1"))
            ((size,),) = execute(server.dsn, "SELECT task_log_size()")
            await until(lambda: {each.position for each in (*streams, *pollers)} == {size})
            assert not any(each.done() for each in reading)
        resolved(server.dsn, [*writers, holder])

    committed: set[Change] = set().union(*(each.committed for each in (*writers, holder)))
    expected = (
        committed,
        {(task_id, state) for task_id, state in committed if state == "completed"},
        writers[0].committed,
        committed,
    )
    for reader, its in zip((*streams, *pollers), (*expected, *expected[:2]), strict=True):
        reader.check(its)
    unknown = sum(len(writer.unknown) for writer in writers)
    figure(f"{len(committed)} changes, {unknown} transactions without an answer; none lost")
    assert len(committed) == size


@pytest.mark.faults
async def test_readers_that_stop_for_a_while_get_all_later(dsn: str, figure: Figure) -> None:
    """Ten of fifty readers stop. Each would get more than the kernel holds for a connection."""
    # With filters of their own, they share no read of the database.
    stopping = [Reader(url="", params={"service": f"large-{number}"}) for number in range(10)]
    others = [Reader(url="", params={"service": "small"}) for _ in range(40)]
    delays: list[float] = []

    async def write() -> None:
        """Record 8 MB for each reader that stops, and meanwhile a small task now and then."""
        for _ in range(40):
            await asyncio.to_thread(execute, dsn, LARGE, SMALL)
            began = time.monotonic()
            wanted = len(delays) + 1
            await until(lambda: all(len(one.received) == wanted for one in others))  # noqa: B023
            delays.append(time.monotonic() - began)
            await asyncio.sleep(STALL_SECONDS / 40)

    async def all_have(readers: list[Reader]) -> None:
        await until(lambda: not execute(dsn, "SELECT 1 FROM task_event_queue LIMIT 1"))
        ((size,),) = execute(dsn, "SELECT task_log_size()")
        await until(lambda: {reader.position for reader in readers} == {size})

    async with AsyncExitStack() as stack:
        process, url = await stack.enter_async_context(running("--dsn", dsn, "--workers", "1"))
        (worker,) = workers_of(process)
        for reader in (*stopping, *others):
            reader.url = url
        reading = [asyncio.create_task(reader.follow()) for reader in (*stopping, *others)]
        stack.push_async_callback(stop, *reading)
        await write()
        await all_have([*stopping, *others])
        before = memory_kib(worker)
        for reader in stopping:
            reader.reads.clear()
        await write()
        await all_have(others)
        grown = memory_kib(worker) - before
        behind = [others[0].position - reader.position for reader in stopping]
        for reader in stopping:
            reader.reads.set()
        await all_have([*stopping, *others])

    figure(
        f"ten readers that stopped were {min(behind)} changes behind: {grown / 1024:.1f} MiB more;"
        f" a change reached the others within {max(delays[:40]):.2f} s before,"
        f" {max(delays[40:]):.2f} s meanwhile"
    )
    rows = execute(dsn, "SELECT position, services_touched @> '{small}' FROM task_events")
    small = sorted(n for n, is_small in rows if is_small)
    large = sorted(n for n, is_small in rows if not is_small)
    assert all([n for n, _ in reader.received] == large for reader in stopping)
    assert all([n for n, _ in reader.received] == small for reader in others)
    assert min(behind) > 100
    assert grown <= 10 * 1024
