"""Part 8: the latency of statistics at each size of the history, and of a repeated one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

from tests.bench import load, repeated, systems
from tests.bench.figures import Figure, Statistic, Statistics, ratio
from tests.bench.run import Bench
from tests.bench.shapes import API, Services
from tests.bench.systems import System

_ROOT: Final = f"{API}/statistics"
_FACETS: Final = f"{_ROOT}/facets?facet=status&facet=intent&facet=service"
_OF_SERVICE: Final = f"service={Services.frequent}"
#: By name: what is asked. The counts answer the first group; the second reads the tasks.
QUESTIONS: Final = {
    "histogram, all time": f"{_ROOT}/histogram",
    "histogram, 7 days": f"{_ROOT}/histogram?days=7",
    "histogram, a service, 24 hours": f"{_ROOT}/histogram?last=24h&{_OF_SERVICE}",
    "histogram, each day, UTC": f"{_ROOT}/histogram?interval=1d",
    "histogram, each day, Berlin": f"{_ROOT}/histogram?interval=1d&tz=Europe/Berlin",
    "histogram, each day, Kathmandu": f"{_ROOT}/histogram?interval=1d&tz=Asia/Kathmandu",
    "facets, 7 days": f"{_FACETS}&days=7",
    "facets, all time": _FACETS,
    "facets, a person, 7 days": f"{_FACETS}&days=7&created_by=ada@example.com",
    "durations, failures of 7 days": f"{_ROOT}/durations?days=7&status=failed",
    "durations, a service, 24 hours": f"{_ROOT}/durations?last=24h&{_OF_SERVICE}",
}
_REPEATED: Final = "histogram, 7 days"


@dataclass(slots=True)
class _Case:
    """One question at one size."""

    name: str
    tasks: int
    system: System
    medians_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)


def measure(bench: Bench) -> Statistics:
    """Return what one client got; only the repeated question is answered from the cache."""
    with contextlib.ExitStack() as stack:
        cases: list[_Case] = []
        for tasks in bench.sizes:
            dsn = load.prepare(bench.dsn, tasks, bench.progress)
            system = stack.enter_context(systems.service(dsn, workers=1, computing=True))
            cases += [_Case(name, tasks, system) for name in QUESTIONS]
        # The sizes of one question follow each other.
        cases.sort(key=lambda case: list(QUESTIONS).index(case.name))
        for case in bench.in_turns("statistics", cases):
            outcome = bench.ask(case.system, QUESTIONS[case.name], 1)
            case.medians_ms.append(outcome.percentile_ms(50))
            case.p95_ms.append(outcome.percentile_ms(95))
    return Statistics(
        latency={
            name: _statistic([case for case in cases if case.name == name]) for name in QUESTIONS
        },
        repeated=repeated.measure_target(bench, _REPEATED, QUESTIONS[_REPEATED]),
    )


def _statistic(cases: list[_Case]) -> Statistic:
    return Statistic(
        median_ms={case.tasks: Figure.of(case.medians_ms) for case in cases},
        p95_ms={case.tasks: Figure.of(case.p95_ms) for case in cases},
        largest_to_smallest=ratio(cases[-1].medians_ms, cases[0].medians_ms),
    )
