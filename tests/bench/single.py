"""Part 9: requests that each record or change one task, against plain tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import limit, load, systems
from tests.bench.client import Load, request
from tests.bench.figures import Figure, Single, ratio
from tests.bench.run import Bench
from tests.bench.shapes import API
from tests.bench.systems import System

_CONNECTIONS = (1, 4, 16, 64)
#: More than can be answered in a second: requests are made beforehand.
_AT_MOST_A_SECOND = 3_000
_AT_MOST_A_SECOND_IN_ALL = 15_000
_HERE = Path(__file__).parent
_PLAIN = _HERE / "plain"
_CREATED, _CHANGED = 201, 200


@dataclass(frozen=True, slots=True)
class _Way:
    """What the service gets for one task, and pgbench's script that does the same."""

    name: str
    #: Requests for one task, one after the other.
    requests: int
    script: str


_WAYS = (
    _Way("POST", 1, "post.sql"),
    _Way("POST and two PATCHes", 3, "post_and_patch.sql"),
)


@dataclass(slots=True)
class _Case:
    """One way over so many connections, and what each round found."""

    way: _Way
    connections: int
    answered: list[float] = field(default_factory=list)
    pgbench: list[float] = field(default_factory=list)
    client_cores: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Single]:
    """Return what each way gave, on a copy of the database."""
    load.prepare(bench.dsn, bench.tasks, bench.progress)
    with load.scratch(bench.dsn, bench.tasks) as dsn:
        with psycopg.connect(dsn) as connection:
            for path in (_HERE / "bare.sql", _PLAIN / "tables.sql"):
                connection.execute(path.read_bytes())
            (samples,) = connection.execute("SELECT count(*) FROM samples").fetchone() or (1,)
        with systems.service(dsn) as service:
            cases = [_Case(way, number) for way in _WAYS for number in _CONNECTIONS]
            for case in bench.in_turns("single", cases):
                _send(bench, service, case)
                text = (_PLAIN / case.way.script).read_text()
                script = limit.Script(text, {"samples": str(samples)}, {})
                rate = limit.per_second(dsn, script, case.connections, bench.seconds)
                case.pgbench.append(rate * case.way.requests)
    alone = {case.way: case.answered for case in cases if case.connections == 1}
    return [
        Single(
            way=case.way.name,
            connections=case.connections,
            per_second=Figure.of(case.answered),
            to_one_connection=ratio(case.answered, alone[case.way]),
            pgbench_per_second=Figure.of(case.pgbench),
            to_pgbench=ratio(case.answered, case.pgbench),
            client_cores=Figure.of(case.client_cores),
        )
        for case in cases
    ]


def _send(bench: Bench, service: System, case: _Case) -> None:
    a_second = min(_AT_MOST_A_SECOND * case.connections, _AT_MOST_A_SECOND_IN_ALL)
    tasks = max(int(a_second * bench.seconds / case.way.requests), case.connections)
    requests = [
        message
        for task in load.new_tasks(tasks)
        for message in _requests(service, task, case.way.requests)
    ]
    sent = bench.client.send(
        Load(
            service.host,
            service.port,
            requests,
            case.connections,
            bench.seconds,
            once=True,
            in_order=case.way.requests,
        ),
        *({_CREATED, _CHANGED} if case.way.requests > 1 else {_CREATED}),
    )
    case.answered.append(sent.per_second)
    case.client_cores.append(sent.cores)


def _requests(service: System, task: dict[str, Any], count: int) -> Iterator[bytes]:
    """Yield the requests that concern one task: its record and, of three, its two changes."""
    outcome = {"outcome": task["outcome"]} if task.get("outcome") else {}
    changes: Sequence[dict[str, Any]] = ()
    if count > 1:
        task = {
            name: task[name]
            for name in ("task_id", "request_text", "created_by", "services_touched")
        }
        changes = ({"status": "executing"}, {"status": "completed", **outcome})
    yield request(f"{API}/tasks", service.host, body=json.dumps(task).encode())
    for change in changes:
        yield request(
            f"{API}/tasks/{task['task_id']}",
            service.host,
            method="PATCH",
            body=json.dumps(change).encode(),
        )
