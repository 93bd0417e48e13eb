"""Part 10: what an API key costs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench import load, systems
from tests.bench.figures import Figure, Keyed, ratio
from tests.bench.reading import FEW, MANY, PAGE, SMALL_PAGE
from tests.bench.run import Bench
from tests.bench.shapes import shapes
from tests.bench.systems import System
from tests.processes import AUDIT

_SHAPE = "frequent service"


@dataclass(slots=True)
class _Case:
    """One question; of each service, its answers per second and microseconds of each answer."""

    question: str
    target: str
    connections: int
    computed: bool
    per_second: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    cpu_us: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def measure(bench: Bench) -> list[Keyed]:
    """Return what each service gave. A key in a database makes its service ask for one."""
    without = load.prepare(bench.dsn, bench.tasks, bench.progress)
    (shape,) = (one for one in shapes(bench.tasks) if one.name == _SHAPE)
    page, small_page = shape.target(PAGE), shape.target(SMALL_PAGE)
    cases = [
        _Case("computed, page of 100", page, FEW, computed=True),
        _Case("computed, page of 10", small_page, FEW, computed=True),
        _Case("from memory, page of 100", page, FEW, computed=False),
        _Case("from memory, page of 100", page, MANY, computed=False),
    ]
    with load.scratch(bench.dsn, bench.tasks) as keyed, contextlib.ExitStack() as stack:
        create = ["keys", "create", "--name", "bench", "--scope", "read", "--dsn", keyed]
        key = subprocess.check_output([AUDIT, *create], text=True).strip()
        running = {
            computed: [
                stack.enter_context(systems.service(dsn, computing=computed))
                for dsn in (without, keyed)
            ]
            for computed in (True, False)
        }
        headers: tuple[list[str], list[str]] = ([], [f"Authorization: Bearer {key}"])
        for case in bench.in_turns("keys", cases):
            for number, service in enumerate(running[case.computed]):
                _ask(bench, service, case, number, headers[number])
    return [
        Keyed(
            question=case.question,
            connections=case.connections,
            without_key_per_second=Figure.of(case.per_second[0]),
            with_key_per_second=Figure.of(case.per_second[1]),
            with_to_without=ratio(case.per_second[1], case.per_second[0]),
            without_key_cpu_us=Figure.of(case.cpu_us[0]),
            with_key_cpu_us=Figure.of(case.cpu_us[1]),
        )
        for case in cases
    ]


def _ask(bench: Bench, service: System, case: _Case, number: int, headers: Sequence[str]) -> None:
    before = systems.cpu_seconds(service.pid)
    asked = bench.ask(service, case.target, case.connections, headers=headers)
    spent = systems.cpu_seconds(service.pid) - before
    case.per_second[number].append(asked.per_second)
    case.cpu_us[number].append(spent * 1e6 / len(asked.latencies))
