"""Part 5: how fast tasks are recorded, against a bare COPY into the same table."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import load, systems
from tests.bench.client import Load, request
from tests.bench.figures import Figure, Recording, ratio
from tests.bench.run import Bench
from tests.bench.shapes import API
from tests.bench.systems import System
from tests.processes import AUDIT

#: More than can be recorded in a second, by the size of a batch: requests are made beforehand.
_AT_MOST_A_SECOND = {1: 4_000, 100: 25_000, 1000: 40_000}
_COPIED_A_SECOND = 10_000
#: So many that the start of the command weighs little.
_FILE_A_SECOND = 30_000
_CONNECTIONS = (1, 4)
_COPY = "COPY, all at once"
_BARE = Path(__file__).parent / "bare.sql"


@dataclass(slots=True)
class _Way:
    """One way to record, and how many tasks per second it gave."""

    name: str
    connections: int
    #: Returns tasks per second.
    run: Callable[[], float]
    per_second: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Recording]:
    """Return what each way gave, on a copy of the database that is dropped afterwards."""
    load.prepare(bench.dsn, bench.tasks, bench.progress)
    with load.scratch(bench.dsn, bench.tasks) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute(_BARE.read_bytes())
        with systems.service(dsn) as service:
            ways = list(_ways(bench, dsn, service))
            for way in bench.in_turns("recording", ways):
                way.per_second.append(way.run())
    copied = next(way.per_second for way in ways if way.name == _COPY)
    return [
        Recording(
            way=way.name,
            connections=way.connections,
            per_second=Figure.of(way.per_second),
            to_copy=ratio(way.per_second, copied),
        )
        for way in ways
    ]


def _ways(bench: Bench, dsn: str, service: System) -> Iterator[_Way]:
    copied = max(int(_COPIED_A_SECOND * bench.seconds), 1)
    in_file = max(int(_FILE_A_SECOND * bench.seconds), 1)
    url = f"http://{service.host}:{service.port}"
    yield _Way(_COPY, 1, partial(_copy, dsn, copied, copied, 1))
    for connections in _CONNECTIONS:
        run = partial(_copy, dsn, copied, 1000, connections)
        yield _Way("COPY, 1,000 a transaction", connections, run)
    for size, connections in itertools.product(_AT_MOST_A_SECOND, _CONNECTIONS):
        yield _Way(
            f"POST of {size:,}", connections, partial(_post, bench, service, size, connections)
        )
    yield _Way("audit record --url", 1, partial(_record, in_file, "--url", url))
    yield _Way("audit record --dsn", 1, partial(_record, in_file, "--dsn", dsn))


def _post(bench: Bench, service: System, size: int, connections: int) -> float:
    batches = max(int(_AT_MOST_A_SECOND[size] * bench.seconds / size), connections)
    tasks = load.new_tasks(batches * size)
    requests = []
    for _ in range(batches):
        batch = list(itertools.islice(tasks, size))
        body = json.dumps(batch if size > 1 else batch[0]).encode()
        requests.append(request(f"{API}/tasks", service.host, body=body))
    posted = bench.client.send(
        Load(service.host, service.port, requests, connections, bench.seconds, once=True), 201
    )
    return posted.per_second * size


def _record(count: int, option: str, target: str) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as file:
        file.writelines(json.dumps(task) + "\n" for task in load.new_tasks(count))
        file.flush()
        began = time.perf_counter()
        done = subprocess.run(
            [AUDIT, "record", option, target, file.name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        took = time.perf_counter() - began
    assert done.stdout == f"recorded {count:,}, duplicates 0\n", done.stdout
    return count / took


def _copy(dsn: str, count: int, in_transaction: int, connections: int) -> float:
    """COPY texts made beforehand; each connection has its share of them."""
    lines = map(load.copy_line, load.new_tasks(count))
    texts = []
    while text := "".join(itertools.islice(lines, in_transaction)):
        texts.append(text.encode())
    statement = load.COPY_IN.replace("COPY tasks", "COPY bare")

    def send(share: Sequence[bytes], connection: psycopg.Connection[Any]) -> None:
        for text in share:
            with connection.cursor().copy(statement) as copy:
                copy.write(text)

    sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(connections)]
    threads = [
        threading.Thread(target=send, args=(texts[number::connections], session))
        for number, session in enumerate(sessions)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    for session in sessions:
        session.close()
    return count / took
