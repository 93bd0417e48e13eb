"""Part 12: exports at full speed and to a slow reader, the worker's memory, and other requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.bench import load, systems
from tests.bench.figures import Export, Figure, ratio
from tests.bench.reading import PAGE
from tests.bench.run import Bench
from tests.bench.shapes import API, shapes
from tests.bench.systems import System
from tests.processes import Memory, children_of

FORMS: Final = ("ndjson", "csv")
#: What others ask for meanwhile. It is computed each time.
_SHAPE: Final = "failures of 7 days"
_SLOW_BYTES_A_SECOND: Final = 200_000
#: How much longer the slow reader reads than other measurements take.
_SLOW_TIMES: Final = 60
_SLOW_PIECES_A_SECOND: Final = 10
_MIB: Final = 1024 * 1024
_PIECE_BYTES: Final = _MIB


@dataclass(slots=True)
class _Case:
    """Exports in one format, and what each round found."""

    form: str
    tasks_a_second: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    slow_memory_mib: list[float] = field(default_factory=list)
    alone_p50_ms: list[float] = field(default_factory=list)
    alone_p95_ms: list[float] = field(default_factory=list)
    beside_p50_ms: list[float] = field(default_factory=list)
    beside_p95_ms: list[float] = field(default_factory=list)


def measure(bench: Bench) -> list[Export]:
    """Return what each format gave. One worker serves the exports and the other requests."""
    dsn = load.prepare(bench.dsn, bench.tasks, bench.progress)
    with systems.service(dsn, workers=1, computing=True) as service:
        # The first request of a worker takes longer.
        bench.ask(service, _page(bench), 1)
        cases = [_Case(form) for form in FORMS]
        for case in bench.in_turns("export", cases):
            _run(bench, service, case)
    return [
        Export(
            form=case.form,
            tasks=bench.tasks,
            tasks_per_second=Figure.of(case.tasks_a_second),
            memory_mib=Figure.of(case.memory_mib),
            slow_memory_mib=Figure.of(case.slow_memory_mib),
            alone_p50_ms=Figure.of(case.alone_p50_ms),
            alone_p95_ms=Figure.of(case.alone_p95_ms),
            beside_p50_ms=Figure.of(case.beside_p50_ms),
            beside_p95_ms=Figure.of(case.beside_p95_ms),
            p50_beside_to_alone=ratio(case.beside_p50_ms, case.alone_p50_ms),
            p95_beside_to_alone=ratio(case.beside_p95_ms, case.alone_p95_ms),
        )
        for case in cases
    ]


def _run(bench: Bench, service: System, case: _Case) -> None:
    target = _page(bench)
    (worker,) = children_of(service.pid)

    alone = bench.ask(service, target, 1)
    case.alone_p50_ms.append(alone.percentile_ms(50))
    case.alone_p95_ms.append(alone.percentile_ms(95))

    memory = Memory(worker)
    began = time.perf_counter()
    with _exported(service, case.form) as response:
        while response.read(_PIECE_BYTES):
            pass
    case.tasks_a_second.append(bench.tasks / (time.perf_counter() - began))
    case.memory_mib.append(memory.grown() / _MIB)

    with _exporting(service, case.form):
        beside = bench.ask(service, target, 1)
    case.beside_p50_ms.append(beside.percentile_ms(50))
    case.beside_p95_ms.append(beside.percentile_ms(95))

    memory = Memory(worker)
    with _exported(service, case.form) as response:
        _read_slowly(response, _SLOW_TIMES * bench.seconds)
    case.slow_memory_mib.append(memory.grown() / _MIB)


def _page(bench: Bench) -> str:
    (shape,) = (one for one in shapes(bench.tasks) if one.name == _SHAPE)
    return shape.target(PAGE)


@contextmanager
def _exported(service: System, form: str) -> Iterator[http.client.HTTPResponse]:
    """Begin to export all tasks, and yield the response. At the end, close the connection."""
    connection = http.client.HTTPConnection(service.host, service.port, timeout=120)
    try:
        connection.request("GET", f"{API}/export?format={form}")
        with connection.getresponse() as response:
            if response.status != 200:
                raise RuntimeError(f"an export answered {response.status}: {response.read()!r}")
            yield response
    finally:
        connection.close()


@contextmanager
def _exporting(service: System, form: str) -> Iterator[None]:
    """Export at full speed, again and again, for as long as the block runs."""
    ended = threading.Event()
    has_begun = threading.Event()

    def export() -> None:
        try:
            while not ended.is_set():
                with _exported(service, form) as response:
                    while not ended.is_set() and response.read(_PIECE_BYTES):
                        has_begun.set()
        finally:
            has_begun.set()

    with ThreadPoolExecutor(1) as thread:
        reader = thread.submit(export)
        try:
            has_begun.wait()
            yield
        finally:
            ended.set()
    reader.result()


def _read_slowly(response: http.client.HTTPResponse, seconds: float) -> None:
    """Read at a low rate, until the end of the export or of the time."""
    began = time.perf_counter()
    size = _SLOW_BYTES_A_SECOND // _SLOW_PIECES_A_SECOND
    pieces = 0
    while time.perf_counter() - began < seconds and response.read(size):
        pieces += 1
        due = began + pieces / _SLOW_PIECES_A_SECOND
        time.sleep(max(due - time.perf_counter(), 0))
