"""Part 7: a question asked again on unchanged data, against the least that aiohttp can answer."""

from __future__ import annotations

import contextlib

from tests.bench import load, systems
from tests.bench.figures import Figure, Repeated, ratio
from tests.bench.reading import FEW, PAGE
from tests.bench.run import Bench
from tests.bench.shapes import shapes

_SHAPE = "frequent service"
_NOT_MODIFIED = 304


def measure(bench: Bench) -> Repeated:
    """Return what one process of each gave; no 304 where the service sends no ETag."""
    (shape,) = (one for one in shapes(bench.tasks) if one.name == _SHAPE)
    return measure_target(bench, f"{shape.name}, page of 100", shape.target(PAGE))


def measure_target(bench: Bench, name: str, target: str) -> Repeated:
    """Return the same for the target of another question, of this name."""
    dsn = load.prepare(bench.dsn, bench.tasks, bench.progress)
    trivial: list[float] = []
    whole: list[float] = []
    not_modified: list[float] = []
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(systems.service(dsn, workers=1))
        least = stack.enter_context(systems.trivial())
        _, headers = service.get(target)
        etag = headers.get("etag")
        for step in bench.in_turns("repeated question", ["trivial", "page", "304"]):
            if step == "trivial":
                trivial.append(bench.ask(least, "/", FEW).per_second)
            elif step == "page":
                whole.append(bench.ask(service, target, FEW).per_second)
            elif etag is not None:
                condition = [f"If-None-Match: {etag}"]
                asked = bench.ask(service, target, FEW, headers=condition, expected=_NOT_MODIFIED)
                not_modified.append(asked.per_second)
    return Repeated(
        shape=name,
        trivial_per_second=Figure.of(trivial),
        page_per_second=Figure.of(whole),
        page_to_trivial=ratio(whole, trivial),
        not_modified_per_second=Figure.if_any(not_modified),
        not_modified_to_trivial=ratio(not_modified, trivial) if not_modified else None,
    )
