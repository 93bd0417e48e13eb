"""Part 11: standbys of the server: what they cost, answer and save, and how long they lag."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from audit.dsn import parse
from audit.history.positions import parse_positions
from audit.history.service import AuditService
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.bench import load, systems
from tests.bench.client import Load, request
from tests.bench.figures import Figure, ReadOn, RecordedTo, Replicas, Shared, Waited
from tests.bench.reading import FEW, PAGE
from tests.bench.run import Bench
from tests.bench.shapes import API, Services, shapes
from tests.bench.systems import System
from tests.conftest import execute
from tests.replicas import standby_at, wait_for_replay
from tests.waiting import wait_until

_SHAPE: Final = "frequent service"
_RECORDERS: Final = 4
_BATCH: Final = 100
_WRITERS: Final = (0, 2)
_WRITTEN: Final = 20
_TASKS_URL: Final = f"{API}/tasks"
#: It has no id, so each request records new ones.
_TASK: Final = {
    "request_text": "Deploy payments release 7",
    "status": "completed",
    "services_touched": [Services.frequent],
    "outcome": {"action_type": "deploy_service"},
}
#: Unlike the standbys of tests, this one is durable.
_DURABLE: Final = {"fsync": "on", "full_page_writes": "on"}
_QUEUED: Final = "SELECT 1 FROM task_event_queue LIMIT 1"
_PATIENT: Final = Settings(pool_size=2, staleness_wait_seconds=60)
#: The work that standbys share: the pages to compute for each second of a round. For each ten pages
#: a task is recorded.
_PAGES: Final = 1000
_SHARED_SHAPES: Final = ("failures of 7 days", "frequent service", "the same and intent")
_SHARING: Final = 8


@dataclass(slots=True)
class _Waits:
    """What each round of reads beside some writers found."""

    writers: int
    reads: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    longest_ms: list[float] = field(default_factory=list)

    def add(self, waits: Sequence[float]) -> None:
        """Add a round: how many seconds each read waited."""
        ordered = [1000 * seconds for seconds in sorted(waits)]
        self.reads.append(len(ordered))
        self.p50_ms.append(ordered[len(ordered) // 2])
        self.p95_ms.append(ordered[len(ordered) * 95 // 100])
        self.longest_ms.append(ordered[-1])


def measure(bench: Bench) -> Replicas:
    """Return what a primary gave without and with standbys, on a copy of the database."""
    load.prepare(bench.dsn, bench.tasks, bench.progress)
    with (
        load.scratch(bench.dsn, bench.tasks) as dsn,
        systems.service(dsn) as service,
        systems.service(dsn, computing=True) as computing,
        tempfile.TemporaryDirectory() as folder,
    ):
        alone = _record(bench, service, dsn, None)
        options = {**load.SERVER, **_DURABLE}
        with standby_at(bench.dsn, Path(folder) / "standby", **options) as standby:
            copied = load.of_database(standby.dsn, _name(dsn))
            wait_for_replay(dsn, copied)
            recorded = _record(bench, service, dsn, copied)
            with systems.service(copied, computing=True) as on_standby:
                read = _read(bench, {computing: dsn, on_standby: copied})
            waited = asyncio.run(_wait(bench, service, copied))
            unshared = _share(bench, computing, dsn, [])
            with standby_at(bench.dsn, Path(folder) / "second", **options) as second:
                standbys = [copied, load.of_database(second.dsn, _name(dsn))]
                hosts = ",".join(parse(standby).hosts[0].name for standby in standbys)
                names = f"host={hosts} user={parse(dsn)['user']} dbname={_name(dsn)}"
                with systems.service(dsn, computing=True, read_dsn=names) as sharing:
                    shared = _share(bench, sharing, dsn, standbys)
    return Replicas(waited=waited, read=read, recorded=[alone, recorded], shared=[unshared, shared])


def _name(dsn: str) -> str:
    return dsn.partition("?")[0].rpartition("/")[2]


def _record(bench: Bench, service: System, dsn: str, standby: str | None) -> RecordedTo:
    body = json.dumps([_TASK] * _BATCH).encode()
    message = request(_TASKS_URL, service.host, body=body)
    sending = Load(service.host, service.port, [message], _RECORDERS, bench.seconds)
    servers = [systems.postmaster(one) for one in (dsn, standby) if one is not None]
    per_second: list[float] = []
    spent: list[list[float]] = [[] for _ in servers]
    for _ in bench.in_turns("recording with a standby" if standby else "recording", [None]):
        before = [systems.cpu_seconds(server) for server in servers]
        posted = bench.client.send(sending, 201)
        wait_until(lambda: not execute(dsn, _QUEUED))
        if standby is not None:
            wait_for_replay(dsn, standby)
        tasks = len(posted.latencies) * _BATCH
        per_second.append(posted.per_second * _BATCH)
        for number, server in enumerate(servers):
            used = systems.cpu_seconds(server) - before[number]
            spent[number].append(1e6 * used / tasks)
    return RecordedTo(
        standbys=len(servers) - 1,
        per_second=Figure.of(per_second),
        primary_cpu_us=Figure.of(spent[0]),
        standby_cpu_us=Figure.of(spent[1]) if standby else None,
    )


def _read(bench: Bench, services: dict[System, str]) -> list[ReadOn]:
    (shape,) = (one for one in shapes(bench.tasks) if one.name == _SHAPE)
    per_second: dict[System, list[float]] = {service: [] for service in services}
    cpu_ms: dict[System, list[float]] = {service: [] for service in services}
    postmasters = {service: systems.postmaster(dsn) for service, dsn in services.items()}
    for service in bench.in_turns("reading on a standby", list(services)):
        before = systems.cpu_seconds(postmasters[service])
        asked = bench.ask(service, shape.target(PAGE), FEW)
        used = systems.cpu_seconds(postmasters[service]) - before
        per_second[service].append(asked.per_second)
        cpu_ms[service].append(1000 * used / len(asked.latencies))
    return [
        ReadOn(
            server=name,
            per_second=Figure.of(per_second[service]),
            postgresql_cpu_ms=Figure.of(cpu_ms[service]),
        )
        for name, service in zip(("primary", "standby"), services, strict=True)
    ]


def _share(bench: Bench, service: System, dsn: str, standbys: Sequence[str]) -> Shared:
    """Compute pages and record tasks, first unmeasured, so that every session is open."""
    every = {shape.name: shape for shape in shapes(bench.tasks)}
    targets = [every[name].target(PAGE) for name in _SHARED_SHAPES]
    messages = [request(target, service.host) for target in targets]
    pages = [*itertools.islice(itertools.cycle(messages), max(3, int(_PAGES * bench.seconds)))]
    task = request(_TASKS_URL, service.host, body=json.dumps([_TASK]).encode())
    reading = Load(service.host, service.port, pages, _SHARING, 60, once=True)
    recording = Load(
        service.host, service.port, [task] * (len(pages) // 10 or 1), _RECORDERS, 60, once=True
    )
    processes = [service.pid, *map(systems.postmaster, (dsn, *standbys))]
    spent: list[list[float]] = [[] for _ in processes]

    def work() -> None:
        wait_for_recorders = bench.writer.start(recording, 201)
        bench.client.send(reading)
        wait_for_recorders()
        wait_until(lambda: not execute(dsn, _QUEUED))
        for standby in standbys:
            wait_for_replay(dsn, standby)

    work()
    part = "sharing with standbys" if standbys else "sharing with none"
    for _ in bench.in_turns(part, [None]):
        before = [systems.cpu_seconds(process) for process in processes]
        work()
        for number, process in enumerate(processes):
            spent[number].append(systems.cpu_seconds(process) - before[number])
    on_service, on_primary, *on_standbys = map(Figure.of, spent)
    return Shared(
        standbys=len(standbys),
        pages=len(pages),
        tasks=len(recording.requests),
        primary_cpu=on_primary,
        standbys_cpu=on_standbys,
        service_cpu=on_service,
    )


async def _wait(bench: Bench, primary: System, standby: str) -> list[Waited]:
    """Record a task again and again, and wait each time until the standby has it."""
    body = json.dumps([_TASK] * _WRITTEN).encode()
    message = request(_TASKS_URL, primary.host, body=body)
    # This also starts the process of the writers.
    bench.writer.send(Load(primary.host, primary.port, [message], 1, 10, once=True), 201)
    cases = [_Waits(writers) for writers in _WRITERS]
    async with open_pool(_PATIENT, standby) as pool:
        service = AuditService(pool)
        for case in bench.in_turns("waiting for a standby", cases):
            writing = Load(primary.host, primary.port, [message], case.writers, bench.seconds)
            wait_for_writers = bench.writer.start(writing, 201) if case.writers else None
            case.add(await _wait_for_writes(service, primary, bench.seconds))
            if wait_for_writers is not None:
                wait_for_writers()
    return [
        Waited(
            writers=case.writers,
            reads=Figure.of(case.reads),
            p50_ms=Figure.of(case.p50_ms),
            p95_ms=Figure.of(case.p95_ms),
            longest_ms=Figure.of(case.longest_ms),
        )
        for case in cases
    ]


async def _wait_for_writes(service: AuditService, primary: System, seconds: float) -> list[float]:
    """Return how many seconds each read waited, apart from the rest of its request."""
    waits: list[float] = []
    connection = http.client.HTTPConnection(primary.host, primary.port)
    until = time.monotonic() + seconds
    while not waits or time.monotonic() < until:
        connection.request(
            "POST", _TASKS_URL, json.dumps(_TASK), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        response.read()
        positions = parse_positions([response.headers["Audit-Position"]])
        began = time.perf_counter()
        await service.positions.require(positions)
        waits.append(time.perf_counter() - began)
    connection.close()
    return waits
