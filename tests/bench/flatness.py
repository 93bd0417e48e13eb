"""Part 4: the median latency of every shape at each size of the history."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from tests.bench import load, systems
from tests.bench.figures import Figure, Flatness, ratio
from tests.bench.reading import PAGE, cursor_of
from tests.bench.run import Bench
from tests.bench.shapes import Shape, shapes
from tests.bench.systems import System


@dataclass(slots=True)
class _Case:
    """One shape at one size."""

    shape: Shape
    tasks: int
    system: System
    target: str
    rows: int
    medians_ms: list[float] = field(default_factory=list)


def measure(bench: Bench) -> dict[str, Flatness]:
    """Return what each shape gave, asked by one client; no answer comes from memory."""
    with contextlib.ExitStack() as stack:
        cases: list[_Case] = []
        for tasks in bench.sizes:
            dsn = load.prepare(bench.dsn, tasks, bench.progress)
            system = stack.enter_context(systems.service(dsn, workers=1, computing=True))
            cases += [_ready(shape, tasks, system) for shape in shapes(tasks)]
        names = [shape.name for shape in shapes(bench.tasks)]
        # The sizes of one shape follow each other.
        cases.sort(key=lambda case: names.index(case.shape.name))
        for case in bench.in_turns("flatness", cases):
            outcome = bench.ask(case.system, case.target, 1)
            case.medians_ms.append(outcome.percentile_ms(50))
    return {name: _flatness([case for case in cases if case.shape.name == name]) for name in names}


def _ready(shape: Shape, tasks: int, system: System) -> _Case:
    target = shape.target(PAGE, cursor_of(system, shape))
    page, _ = system.get(target)
    return _Case(shape, tasks, system, target, len(page["tasks"]))


def _flatness(cases: list[_Case]) -> Flatness:
    return Flatness(
        median_ms={case.tasks: Figure.of(case.medians_ms) for case in cases},
        rows={case.tasks: case.rows for case in cases},
        largest_to_smallest=ratio(cases[-1].medians_ms, cases[0].medians_ms),
    )
