"""Minutes of everything at once: memory and files stay as they are."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.faults.load import API, Load, recorded, running
from tests.processes import memory_kib, workers_of

Figure = Callable[[str], None]

SECONDS = float(os.environ.get("AUDIT_FAULTS_SOAK_SECONDS", "600"))
SAMPLES = 60


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def leave_early(url: str, stopping: asyncio.Event) -> None:
    """Ask what takes long, and leave in the middle of it."""
    number = 0
    async with aiohttp.ClientSession() as session:
        while not stopping.is_set():
            number += 1
            path = f"/query?created_by=user{number % 300}&offset={number % 50}"
            asking = asyncio.create_task(session.get(f"{url}{API}{path}"))
            await asyncio.sleep(number % 40 / 1000)
            asking.cancel()
            for answer in await asyncio.gather(asking, return_exceptions=True):
                if isinstance(answer, aiohttp.ClientResponse):
                    answer.release()


@pytest.mark.faults
async def test_memory_and_files_stay_flat(dsn: str, figure: Figure) -> None:
    options = ("--dsn", dsn, "--workers", "2", "--answers-bytes", str(4 << 20))
    memory: list[tuple[float, int]] = []
    files: list[int] = []
    stopping = asyncio.Event()
    async with running(*options) as (process, url):
        workers = workers_of(process)
        async with Load(url) as load:
            leaving = [asyncio.create_task(leave_early(url, stopping)) for _ in range(2)]
            started = time.monotonic()
            for _ in range(SAMPLES):
                await asyncio.sleep(SECONDS / SAMPLES)
                memory.append((time.monotonic() - started, sum(map(memory_kib, workers))))
                files.append(sum(map(open_files, workers)))
            stopping.set()
            await asyncio.gather(*leaving)
        assert workers == workers_of(process)
    # The first half fills what is kept on purpose.
    settled = memory[SAMPLES // 2 :]
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    halves = statistics.median(files[: SAMPLES // 2]), statistics.median(files[SAMPLES // 2 :])

    figure(
        f"{SECONDS:.0f} s, {sum(load.outcomes.values())} requests, {load.failures} failed; "
        f"memory {memory[0][1] >> 10}, {settled[0][1] >> 10}, {memory[-1][1] >> 10} MiB, "
        f"{slope * 60:+.0f} KiB a minute at last; files {halves[0]:.0f}, {halves[1]:.0f}"
    )
    assert {} == load.failures
    assert memory[-1][1] < 1.1 * settled[0][1]
    assert halves[1] <= halves[0] + 4
    assert load.acknowledged == recorded(dsn)
