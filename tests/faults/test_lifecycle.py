"""Workers that are killed, told to end, or replaced, while clients ask and record."""

from __future__ import annotations

import asyncio
import functools
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.conftest import execute
from tests.faults.load import Load, recorded
from tests.processes import AUDIT, get, is_alive, serving, workers_of
from tests.waiting import until, wait_until

Figure = Callable[[str], None]


async def replaced(process: subprocess.Popen[str], number: signal.Signals) -> float:
    """Send a signal; return how long it took until all workers are others."""
    old = workers_of(process)
    process.send_signal(number)
    return await until(lambda: not workers_of(process) & old)


def is_gone(process: subprocess.Popen[str], worker: int) -> bool:
    return worker not in workers_of(process)


async def replaced_after_a_kill(process: subprocess.Popen[str]) -> float:
    """Kill a worker; return how long it took until there was another."""
    old = workers_of(process)
    os.kill(min(old), signal.SIGKILL)
    return await until(lambda: len(workers_of(process) - old) == 1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_restart_loses_no_request(dsn: str, figure: Figure, workers: int) -> None:
    with serving("--dsn", dsn, "--workers", str(workers)) as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        async with Load(url) as load:
            for _ in range(2):
                await asyncio.sleep(0.3)
                seconds = await replaced(process, signal.SIGHUP)
            await asyncio.sleep(0.3)
        now = workers_of(process)
        process.terminate()
        ended_with = process.wait(60)

    figure(f"{sum(load.outcomes.values())} requests, {load.failures} lost; {seconds:.1f} s")
    assert {} == load.failures
    assert workers == len(now)
    assert load.acknowledged == recorded(dsn)
    assert 0 == ended_with


async def test_a_worker_stopped_by_sigterm_loses_no_request(dsn: str, figure: Figure) -> None:
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        async with Load(url) as load:
            for _ in range(2):
                await asyncio.sleep(0.3)
                old = min(workers_of(process))
                os.kill(old, signal.SIGTERM)
                await until(functools.partial(is_gone, process, old))
            await asyncio.sleep(1)

    figure(f"{sum(load.outcomes.values())} requests, {load.failures} lost")
    assert {} == load.failures
    assert load.acknowledged == recorded(dsn)


async def test_a_killed_worker_loses_only_its_own_requests(dsn: str, figure: Figure) -> None:
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        async with Load(url) as load:
            kills, seconds = 0, 1.0
            while kills < 3 and seconds >= 0.9:  # a busy machine may take longer to fork
                await asyncio.sleep(1.1)
                kills += 1
                seconds = await replaced_after_a_kill(process)
            await asyncio.sleep(1)
        lost = sum(load.failures.values())

    figure(f"{lost} of {sum(load.outcomes.values())} requests lost; replaced in {seconds:.3f} s")
    assert not [what for what in load.failures if isinstance(what, int)]
    assert lost <= 8 * kills  # one of each client
    assert seconds < 0.9
    assert load.acknowledged == recorded(dsn)


@pytest.mark.faults
async def test_workers_that_end_at_once_are_restarted_once_a_second(dsn: str) -> None:
    with serving("--dsn", dsn, "--workers", "1") as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        seen: set[int] = set()
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < 3 or (seconds < 60 and len(seen) < 2):
            for pid in workers_of(process) - seen:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

        assert 2 <= len(seen) <= seconds + 2
        assert 200 == (await asyncio.to_thread(get, f"{url}/readyz"))[0]


@pytest.mark.faults
async def test_old_workers_stay_if_new_ones_cannot_serve(dsn: str) -> None:
    name = execute(dsn, "SELECT current_database()")[0][0]
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        old = workers_of(process)
        other = dsn.replace(f"/{name}?", "/postgres?")
        execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        async with Load(url) as load:
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(1.5)
        execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert old == workers_of(process)

    assert {} == load.failures


@pytest.mark.faults
async def test_a_stop_of_the_service_finishes_open_requests(dsn: str, figure: Figure) -> None:
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        await asyncio.to_thread(get, f"{url}/readyz")
        async with Load(url) as load:
            await asyncio.sleep(0.5)
            process.terminate()
            seconds = await until(lambda: process.poll() is not None)

    figure(f"{load.failures} of {sum(load.outcomes.values())}; ended in {seconds:.1f} s")
    # From then on nobody listens; what was accepted is answered.
    assert {"ClientConnectorError", "ClientOSError", "ServerDisconnectedError",
            "ConnectionResetError"} >= set(load.failures)  # fmt: skip
    assert load.acknowledged == recorded(dsn)
    assert 0 == process.returncode


def test_a_closed_terminal_ends_the_service(dsn: str) -> None:
    command = [str(AUDIT), "serve", "--port", "0", "--dsn", dsn]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)  # noqa: S606
    shown = b""
    while b"Ctrl-C" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)

    wait_until(lambda: not is_alive(pid))
    os.waitpid(pid, 0)
