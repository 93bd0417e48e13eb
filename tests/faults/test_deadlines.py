"""Nothing waits for ever: neither for PostgreSQL, nor for a client."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import psycopg
import pytest

from tests.conftest import execute, task
from tests.faults.load import API, Load, Proxy, recorded, running
from tests.waiting import until

Figure = Callable[[str], None]
BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'task-audit'"
    " AND datname = current_database() AND state <> 'idle'"
)
SESSIONS = BUSY.replace(" AND state <> 'idle'", "")
#: A connection of each worker on which it reads the keys, beside its pool.
FOR_KEYS = 1


@asynccontextmanager
async def behind_a_proxy(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    async with (
        Proxy(dsn) as proxy,
        running("--dsn", proxy.dsn, "--request-timeout-seconds", "1.5",
                "--statement-timeout-seconds", "1", "--acquire-timeout-seconds", "1",
                "--queue-seconds", "0.5", "--workers", "1", "--pool-size", "8") as (_, url),
    ):  # fmt: skip
        yield proxy, url


@pytest.mark.faults
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_stalled_network_ends_each_request_in_time(
    dsn: str, figure: Figure, is_cut: bool
) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> float:
        """Ask what takes a connection at once; return how long it took."""
        started = time.monotonic()
        path = "/tasks/7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"
        assert (await session.get(f"{url}{API}{path}")).status in {503, 504}
        return time.monotonic() - started

    async with (
        behind_a_proxy(dsn) as (proxy, url),
        Load(url, recorders=2) as load,
        aiohttp.ClientSession() as session,
    ):
        await load.until_success()
        proxy.stall()
        waits = await asyncio.gather(*(ask(session, url) for _ in range(6)))
        await asyncio.sleep(2.5)
        slowest = max(load.slowest, *waits)
        if is_cut:
            proxy.cut()
        proxy.flow()
        seconds = await load.until_calm()
        with psycopg.connect(dsn) as other:
            # It waits for who records, through the proxy, which runs here.
            await asyncio.to_thread(other.execute, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            path = f"{url}{API}/tasks/7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"
            asking = [asyncio.create_task(session.get(path)) for _ in range(8)]
            # Each connection for reading is one again.
            await until(lambda: waiting(dsn) >= 3)
        await asyncio.gather(*asking)

    figure(
        f"slowest answer to a question {max(waits):.2f} s of 1.5, to all {slowest:.2f};"
        f" first success {seconds:.2f} s after; {load.failures}"
    )
    assert set(load.failures) <= {503, 504}
    assert sum(load.failures.values()) >= 6
    assert max(waits) < 4
    # A write is answered when it has ended: its turn, a statement, and 2 seconds for the network.
    assert slowest < 10
    assert load.acknowledged <= recorded(dsn)
    assert execute(dsn, "SELECT count(*) FROM task_keys")[0][0] == len(recorded(dsn))


@pytest.mark.faults
async def test_cancelled_requests_leak_nothing(dsn: str, figure: Figure) -> None:
    requests = 5000
    head = "GET /api/v1/audit/query?days={}&offset={} HTTP/1.1\r\nHost: a\r\n\r\n"

    async with running("--dsn", dsn, "--workers", "1", "--pool-size", "4") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        gate = asyncio.Semaphore(50)

        async def leave(number: int) -> None:
            async with gate:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(head.format(1 + number % 365, number).encode())
                await asyncio.sleep(number % 13 / 1000)
                writer.transport.abort()

        async with aiohttp.ClientSession() as session:
            for number in range(50):
                await leave(number)
            before = open_files(process.pid)
            await asyncio.gather(*(leave(number) for number in range(requests)))
            await asyncio.sleep(0.5)
            answers = [(await session.get(f"{url}{API}/query?limit={n + 1}")).status
                       for n in range(20)]  # fmt: skip
            await until(lambda: execute(dsn, BUSY)[0][0] == 0)
            sessions = execute(dsn, SESSIONS)[0][0]
        await until(lambda: open_files(process.pid) <= before + 2)
        after = open_files(process.pid)

    figure(f"{requests} cancelled: {sessions} sessions, files {before} {after}")
    assert [200] * 20 == answers
    assert 4 + FOR_KEYS == sessions


def open_files(parent: int) -> int:
    """How many files the worker of a service has open."""
    (worker,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


async def test_a_client_that_leaves_has_its_query_cancelled_and_its_write_done(dsn: str) -> None:
    sent = task()
    async with running("--dsn", dsn) as (_, url):
        async with aiohttp.ClientSession() as session:
            with psycopg.connect(dsn) as other:
                other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
                asking = asyncio.create_task(session.get(f"{url}{API}/query?limit=3"))
                writing = asyncio.create_task(session.post(f"{url}{API}/tasks", json=sent))
                await until(lambda: waiting(dsn) == 2)
                asking.cancel()
                writing.cancel()
                await until(lambda: waiting(dsn) == 1)
        await until(lambda: sent["task_id"] in recorded(dsn))


def waiting(dsn: str) -> int:
    """How many requests wait for a lock; the upkeep of the service waits as well."""
    upkeep = "query ~ '^-- (fold_counts|make_coming_partitions):'"
    query = f"{BUSY} AND wait_event_type = 'Lock' AND NOT {upkeep}"
    found: int = execute(dsn, query)[0][0]
    return found


# --- clients --------------------------------------------------------------------------------------


@contextmanager
def connected(url: str, buffer: int | None = None) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as client:
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(20)
        client.connect((host, int(port)))
        yield client


def read_all(client: socket.socket) -> bytes:
    read = b""
    try:
        while data := client.recv(1 << 20):
            read += data
    except ConnectionResetError:
        pass
    return read


SLOW: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "head": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ", b"a"),
    "body": (
        b"POST /api/v1/audit/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n"  # noqa: ISC004
        b"Content-Type: application/json\r\n\r\n",
        b"[",
    ),
}


@pytest.mark.parametrize("slow", SLOW)
async def test_a_slow_writer_is_cut_off(dsn: str, slow: str) -> None:
    def write(url: str) -> tuple[float, bytes]:
        first, then = SLOW[slow]
        started = time.monotonic()
        with connected(url) as client:
            client.sendall(first)
            client.settimeout(0.1)
            while (seconds := time.monotonic() - started) < 15:
                try:
                    client.sendall(then)
                    read = client.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    read = b""
                return seconds, read
        return seconds, b""

    async with running("--dsn", dsn, "--request-timeout-seconds", "1",
                       "--idle-timeout-seconds", "1") as (_, url):  # fmt: skip
        seconds, read = await asyncio.to_thread(write, url)

    assert 0.9 < seconds < 15
    assert read.startswith(b"HTTP/1.1 408 ") == (slow == "body")


@pytest.mark.faults
async def test_a_client_that_does_not_read_is_cut_off(dsn: str, figure: Figure) -> None:
    tasks = [task(request_text="a" * 60_000) for _ in range(300)]
    size = len(json.dumps(tasks))

    def ask(url: str) -> bytes:
        with connected(url, 4096) as client:
            client.sendall(b"GET /api/v1/audit/query?limit=1000 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(4)
            return read_all(client)

    async with running("--dsn", dsn, "--request-timeout-seconds", "1") as (_, url):
        async with aiohttp.ClientSession() as session:
            for i in range(0, len(tasks), 10):
                answer = await session.post(f"{url}{API}/tasks", json=tasks[i : i + 10])
                assert answer.status == 201
        read = await asyncio.to_thread(ask, url)

    figure(f"{len(read):,} of {size:,} bytes were sent")
    assert read.startswith(b"HTTP/1.1 200 ")
    assert len(read) < 0.9 * size


async def test_connections_over_the_limit_get_503(dsn: str) -> None:
    asking = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    def crowd(url: str) -> list[bytes]:
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(url)) for _ in range(4)]
            told = [read_all(clients.pop())]
            for client in clients:
                client.sendall(asking)
                told.append(read_all(client))
        with connected(url) as client:
            client.sendall(asking)
            told.append(read_all(client))
        return told

    async with running("--dsn", dsn, "--workers", "1", "--max-connections", "3") as (_, url):
        told = await asyncio.to_thread(crowd, url)

    head, _, body = told[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert b"application/problem+json" in head
    assert 503 == json.loads(body)["status"]
    assert [b"200"] * 4 == [answer.split()[1] for answer in told[1:]]
