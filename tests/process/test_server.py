"""The command `audit serve`, as a process: how it starts, serves, stops and comes back."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from audit.process.loop import run
from tests.commandline import audit, lines, start
from tests.conftest import execute, task
from tests.postgres.owners import servers_on
from tests.processes import get, is_alive, serving, workers_of
from tests.waiting import wait_until

DEMO_TASKS = "20,000 tasks"


def first_lines(process: subprocess.Popen[str]) -> list[str]:
    """What it prints once it listens: the last line says how to stop it."""
    assert process.stdout is not None
    shown = []
    for line in process.stdout:
        shown.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    return shown


# --- on an embedded PostgreSQL --------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose first start was killed while it recorded the demo tasks."""
    data_dir = tmp_path_factory.mktemp("served") / "data"
    dsn = f"postgresql://audit@/postgres?host={data_dir}/run"
    with start("serve", "--demo", "--port", "0", "--data-dir", str(data_dir)) as killed:
        wait_until(lambda: is_recording(dsn))
        killed.kill()
    yield data_dir
    for pid in servers_on(data_dir):
        os.kill(pid, signal.SIGKILL)


def is_recording(dsn: str) -> bool:
    try:
        return bool(execute(dsn, "SELECT 1 FROM task_partitions"))
    except psycopg.Error:
        return False


def test_a_start_prints_what_works_as_it_stands(data_dir: Path) -> None:
    with start("serve", "--demo", "--port", "0", "--data-dir", str(data_dir)) as process:
        shown = first_lines(process)
        answers = [get(re.findall("curl '(.*)'", line)[0]) for line in shown if "curl" in line]
        docs = re.findall("http[^ )]*", shown[0])[1]
        with urllib.request.urlopen(docs) as response:
            page = response.status
        process.send_signal(signal.SIGINT)

    assert f"Database: embedded PostgreSQL in {data_dir}, {DEMO_TASKS}" == shown[1]
    assert [(200, 3)] * 3 == [(status, len(page["tasks"])) for status, page in answers]
    assert 200 == page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_whole_and_the_next_start_has_the_same_tasks(
    data_dir: Path, number: signal.Signals
) -> None:
    with start("serve", "--demo", "--port", "0", "--data-dir", str(data_dir)) as process:
        shown = first_lines(process)
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)  # a second one changes nothing
        out, err = process.communicate()

    assert shown[1].endswith(DEMO_TASKS)
    assert (0, "", "") == (process.returncode, out, err)
    assert [] == servers_on(data_dir)


def test_a_killed_service_starts_again_with_all_its_tasks(data_dir: Path) -> None:
    with serving("--data-dir", str(data_dir)) as (process, url, _):
        recorded = task()
        audit("record", "-", "--url", url, given=lines(recorded))
        process.kill()
    with serving("--data-dir", str(data_dir), "--demo") as (_, url, _):
        assert 20_001 == get(f"{url}/api/v1/audit/query?limit=1")[1]["total"]
        assert 200 == get(f"{url}/api/v1/audit/tasks/{recorded['task_id']}")[0]

    assert [] == servers_on(data_dir)


@pytest.mark.parametrize("seconds", [0.6, 1.6])
def test_a_signal_at_any_moment_of_a_first_start_leaves_nothing_behind(
    tmp_path: Path, seconds: float
) -> None:
    with start("serve", "--demo", "--port", "0", "--data-dir", str(tmp_path)) as process:
        wait_until((tmp_path / "lock").exists)
        time.sleep(seconds)
        process.terminate()
        _, err = process.communicate()

    assert (0, "") == (process.returncode, err)
    assert [] == servers_on(tmp_path)


# --- worker processes -----------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_a_signal_to_the_parent_stops_them_all(dsn: str) -> None:
    with serving("--dsn", dsn, "--workers", "2", log=subprocess.PIPE) as (process, url, _):
        assert 200 == get(f"{url}/readyz")[0]
        first = workers_of(process)
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(workers_of(process) - first) == 1)
        status, _ = get(f"{url}/readyz")
        workers = workers_of(process)
        process.terminate()
        _, err = process.communicate()

    assert (200, 2) == (status, len(workers))
    assert err.endswith(f"Z WARNING worker {killed} ended with -9\n")
    assert 1 == len(err.splitlines())
    assert 0 == process.returncode
    assert [] == [pid for pid in workers if is_alive(pid)]


def processor_seconds(pid: int) -> float:
    """Processor time of a process; 0 if it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_parent_whose_workers_serve_takes_no_time(dsn: str) -> None:
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        get(f"{url}/readyz")
        before = processor_seconds(process.pid)
        time.sleep(2)
        taken = processor_seconds(process.pid) - before

    assert taken < 0.5


def test_workers_whose_parent_is_killed_end(dsn: str) -> None:
    with serving("--dsn", dsn, "--workers", "2") as (process, url, _):
        get(f"{url}/healthz")
        workers = workers_of(process)
        process.kill()

        assert 2 == len(workers)
        wait_until(lambda: not any(is_alive(pid) for pid in workers))


def test_workers_whose_parent_and_database_are_killed_end_without_a_busy_loop(
    tmp_path: Path,
) -> None:
    options = ("--data-dir", str(tmp_path), "--workers", "2", "--request-timeout-seconds", "1")
    with serving(*options) as (process, url, _):
        get(f"{url}/readyz")
        workers = workers_of(process) - set(servers_on(tmp_path))
        before = {pid: processor_seconds(pid) for pid in workers}
        last = dict(before)
        process.kill()
        for pid in servers_on(tmp_path):
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while alive := {pid for pid in workers if is_alive(pid)}:
            assert time.monotonic() - began < 60
            last |= {pid: processor_seconds(pid) for pid in alive}
            time.sleep(0.05)

    assert 2 == len(workers)
    assert all(last[pid] - before[pid] < 1 for pid in last)


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_an_orphaned_worker_ends_even_if_its_background_work_does_not(
    dsn: str, is_stubborn: bool
) -> None:
    program = f"""
import asyncio, sys, time
from audit.commands import main
from audit import deadlines
from audit.history.upkeep import Upkeep

async def lost(service):
    # The first cancellation is lost, as `asyncio.wait_for` may do before Python 3.12.
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not {is_stubborn} and asyncio.current_task().cancelling() > 1:
                raise

Upkeep._keep_counts_folded = lost
deadlines._CANCELLATIONS = 4
main.main()
"""
    options = ("--dsn", dsn, "--workers", "1", "--request-timeout-seconds", "1")
    with serving(*options, audit=(sys.executable, "-c", program)) as (process, url, _):
        get(f"{url}/healthz")
        (worker,) = workers_of(process)
        process.kill()

        wait_until(lambda: not is_alive(worker))


# --- serving --------------------------------------------------------------------------------------


def test_migrate_moves_a_schema_that_is_not_current(empty_dsn: str) -> None:
    with serving("--dsn", empty_dsn, "--migrate") as (_, url, _):
        assert 200 == get(f"{url}/readyz")[0]


def test_a_request_under_way_is_answered_before_the_end(dsn: str) -> None:
    with (
        serving("--dsn", dsn) as (process, url, _),
        psycopg.connect(dsn) as other,
        ThreadPoolExecutor() as pool,
    ):
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        answer = pool.submit(get, f"{url}/api/v1/audit/query")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '-- list_tasks: %'"
        )
        wait_until(lambda: execute(dsn, waiting))
        process.terminate()
        time.sleep(0.3)
        still_runs = process.poll() is None
        other.rollback()

        assert still_runs
        assert (200, 0) == (answer.result()[0], answer.result()[1]["total"])
        assert 0 == process.wait(60)


def test_a_worker_decompresses_bodies_itself(dsn: str) -> None:
    whole = gzip.compress(json.dumps([task() for _ in range(100)]).encode())
    deflated = zlib.compress(json.dumps(task()).encode())
    bodies = [
        (201, "gzip", whole),
        (201, "deflate", deflated),
        (400, "gzip", whole[:-20]),
        (400, "gzip", b"{}"),
        # aiohttp knows these, with or without the packages that decode them.
        (415, "br", b"{}"),
        (415, "zstd", b"{}"),
        (415, "other", b"{}"),
    ]
    with serving("--dsn", dsn) as (_, url, _):
        answers = [posted(f"{url}/api/v1/audit/tasks", body, coding) for _, coding, body in bodies]

    assert [status for status, _, _ in bodies] == answers
    assert [(101,)] == execute(dsn, "SELECT count(*) FROM tasks")


def posted(url: str, body: bytes, coding: str) -> int:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as done:
            return int(done.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def test_what_is_not_http_gets_a_problem(dsn: str) -> None:
    with serving("--dsn", dsn) as (_, url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")

    assert b"400" == head.split()[1]
    assert b"application/problem+json" in head
    assert 400 == json.loads(body)["status"]


def test_the_loop_is_uvloop() -> None:
    async def loop() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert "uvloop" == run(loop())
