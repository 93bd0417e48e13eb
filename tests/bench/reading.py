"""Parts 1 to 3: the service, its peer and the limit, asked every question in turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench import limit, load, systems
from tests.bench.figures import Answers, Figure, Question, ratio
from tests.bench.run import Bench
from tests.bench.shapes import Shape, shapes
from tests.bench.systems import System

PAGE = 100
SMALL_PAGE = 10
FEW, MANY = 16, 64
_SHARE_OF_THROUGHPUT = 0.7
_PATIENCE_SECONDS = 20
#: At a low rate, so many requests are sent, unless that takes too long.
_ENOUGH_REQUESTS = 20
_LONGEST_SECONDS = 10
_TRIES = 10

#: What one round found, by the names of the fields of Answers.
Found = dict[str, float | None]


@dataclass(slots=True)
class _Case:
    """One shape, made ready, and what was found of it."""

    shape: Shape
    targets: Mapping[str, str]
    small_target: str
    script: limit.Script
    small_script: limit.Script
    total: int
    rows: int
    answers: dict[str, list[Found]]
    small: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    small_limit: list[float] = field(default_factory=list)


def measure(bench: Bench, *, with_peer: bool) -> dict[str, Question]:
    """Return what each shape gave."""
    dsn = load.prepare(bench.dsn, bench.tasks, bench.progress)
    peer_dsn = load.prepare_peer(bench.dsn, bench.tasks) if with_peer else None
    postmaster = systems.postmaster(dsn)
    with contextlib.ExitStack() as stack:
        running = {
            "service": stack.enter_context(systems.service(dsn, computing=True)),
            "repeated": stack.enter_context(systems.service(dsn)),
        }
        if peer_dsn is not None:
            running["peer"] = stack.enter_context(systems.peer(peer_dsn))
        cases = [_ready(shape, dsn, running) for shape in shapes(bench.tasks)]
        for name, system in running.items():
            # Every session meets every partition before it is measured; this one is cheap.
            bench.ask(system, cases[-1].targets[name], MANY)
        for case in bench.in_turns("reading", cases):
            for name, system in running.items():
                found = _ask(bench, system, postmaster, case.targets[name])
                case.answers[name].append(found)
            small = bench.ask(running["service"], case.small_target, FEW)
            case.small.append(small.per_second)
            for script, rates in (
                (case.script, case.limit),
                (case.small_script, case.small_limit),
            ):
                rates.append(limit.per_second(dsn, script, FEW, bench.seconds))
    return {case.shape.name: _question(case) for case in cases}


def _ready(shape: Shape, dsn: str, running: Mapping[str, System]) -> _Case:
    """Find the cursor if there is one, and see that all answer alike."""
    service = running["service"]
    cursor = cursor_of(service, shape)
    target = shape.target(PAGE, cursor)
    targets = dict.fromkeys(running, target)
    if "peer" in running:
        targets["peer"] = shape.target(PAGE)
    total, ids = _agreed(shape, running, targets)
    script, small_script = (
        asyncio.run(limit.script_for(dsn, limit.query_of(shape, size, cursor)))
        for size in (PAGE, SMALL_PAGE)
    )
    return _Case(
        shape=shape,
        targets=targets,
        small_target=shape.target(SMALL_PAGE, cursor),
        script=script,
        small_script=small_script,
        total=total,
        rows=len(ids),
        answers={name: [] for name in running},
    )


def cursor_of(service: System, shape: Shape) -> str | None:
    """Return the cursor that leads to the page of a shape, where it wants one."""
    if not shape.by_cursor:
        return None
    before = Shape(shape.name, shape.route, shape.filters, max(shape.skipped - PAGE, 0))
    page, _ = service.get(before.target(min(PAGE, shape.skipped)))
    return str(page["next_cursor"])


def _agreed(
    shape: Shape, running: Mapping[str, System], targets: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Return the total and the ids that all answer; again if the window moved on meanwhile.

    Raises:
        RuntimeError: they never agree.
    """
    for _ in range(_TRIES):
        pages = [system.get(targets[name])[0] for name, system in running.items()]
        answers = [(page["total"], [task["task_id"] for task in page["tasks"]]) for page in pages]
        if all(answer == answers[0] for answer in answers):
            return answers[0]
    raise RuntimeError(f"{shape.name}: {', '.join(running)} do not answer alike")


def _ask(bench: Bench, system: System, postmaster: int, target: str) -> Found:
    before = [systems.cpu_seconds(pid) for pid in (system.pid, postmaster)]
    few = bench.ask(system, target, FEW)
    after = [systems.cpu_seconds(pid) for pid in (system.pid, postmaster)]
    spent = [end - start for start, end in zip(before, after, strict=True)]
    answered = len(few.latencies)
    many = None
    if few.per_second * _PATIENCE_SECONDS >= MANY:
        many = bench.ask(system, target, MANY).per_second
    best = max(few.per_second, many or 0)
    rate = best * _SHARE_OF_THROUGHPUT
    seconds = max(bench.seconds, min(_ENOUGH_REQUESTS / rate, _LONGEST_SECONDS))
    timed = bench.ask(system, target, MANY, rate=rate, seconds=seconds)
    return {
        "per_second": best,
        "per_second_16": few.per_second,
        "per_second_64": many,
        "p50_ms": timed.percentile_ms(50),
        "p95_ms": timed.percentile_ms(95),
        "p99_ms": timed.percentile_ms(99),
        "system_cpu_ms": spent[0] * 1000 / answered,
        "postgresql_cpu_ms": spent[1] * 1000 / answered,
        "client_cpu_ms": few.cpu_seconds * 1000 / answered,
    }


def _question(case: _Case) -> Question:
    service = _rates(case.answers["service"], "per_second_16")
    best = {name: _rates(found, "per_second") for name, found in case.answers.items()}
    peer = best.get("peer")
    return Question(
        total=case.total,
        rows=case.rows,
        service=_answers(case.answers["service"]),
        repeated=_answers(case.answers["repeated"]),
        peer=_answers(case.answers["peer"]) if peer else None,
        service_page_of_10=Figure.of(case.small),
        limit=Figure.of(case.limit),
        limit_page_of_10=Figure.of(case.small_limit),
        service_to_peer=ratio(best["service"], peer) if peer else None,
        repeated_to_peer=ratio(best["repeated"], peer) if peer else None,
        service_to_limit=ratio(service, case.limit),
        service_to_limit_page_of_10=ratio(case.small, case.small_limit),
    )


def _rates(rounds: list[Found], name: str) -> list[float]:
    return [value for found in rounds if (value := found[name]) is not None]


def _answers(rounds: list[Found]) -> Answers:
    figures: dict[str, Any] = {
        name: Figure.if_any(found[name] for found in rounds) for name in Answers.model_fields
    }
    return Answers(**figures)
