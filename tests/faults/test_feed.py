"""Readers of the feed get exactly what was committed, whatever is cut, killed or held open."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from audit.deadlines import stop
from audit.postgres import embedded, migrate
from tests.conftest import execute
from tests.faults.feed import Change, Reader, Writer
from tests.faults.load import running
from tests.processes import workers_of
from tests.waiting import until

Figure = Callable[[str], None]
Fault = Callable[[], object]

SECONDS = float(os.environ.get("AUDIT_FAULTS_FEED_SECONDS", "8"))
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"status": "completed"},
    {"created_by": "writer-0"},
    {"service": "a"},
)


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
