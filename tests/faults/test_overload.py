"""More clients than the service can answer: it answers as many as before, the others are told."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest

from audit import statements
from tests.bench.client import Load, Outcome, request, run
from tests.conftest import Client, execute
from tests.faults.load import API, running, until
from tests.processes import serving
from tests.test_server import get

Figure = Callable[[str], None]

ROUNDS = int(os.environ.get("AUDIT_FAULTS_ROUNDS", "3"))
SECONDS = 3
#: So many keep two cores busy.
ENOUGH = 16


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a database of 20,000 demo tasks."""
    return tmp_path_factory.mktemp("overload")


async def answers(url: str, clients: int, targets: Iterator[str]) -> Counter[bytes]:
    """Ask for some seconds, all at once; a client that is told to come again does so then."""
    host, port = url.removeprefix("http://").split(":")
    until = time.monotonic() + SECONDS
    statuses: Counter[bytes] = Counter()

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < until:
            writer.write(f"GET {next(targets)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            if time.monotonic() < until:
                statuses[head[9:12]] += 1
            if head[9:12] == b"503":
                after = int(head.partition(b"retry-after: ")[2].partition(b"\r")[0])
                await asyncio.sleep(after * random.uniform(1, 1.5))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(clients)))
    return statuses


def questions() -> Iterator[str]:
    """Each another one, so that none is answered from memory."""
    number = 0
    while True:
        number += 1
        yield f"{API}/query?days={1 + number % 90}&limit=20&offset={number}"


@pytest.mark.faults
@pytest.mark.parametrize("limit", os.environ.get("AUDIT_FAULTS_IN_FLIGHT", "64").split(","))
async def test_throughput_stays_past_saturation(history: Path, figure: Figure, limit: str) -> None:
    options = ("--demo", "--data-dir", str(history), "--max-in-flight", limit)
    counts = (ENOUGH, 4 * ENOUGH, 4 * max(ENOUGH, int(limit)))
    found: dict[int, list[Counter[bytes]]] = {clients: [] for clients in counts}
    async with running(*options) as (_, url):
        targets = questions()
        for _ in range(ROUNDS):
            for clients, rounds in found.items():
                rounds.append(await answers(url, clients, targets))

    for clients, rounds in found.items():
        ratios = [now[b"200"] / base[b"200"] for now, base in zip(rounds, found[ENOUGH],
                                                                  strict=True)]  # fmt: skip
        told = sum(rounds, Counter[bytes]())
        figure(
            f"{clients} clients: {told[b'200'] / ROUNDS / SECONDS:.0f} answers and "
            f"{told[b'503'] / ROUNDS / SECONDS:.0f} refusals a second, "
            f"{statistics.median(ratios):.2f} of those of {ENOUGH}"
        )
        assert set(told) <= {b"200", b"503"}
        assert told[b"200"]
    assert told[b"503"]


@pytest.fixture
def core() -> Iterator[int]:
    """A core for the client alone: what the test starts beside it has the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        pytest.skip("a client on the core of the service takes the time that is measured")
    os.sched_setaffinity(0, cores[1:])
    yield cores[0]
    os.sched_setaffinity(0, cores)


@pytest.mark.faults
def test_throughput_stays_while_a_client_waits_for_nothing(
    history: Path, figure: Figure, core: int
) -> None:
    options = ("--demo", "--data-dir", str(history))
    found: dict[int, list[Outcome]] = {1: [], 2: [], 4: []}
    with (
        serving(*options, log=None, AUDIT_ANSWERS_BYTES="0") as (_, url, _),
        ProcessPoolExecutor(
            1, get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, {core})
        ) as client,
    ):
        get(f"{url}/readyz")
        host, port = url.removeprefix("http://").split(":")
        asked = [request(target, host) for target in islice(questions(), 5000)]
        closed = Load(host, int(port), asked, ENOUGH, SECONDS)
        client.submit(run, closed).result()  # sessions and pages that are new
        for _ in range(ROUNDS):
            found[1].append(client.submit(run, closed).result())
            for times in (2, 4):
                rate = times * found[1][-1].per_second
                load = replace(closed, connections=400, rate=rate)
                found[times].append(client.submit(run, load).result())

    for times, rounds in found.items():
        ratios = [
            (now.statuses[200] / now.seconds) / peak.per_second
            for now, peak in zip(rounds, found[1], strict=True)
        ]
        told = sum((now.statuses for now in rounds), Counter[int]())
        seconds = sum(now.seconds for now in rounds)
        figure(
            f"{times} times the peak: {told[200] / seconds:.0f} answers and "
            f"{told[503] / seconds:.0f} refusals a second, {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) of the peak"
        )
        assert set(told) <= {200, 503}
        assert told[200]
    assert told[503]


@pytest.mark.parametrize("filters", [3, 40])
async def test_expensive_questions_leave_connections_to_the_cheap_ones(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch, filters: int
) -> None:
    slowly = f"SELECT at.* FROM pg_sleep(0.3), ({statements.LOCATE_PORTION}\n) AS at"
    monkeypatch.setattr(statements, "LOCATE_PORTION", slowly)
    working = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND query LIKE 'SELECT at.%' AND pid <> pg_backend_pid()"
    )

    async def ask(number: int) -> int:
        return (await client.get(f"{API}/query?created_by=ada{number}")).status

    asking = [asyncio.create_task(ask(number)) for number in range(filters)]
    await until(lambda: execute(dsn, working)[0][0])
    for number in range(10):
        assert (await client.get(f"{API}/query?limit={number + 1}")).status == 200
        assert execute(dsn, working)[0][0] <= 1
    statuses = Counter(await asyncio.gather(*asking))

    # Half of the requests that may be under way.
    assert {200: min(filters, 32), 503: filters - min(filters, 32)} == {503: 0, **statuses}
