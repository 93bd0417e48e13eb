"""Part 8: repeated questions while another client records tasks at a fixed rate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.bench import load, systems
from tests.bench.client import Load, request
from tests.bench.figures import Figure, Mixed, ratio
from tests.bench.reading import FEW, PAGE, cursor_of
from tests.bench.run import Bench
from tests.bench.shapes import API, Services, Shape, shapes
from tests.bench.systems import System

RATES = (0, 1, 10, 100, 1000)
_WRITING_CONNECTIONS = 64
_MONTH = ("days", "30")
_SETTLING_SECONDS = 1
_CREATED = 201
#: The task that each write records. It changes the answers to some questions and not to others.
_WRITTEN = {
    "request_text": "Deploy payments release 7",
    "status": "completed",
    "services_touched": [Services.frequent],
    "outcome": {"action_type": "deploy_service"},
}


@dataclass(slots=True)
class _Case:
    """Some questions beside one rate of writes, and what each round found."""

    questions: str
    requests: Sequence[bytes]
    rate: int
    answered: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    service_cores: list[float] = field(default_factory=list)
    postgresql_cores: list[float] = field(default_factory=list)
    clients_cores: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Mixed]:
    """Return what the reader got beside each rate of writes, on a copy of the database."""
    load.prepare(bench.dsn, bench.tasks, bench.progress)
    with load.scratch(bench.dsn, bench.tasks) as dsn, systems.service(dsn) as service:
        write = request(f"{API}/tasks", service.host, body=json.dumps(_WRITTEN).encode())
        groups = dict(_groups(bench, service, write))
        cases = [
            _Case(questions, [request(target, service.host) for target in targets], rate)
            for questions, targets in groups.items()
            for rate in RATES
        ]
        postmaster = systems.postmaster(dsn)
        for case in bench.in_turns("mixed", cases):
            _run(bench, service, postmaster, case, write)
    undisturbed = {case.questions: case for case in cases if case.rate == 0}
    return [
        Mixed(
            questions=case.questions,
            different=len(case.requests),
            writes_due=case.rate,
            writes_per_second=Figure.if_any(case.written),
            write_p99_ms=Figure.if_any(case.p99_ms),
            per_second=Figure.of(case.answered),
            to_no_writes=ratio(case.answered, undisturbed[case.questions].answered),
            service_cores=Figure.of(case.service_cores),
            postgresql_cores=Figure.of(case.postgresql_cores),
            clients_cores=Figure.of(case.clients_cores),
        )
        for case in cases
    ]


def _groups(bench: Bench, service: System, write: bytes) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the name and the targets of each group of questions.

    A question is affected if one write changes its answer.
    """
    plain = [shape for shape in shapes(bench.tasks) if not _has_days(shape)]
    windowed = [shape for shape in shapes(bench.tasks) if _has_days(shape)] + [
        replace(shape, filters=(*shape.filters, _MONTH)) for shape in plain if not shape.skipped
    ]
    for name, some in (("without days", plain), ("with days", windowed)):
        targets = [shape.target(PAGE, cursor_of(service, shape)) for shape in some]
        before = [service.get(target)[0] for target in targets]
        # This also starts the process of the writer.
        bench.writer.send(Load(service.host, service.port, [write], 1, 10, once=True), _CREATED)
        after = [service.get(target)[0] for target in targets]
        unaffected = [
            target for target, old, new in zip(targets, before, after, strict=True) if old == new
        ]
        yield f"not affected, {name}", unaffected
        yield f"all, {name}", targets


def _has_days(shape: Shape) -> bool:
    return any(name == "days" for name, _ in shape.filters)


def _run(bench: Bench, service: System, postmaster: int, case: _Case, write: bytes) -> None:
    reading = Load(service.host, service.port, case.requests, FEW, bench.seconds)
    writing = replace(
        reading, requests=[write], connections=_WRITING_CONNECTIONS, rate=float(case.rate)
    )
    # Every worker has every answer, and what the case before left to do is done.
    bench.client.send(replace(reading, seconds=min(_SETTLING_SECONDS, bench.seconds)))
    before = [systems.cpu_seconds(pid) for pid in (service.pid, postmaster)]
    wait_for_writer = bench.writer.start(writing, _CREATED) if case.rate else None
    answered = bench.client.send(reading)
    after = [systems.cpu_seconds(pid) for pid in (service.pid, postmaster)]
    used = [(end - start) / answered.seconds for start, end in zip(before, after, strict=True)]
    case.answered.append(answered.per_second)
    case.service_cores.append(used[0])
    case.postgresql_cores.append(used[1])
    case.clients_cores.append(answered.cores)
    if wait_for_writer is not None:
        written = wait_for_writer()
        # A writer that cannot keep to its rate takes longer than the reader.
        seconds = max(written.seconds, bench.seconds)
        case.written.append(len(written.latencies) / seconds)
        case.p99_ms.append(written.percentile_ms(99))
        case.clients_cores[-1] += written.cores
