"""More clients than the service can answer: they wait in turn, and few are asked to come back."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from audit.history.paging import Pager
from audit.web.state import SERVICE
from tests.conftest import Client, execute
from tests.faults.load import API, running
from tests.waiting import until

Figure = Callable[[str], None]

SECONDS = float(os.environ.get("AUDIT_FAULTS_SECONDS", "6"))
#: All clients begin in one moment, as they do not in use; this long after it, nothing is counted.
SETTLING_SECONDS = 3
QUEUE_SECONDS = 2.0
#: So many keep two cores busy.
ENOUGH = 16


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a database of 20,000 demo tasks."""
    return tmp_path_factory.mktemp("overload")


@dataclass
class Answers:
    """What came of a closed loop."""

    statuses: Counter[int] = field(default_factory=Counter)
    #: Of what was answered 200, from the request that was not refused.
    seconds: list[float] = field(default_factory=list)
    #: Clients that were refused, waited as Retry-After says, and were refused again.
    refused_again: int = 0

    @property
    def per_second(self) -> float:
        return self.statuses[200] / SECONDS

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]

    def __str__(self) -> str:
        return (
            f"{self.per_second:.0f} answers and {self.statuses[503] / SECONDS:.0f} refusals a"
            f" second, p99 {self.p99:.2f} s, refused again {self.refused_again}"
        )


async def closed_loop(
    url: str, clients: int, targets: Iterator[str], *, waits: bool = True
) -> Answers:
    """Ask from as many connections, each of which asks again when it has its answer.

    A client that is refused sends the same request again. If `waits`, it first waits for the
    seconds of Retry-After.
    """
    host, port = url.removeprefix("http://").split(":")
    came = Answers()
    start = asyncio.Event()
    connected = itertools.count(1)
    begins_at = ends_at = 0.0

    async def ask() -> None:
        nonlocal begins_at, ends_at
        reader, writer = await asyncio.open_connection(host, int(port))
        if next(connected) == clients:
            begins_at = time.monotonic() + SETTLING_SECONDS
            ends_at = begins_at + SECONDS
            start.set()
        await start.wait()
        target, refusals = next(targets), 0
        while (began := time.monotonic()) < ends_at:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            status = int(head[9:12])
            if begins_at <= (now := time.monotonic()) < ends_at:
                came.statuses[status] += 1
            if status == 503:
                came.refused_again += refusals > 0 and now > begins_at
                refusals += 1
                after = int(head.partition(b"retry-after: ")[2].partition(b"\r")[0])
                if waits:
                    await asyncio.sleep(after * random.uniform(1, 1.05))
            else:
                if now > begins_at:
                    came.seconds.append(now - began)
                target, refusals = next(targets), 0
        writer.close()

    await asyncio.gather(*(ask() for _ in range(clients)))
    return came


def different() -> Iterator[str]:
    """Questions of about the same cost; two that are equal are far from each other."""
    return (
        f"{API}/query?days={1 + number % 90}&limit=20&offset={number % 91}"
        for number in itertools.count()
    )


def computing(history: Path, *options: str) -> AbstractAsyncContextManager[tuple[object, str]]:
    """Run one worker that computes every answer."""
    options = ("--demo", "--data-dir", str(history), "--workers", "1", *options)
    return running(*options, AUDIT_ANSWERS_BYTES="0")


def same() -> Iterator[str]:
    return itertools.repeat(f"{API}/query?limit=20")


@pytest.mark.faults
async def test_the_same_question_is_never_refused(history: Path, figure: Figure) -> None:
    async with running("--demo", "--data-dir", str(history), "--workers", "1") as (_, url):
        for clients in (128, 256, 1000):
            came = await closed_loop(url, clients, same())
            figure(f"{clients} connections: {came}")
            assert set(came.statuses) == {200}


@pytest.mark.faults
async def test_different_questions_wait_and_few_are_refused(history: Path, figure: Figure) -> None:
    async with computing(history) as (_, url):
        for clients in (128, 256, 1000):
            await compare(url, clients, QUEUE_SECONDS, figure)
        rate = (await closed_loop(url, ENOUGH, different())).per_second
        await compare(url, int(0.7 * QUEUE_SECONDS * rate), QUEUE_SECONDS, figure)


@pytest.mark.faults
@pytest.mark.parametrize("waits", [True, False])
async def test_above_the_limit_throughput_stays_and_clients_that_wait_are_served(
    history: Path, figure: Figure, waits: bool
) -> None:
    """With a lower limit, so that a thousand connections are several times what it admits.

    The clients have a core of their own, so that their work for refusals takes none of the service.
    """
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        async with computing(history, "--queue-seconds", "1") as (_, url):
            os.sched_setaffinity(0, {max(cores)})
            least_share = 0.85 if waits else 0.5
            came = await compare(url, 1000, 1, figure, waits=waits, least_share=least_share)
    finally:
        os.sched_setaffinity(0, cores)
    assert came.statuses[503]


async def compare(
    url: str,
    clients: int,
    queue_seconds: float,
    figure: Figure,
    *,
    waits: bool = True,
    least_share: float = 0.6,
) -> Answers:
    """Compare a load with that of a few clients before and after it.

    The promises are about time, so other work on the machine can break them. They are tried up to
    three times.
    """
    targets = different()
    for _ in range(3):
        before = await closed_loop(url, ENOUGH, targets)
        came = await closed_loop(url, clients, targets, waits=waits)
        after = await closed_loop(url, ENOUGH, targets)
        peak = (before.per_second + after.per_second) / 2
        figure(
            f"{clients} connections: {came}; {came.per_second / peak:.2f} of the"
            f" {before.per_second:.0f} before and {after.per_second:.0f} after, {ENOUGH}"
            " connections"
        )
        assert set(came.statuses) <= {200, 503}
        refusals = came.statuses[503]
        fits_in_the_queue = clients < 0.8 * queue_seconds * came.per_second
        promises = {
            "throughput": came.per_second > least_share * peak,
            "p99": not waits or came.p99 < queue_seconds + 1,
            "no refusal while there is room": not (fits_in_the_queue and refusals),
            "few are refused again": not waits or came.refused_again <= 0.05 * refusals + 2,
        }
        if all(promises.values()):
            break
    assert all(promises.values()), promises
    return came


@pytest.mark.parametrize("filters", [3, 40])
async def test_expensive_requests_leave_connections_to_the_cheap_ones(
    client: Client, dsn: str, filters: int
) -> None:
    tallying = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND query LIKE '-- read_tally:%'"
    )

    async def ask(number: int) -> int:
        return (await client.get(f"{API}/query?created_by=ada{number}")).status

    # As in a long history, tallies are saved: the lock then makes them take long.
    client.app[SERVICE].sources.primary.pager = Pager(short=0)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE task_tallies")
        asking = [asyncio.create_task(ask(number)) for number in range(filters)]
        await until(lambda: execute(dsn, tallying)[0][0])
        for number in range(10):
            assert (await client.get(f"{API}/query?limit={number + 1}")).status == 200
            assert execute(dsn, tallying)[0][0] == 1
    statuses = Counter(await asyncio.gather(*asking))

    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 3
